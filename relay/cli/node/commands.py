"""The commands of an operator, and their options.

A command imports its work when it runs: the packages of a node come with another extra, and those
of an agent take a quarter of a second to import.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final

import typer

from relay.cli.options import Json, checked_admin, option, run_async

app = typer.Typer()
config_app = typer.Typer(help="Settings of a node.", no_args_is_help=True)
peers_app = typer.Typer(help="Other relays that a relay deals with.", no_args_is_help=True)

Data = Annotated[Path | None, option("--data", "Directory of this node.")]
Listen = Annotated[str | None, option("--listen", "Public HOST:PORT.")]
AdminListen = Annotated[str | None, option("--admin", "HOST:PORT of the operator.")]
PublicUrl = Annotated[str | None, option("--public-url", "Origin that agents dial.")]
RedisUrl = Annotated[str | None, option("--redis-url", "An external store.")]


@app.command("serve")
def _serve(
    data: Data = None,
    listen: Listen = None,
    admin: AdminListen = None,
    public_url: PublicUrl = None,
    redis_url: RedisUrl = None,
) -> None:
    """Run a relay node. Every other setting is a RELAY_ variable: relay config show."""
    from relay.cli.node import serve

    raise typer.Exit(serve.serve(_overrides(data, listen, admin, public_url, redis_url)))


@config_app.command("show")
def _config_show(
    data: Data = None,
    listen: Listen = None,
    admin: AdminListen = None,
    public_url: PublicUrl = None,
    redis_url: RedisUrl = None,
    json: Json = False,
) -> None:
    """Show every setting of a node, its value and where that comes from."""
    from relay.cli.node import serve

    serve.show_config(_overrides(data, listen, admin, public_url, redis_url), as_json=json)


def _overrides(*values: Path | str | None) -> dict[str, Any]:
    return dict(zip(("data", "listen", "admin", "public_url", "redis_url"), values, strict=True))


@app.command("check")
def _check(
    url: Annotated[str, typer.Argument(metavar="URL", help="Origin of the relay.")],
    no_send: Annotated[bool, option("--no-send", "Send no envelope.")] = False,
    json: Json = False,
) -> None:
    """Check a relay from outside; a line each: ok, warn or FAIL."""
    from relay.cli.node import check

    try:
        run_async(check.check(url, send=not no_send, as_json=json))
    except ValueError as exc:
        raise typer.BadParameter(str(exc), param_hint="URL") from exc


# ---------------------------------------------------------------- peers


DEFAULT_ADMIN: Final = "http://127.0.0.1:8081"

AdminUrl = Annotated[
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


@peers_app.command("list")
def _list(admin: AdminUrl = DEFAULT_ADMIN, json: Json = False) -> None:
    """Show all relays that are known, a line each."""
    from relay.cli.node import peers

    run_async(peers.list_peers(admin, as_json=json))


@peers_app.command("show")
def _show(did: Did, admin: AdminUrl = DEFAULT_ADMIN, json: Json = False) -> None:
    """Show how it goes with one relay, and how it sees this one."""
    from relay.cli.node import peers

    run_async(peers.show(admin, did, as_json=json))


@peers_app.command("add")
def _add(
    url: PeerUrl,
    did: Annotated[str | None, option("--did", "Who must be there.")] = None,
    admin: AdminUrl = DEFAULT_ADMIN,
    json: Json = False,
) -> None:
    """Deal with a relay from now on. Its operator does the same, unless it is open."""
    from relay.cli.node import peers

    run_async(peers.add(admin, url, did, as_json=json))


@peers_app.command("remove")
def _remove(did: Did, admin: AdminUrl = DEFAULT_ADMIN, json: Json = False) -> None:
    """Deal with a relay no more."""
    from relay.cli.node import peers

    run_async(peers.remove(admin, did, as_json=json))


@peers_app.command("block")
def _block(did: Did, admin: AdminUrl = DEFAULT_ADMIN, json: Json = False) -> None:
    """Refuse a relay, known or not, both ways; its links end at once."""
    from relay.cli.node import peers

    run_async(peers.block(admin, did, as_json=json))


@peers_app.command("unblock")
def _unblock(did: Did, admin: AdminUrl = DEFAULT_ADMIN, json: Json = False) -> None:
    """Refuse it no more. In closed federation, add it again to deal with it."""
    from relay.cli.node import peers

    run_async(peers.unblock(admin, did, as_json=json))


@app.command("join")
def _join(url: PeerUrl, admin: AdminUrl = DEFAULT_ADMIN, json: Json = False) -> None:
    """Join a mesh by one of its relays: add it, and learn of the others from it."""
    from relay.cli.node import peers

    run_async(peers.join(admin, url, as_json=json))
