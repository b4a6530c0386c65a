"""How this relay reaches other relays: dialling, and links to them."""
