"""Adapters that keep inboxes durable: memory, Redis, and the server and disk beneath them."""
