"""Scenario ``migrate``: an inbox full of mail changes relays."""
