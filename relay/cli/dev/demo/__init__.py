"""The demonstrations of ``relay demo``."""
