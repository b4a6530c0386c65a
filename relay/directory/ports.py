"""The store of the startup gate: its port."""

from __future__ import annotations

from typing import Protocol

from relay.inbox.ports import InboxStore, NodeStore
from relay.peering.ports import RecordStore


class GateStore(InboxStore, NodeStore, RecordStore, Protocol):
    """Inboxes, records, and what nodes share."""
