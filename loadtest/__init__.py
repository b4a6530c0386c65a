"""Load driver: what a real relay process does under load, and what it costs (`./run bench`)."""
