"""The HTTP edge: agents that wake up now and then, and operators (PROTOCOL.md §6, §8, §9)."""
