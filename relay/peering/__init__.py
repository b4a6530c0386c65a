"""Which relays this node knows, and how it dials them."""
