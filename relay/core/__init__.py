"""Values and decisions: no sockets, no clock, no randomness, no logging, no ``async``.

Shared by the node and the SDK. Layers, lowest first: ``errors ids`` · ``jws`` · ``identity`` ·
``envelope receipts records relay_info seal`` · ``policy inbox`` · ``frames`` ·
``record_index`` · ``antientropy gossip membership`` · ``session agent_session``.
"""
