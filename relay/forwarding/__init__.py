"""How envelopes reach agents whose home is another relay."""
