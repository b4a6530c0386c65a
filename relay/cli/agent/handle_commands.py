"""The commands about records and handles; what they do is in :mod:`relay.cli.agent.handle`.

Rules of the file: as in ``app.py``: what a command needs is imported when it runs.
"""

from __future__ import annotations

from typing import Annotated

import typer

from relay.cli.options import DEFAULT_URL, Json, Key, PassphraseFile, Url, checked, run_async

handle_app = typer.Typer(help="Names of agents, for people.", no_args_is_help=True)

Handle = Annotated[str, typer.Argument(metavar="HANDLE", help="name@relay, or a hostname.")]
Name = Annotated[
    str,
    typer.Argument(metavar="NAME|HOST", help="A name under your relay, or a hostname of your own."),
]


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("publish")(_publish)
    app.command("resolve")(_resolve)
    app.command("accept")(_accept)
    app.add_typer(handle_app, name="handle")


def _publish(
    key: Key = None,
    passphrase_file: PassphraseFile = None,
    relay: Url = DEFAULT_URL,
    *,
    json: Json = False,
) -> None:
    """Publish your endpoint record anew, and show it."""
    from relay.cli.agent import (  # noqa: PLC0415  only now
        handle as naming,
    )
    from relay.cli.agent import (  # noqa: PLC0415  as above
        key as identity,
    )

    file = identity.KeyFile(key, passphrase_file)
    raise typer.Exit(run_async(naming.publish(file, relay, as_json=json)))


def _resolve(
    who: Annotated[str, typer.Argument(metavar="HANDLE|DID", help="Whom to look up.")],
    relay: Url = DEFAULT_URL,
    *,
    json: Json = False,
) -> None:
    """Show where an agent lives; a handle is checked both ways."""
    from relay.cli.agent import (  # noqa: PLC0415  as above
        handle as naming,
    )
    from relay.cli.agent import (  # noqa: PLC0415  only now
        talking,
    )

    if who.startswith("did:"):
        talking.check_did(who, "DID")
    raise typer.Exit(run_async(naming.resolve(who, relay, as_json=json)))


def _accept(
    what: Annotated[
        str, typer.Argument(metavar="URL|HANDLE", help="A relay's address, or an agent's name.")
    ],
    did: Annotated[str, typer.Argument(metavar="DID", help="Who is there from now on.")],
    key: Key = None,
    passphrase_file: PassphraseFile = None,
    relay: Url = DEFAULT_URL,
    *,
    json: Json = False,
) -> None:
    """Accept a relay that is back with a new key, or whom a handle leads to now.

    Ask its operator first: whoever has taken over the address looks the same.
    """
    from relay.cli.agent import (  # noqa: PLC0415  as above
        accept,
        talking,
    )
    from relay.cli.agent import (  # noqa: PLC0415  only now
        key as identity,
    )

    talking.check_did(did, "DID")
    file = identity.KeyFile(key, passphrase_file)
    if "://" in what:
        work = accept.relay(file, checked(what), did, as_json=json)
    else:
        work = accept.handle(file, relay, what, did, as_json=json)
    raise typer.Exit(run_async(work))


@handle_app.command("set")
def _set(
    name: Name,
    key: Key = None,
    passphrase_file: PassphraseFile = None,
    relay: Url = DEFAULT_URL,
    *,
    json: Json = False,
) -> None:
    """Put a handle into your endpoint record, and see whether it leads to you."""
    from relay.cli.agent import (  # noqa: PLC0415  only now
        handle as naming,
    )
    from relay.cli.agent import (  # noqa: PLC0415  as above
        key as identity,
    )

    file = identity.KeyFile(key, passphrase_file)
    raise typer.Exit(run_async(naming.change(file, relay, "set", name, as_json=json)))


@handle_app.command("remove")
def _remove(
    name: Name,
    key: Key = None,
    passphrase_file: PassphraseFile = None,
    relay: Url = DEFAULT_URL,
    *,
    json: Json = False,
) -> None:
    """Take a handle out of your endpoint record."""
    from relay.cli.agent import (  # noqa: PLC0415  only now
        handle as naming,
    )
    from relay.cli.agent import (  # noqa: PLC0415  as above
        key as identity,
    )

    file = identity.KeyFile(key, passphrase_file)
    raise typer.Exit(run_async(naming.change(file, relay, "remove", name, as_json=json)))


@handle_app.command("check")
def _check(handle: Handle, relay: Url = DEFAULT_URL, *, json: Json = False) -> None:
    """Check a handle both ways: where it leads, and whether that agent's record lists it."""
    from relay.cli.agent import handle as naming  # noqa: PLC0415  as above

    raise typer.Exit(run_async(naming.check(handle, relay, as_json=json)))
