"""Use cases: small callables over ports. Each edge decodes, calls one of these, encodes."""
