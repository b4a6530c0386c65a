"""The move of an inbox from one relay to another."""
