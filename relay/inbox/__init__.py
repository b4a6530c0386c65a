"""How an envelope is accepted, delivered, and ends."""
