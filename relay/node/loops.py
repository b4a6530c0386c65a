"""The loops of a node: a table of names, pauses and steps.

A step that fails is counted and logged, and the loop goes on after its pause. No loop ends by
itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from relay.node.node import Node
from relay.tasks import isolated

RESTART_S: Final = 1.0
"""Pause after a step that runs until cancelled: only a defect ends it."""

Step = Callable[[], Awaitable[object]]
Loop = tuple[str, float, Step]
"""Name (the label of ``relay_loop_failures_total``), pause in seconds, step."""


def loops_of(node: Node) -> list[Loop]:
    """Return the loops of a node."""
    house, embedded = node.housekeeping, node.opened.embedded
    loops: list[Loop] = [
        ("commits", RESTART_S, node.intake.commits.run),
        ("acks", RESTART_S, node.acks.run),
        ("store", RESTART_S, node.store.run),
        ("poll", 4.0, house.poll),
        ("sweep", 5.0, house.sweep),
        ("bounce", 1.0, house.bounces),
        ("disk", 0.5, node.check_disk),
        ("files", 1.0, house.files),
        ("follow", 1.0, node.gossip.changes.read),
    ]
    if embedded is not None:
        loops.append(("store", RESTART_S, embedded.run))
    if node.peers.federation != "off":
        loops += [
            ("links", RESTART_S, lambda: node.links.run(node.exchange.on_link_up)),
            ("peers", 5.0, node.peers.refresh),
            ("handoffs", 5.0, house.refresh_handoffs),
            ("forwarding", RESTART_S, node.forwarding.run),
            ("push", 0.5, node.gossip.push),
            ("measure", 5.0, house.measure),
            ("return", 0.2, node.startup_gate.run),
            # the step waits for half a minute or for a new link itself
            ("pull", 1.0, node.pulls.pull),
            ("meet", 5.0, node.exchange.exchange_peers),
        ]
    return loops


async def run_every(name: str, seconds: float, step: Step) -> None:
    """Take a step and pause, until cancelled."""
    while True:
        with isolated(name):
            await step()
        await asyncio.sleep(seconds)
