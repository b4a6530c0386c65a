"""How an inbox moves from one relay to another."""
