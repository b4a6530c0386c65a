"""The mesh on a virtual clock: how long, and how many bytes, until all relays agree.

``python -m loadtest.mesh_sim [--quick] [--json] [--plot FILE]``
"""
