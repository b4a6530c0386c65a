"""The agent's own endpoint record, and records of others."""
