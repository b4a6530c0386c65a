"""Endpoint records and handles: publishing, resolving, gossip and anti-entropy."""
