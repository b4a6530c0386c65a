"""Values and decisions: no sockets, no clock, no randomness, no logging, no ``async``.

Shared by the node and the SDK. Layers, lowest first: ``errors ids`` · ``jws`` · ``identity`` ·
``envelope receipts records seal`` · ``policy inbox`` · ``frames`` · ``session agent_session``.
"""
