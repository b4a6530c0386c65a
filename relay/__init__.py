"""A federated relay for agents: signed envelopes addressed to DIDs, held until they are acked."""

__version__ = "0.1.0"
