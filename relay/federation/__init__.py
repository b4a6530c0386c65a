"""Talking to other relays: everything that this relay dials, it dials from here."""
