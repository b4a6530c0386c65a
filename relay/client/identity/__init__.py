"""Keys at rest, and handles."""
