"""Commands for those who run an agent."""
