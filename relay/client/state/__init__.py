"""The state file of an agent."""
