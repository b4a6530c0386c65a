"""Decisions about inboxes: pure, no I/O."""
