"""How endpoint records and handles are published, resolved and gossiped."""
