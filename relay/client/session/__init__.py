"""Connections to relays, renewed after each loss."""
