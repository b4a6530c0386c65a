"""Scenario ``mesh``: mail between relays, and a directory that they share."""
