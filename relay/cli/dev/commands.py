"""The commands of a developer, and their options; see :mod:`relay.cli.agent.commands`."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import typer

from relay.cli.options import run_async

app = typer.Typer()

_WORDS_OF_ANOTHER: Final[dict[str, Any]] = {
    "add_help_option": False,
    "context_settings": {"allow_extra_args": True, "ignore_unknown_options": True},
}


@app.command("demo")
def _demo(
    what: Annotated[
        Literal["relay", "mesh", "migrate"],
        typer.Argument(help="relay: one relay; mesh: three of them; migrate: an agent moves."),
    ] = "relay",
) -> None:
    """Watch an envelope survive a killed relay, find its way between relays, or an agent move."""
    from relay.cli.dev.demo import show

    run_async(show.demo(what))


@app.command("bench", **_WORDS_OF_ANOTHER)
def _bench(context: typer.Context) -> None:
    """Measure a relay under load; only in a checkout."""
    from relay.cli.dev import bench

    raise typer.Exit(bench.bench(context.args))
