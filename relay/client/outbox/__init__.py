"""From a send to its outcome."""
