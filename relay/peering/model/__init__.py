"""Decisions about peers: pure, no I/O."""
