"""The command that moves an agent to another relay; see :mod:`relay.cli.agent.migrate`.

Rules of the file: as in ``app.py``: what a command needs is imported when it runs.
"""

from __future__ import annotations

from typing import Annotated

import typer

from relay.cli.options import DEFAULT_URL, Json, Key, PassphraseFile, Take, Url, checked, run_async


def _origin(url: str | None) -> str | None:
    return None if url is None else checked(url)


To = Annotated[
    str | None,
    typer.Option("--to", callback=_origin, help="Origin of the new relay.", show_default=False),
]


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("migrate")(_migrate)


def _migrate(
    to: To = None,
    *,
    dead_source: Annotated[
        bool, typer.Option("--dead-source", help="Go on where the old relay does not answer.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be lost right now; move nothing.")
    ] = False,
    cancel: Annotated[
        bool, typer.Option("--cancel", help="Take back a move that is not published yet.")
    ] = False,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to go on.")] = 600.0,
    key: Key = None,
    passphrase_file: PassphraseFile = None,
    relay: Url = DEFAULT_URL,
    take: Take = False,
    json: Json = False,
) -> None:
    """Move your inbox to another relay; the same command goes on with a move that was cut off."""
    if cancel == (to is not None):
        raise typer.BadParameter("give --to URL, or --cancel", param_hint="--to")
    if cancel and (dry_run or dead_source):
        raise typer.BadParameter(
            "goes with neither --dry-run nor --dead-source", param_hint="--cancel"
        )
    from relay.cli.agent import (  # noqa: PLC0415  as above
        key as identity,
    )
    from relay.cli.agent import (  # noqa: PLC0415  only now
        migrate,
    )

    file = identity.KeyFile(key, passphrase_file)
    wish = migrate.Options(take=take, dead_source=dead_source, deadline_s=timeout, as_json=json)
    if to is None:
        work = migrate.cancel(file, relay, wish)
    elif dry_run:
        work = migrate.dry_run(file, relay, to, wish)
    else:
        work = migrate.migrate(file, relay, to, wish)
    raise typer.Exit(run_async(work))
