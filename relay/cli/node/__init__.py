"""Commands for those who run a relay."""
