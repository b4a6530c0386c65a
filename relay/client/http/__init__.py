"""HTTP requests to relays, and the network below them."""
