"""The agent for programs without an event loop: the same calls, which block."""

from __future__ import annotations

from relay.client.sync.agent import Agent, Bounce, Message, Outcome, accept_relay

__all__ = ["Agent", "Bounce", "Message", "Outcome", "accept_relay"]
