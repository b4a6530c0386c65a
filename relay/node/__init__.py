"""The composition root of a node: only it knows the implementation of each port."""

from __future__ import annotations

import asyncio

from relay import log
from relay.node.serve import run_node
from relay.settings import Settings, unknown_variables


def serve(settings: Settings) -> int:
    """Run a node until SIGTERM or SIGINT, then drain; return the exit code."""
    log.configure(settings.log_level)
    for name in unknown_variables():
        log.event("unknown_variable", name=name)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(run_node(settings))


def _loop_factory() -> type[asyncio.AbstractEventLoop]:
    import uvloop  # noqa: PLC0415  only a node needs it, and not at import

    return uvloop.Loop
