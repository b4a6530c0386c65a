"""Relays that this node knows, the policy towards them, and the links to them."""
