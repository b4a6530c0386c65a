"""Decisions about records: pure, no I/O."""
