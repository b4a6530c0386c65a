"""From a delivery to its ack."""
