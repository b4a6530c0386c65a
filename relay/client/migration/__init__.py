"""Changing relays, as the agent sees it."""
