"""Connections to relays, kept up."""
