"""Decisions about a migration: pure, no I/O."""
