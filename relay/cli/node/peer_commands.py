"""The commands of an operator about other relays, and their options.

Rules of the file: as in ``app.py``: what a command needs is imported when it runs.
"""

from __future__ import annotations

from typing import Annotated, Final

import typer

from relay.cli.options import Json, checked_admin, run_async

DEFAULT_ADMIN: Final = "http://127.0.0.1:8081"

Admin = Annotated[
    str,
    typer.Option(
        "--admin",
        envvar="RELAY_ADMIN_URL",
        callback=checked_admin,
        help="Address of the node's admin side.",
    ),
]
Did = Annotated[str, typer.Argument(metavar="DID", help="DID of the relay.")]
PeerUrl = Annotated[str, typer.Argument(metavar="URL", help="Origin of the relay.")]

peers_app = typer.Typer(help="Other relays that a relay deals with.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.add_typer(peers_app, name="peers")
    app.command("join")(_join)


@peers_app.command("list")
def _list(admin: Admin = DEFAULT_ADMIN, *, json: Json = False) -> None:
    """Show all relays that are known, a line each."""
    from relay.cli.node import peers  # noqa: PLC0415  as above

    run_async(peers.list_peers(admin, as_json=json))


@peers_app.command("show")
def _show(did: Did, admin: Admin = DEFAULT_ADMIN, *, json: Json = False) -> None:
    """Show how it goes with one relay, and how it sees this one."""
    from relay.cli.node import peers  # noqa: PLC0415  as above

    raise typer.Exit(run_async(peers.show(admin, did, as_json=json)))


@peers_app.command("add")
def _add(
    url: PeerUrl,
    did: Annotated[
        str | None, typer.Option("--did", help="Who must be there.", show_default=False)
    ] = None,
    admin: Admin = DEFAULT_ADMIN,
    *,
    json: Json = False,
) -> None:
    """Deal with a relay from now on. Its operator does the same, unless it is open."""
    from relay.cli.node import peers  # noqa: PLC0415  as above

    run_async(peers.add(admin, url, did, as_json=json))


@peers_app.command("remove")
def _remove(did: Did, admin: Admin = DEFAULT_ADMIN, *, json: Json = False) -> None:
    """Deal with a relay no more."""
    from relay.cli.node import peers  # noqa: PLC0415  as above

    run_async(peers.remove(admin, did, as_json=json))


@peers_app.command("block")
def _block(did: Did, admin: Admin = DEFAULT_ADMIN, *, json: Json = False) -> None:
    """Refuse a relay, known or not, both ways; its links end at once."""
    from relay.cli.node import peers  # noqa: PLC0415  as above

    run_async(peers.block(admin, did, as_json=json))


@peers_app.command("unblock")
def _unblock(did: Did, admin: Admin = DEFAULT_ADMIN, *, json: Json = False) -> None:
    """Refuse it no more. In closed federation, add it again to deal with it."""
    from relay.cli.node import peers  # noqa: PLC0415  as above

    run_async(peers.unblock(admin, did, as_json=json))


def _join(url: PeerUrl, admin: Admin = DEFAULT_ADMIN, *, json: Json = False) -> None:
    """Join a mesh by one of its relays: add it, and learn of the others from it."""
    from relay.cli.node import peers  # noqa: PLC0415  as above

    raise typer.Exit(run_async(peers.join(admin, url, as_json=json)))
