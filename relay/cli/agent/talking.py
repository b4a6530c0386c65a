"""The commands that speak to a relay and end by themselves, and their options.

Rules of the file: as in ``app.py``: what a command needs is imported when it runs.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from uuid import UUID

import typer

from relay.cli.options import DEFAULT_URL, Json, Key, PassphraseFile, Take, Url, run_async

DAY_S: Final = 24 * 3600
TEXT: Final = "text/plain; charset=utf-8"
MORE_THAN_A_BODY: Final = 2 * 1024 * 1024
"""No relay takes so much: to read on would only fill the memory."""
_WORDS_OF_ANOTHER: Final[dict[str, Any]] = {
    "add_help_option": False,
    "context_settings": {"allow_extra_args": True, "ignore_unknown_options": True},
}


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("send")(_send)
    app.command("status")(_status)
    app.command("rules")(_rules)
    app.command("check")(_check)
    app.command("bench", **_WORDS_OF_ANOTHER)(_bench)


def _send(
    to: Annotated[str, typer.Argument(metavar="TO", help="The recipient's DID, or its handle.")],
    text: Annotated[str | None, typer.Argument(help="The text; - reads it from stdin.")] = None,
    *,
    file: Annotated[
        Path | None, typer.Option("--file", help="Send a file's bytes.", show_default=False)
    ] = None,
    content_type: Annotated[str | None, typer.Option(help="Media type of the body.")] = None,
    kind: Annotated[str | None, typer.Option("--type", help="URI: what kind of content.")] = None,
    thread: Annotated[str | None, typer.Option(help="Thread id.")] = None,
    lifetime: Annotated[
        int, typer.Option(min=1, max=30 * DAY_S, help="Seconds until it expires.")
    ] = 7 * DAY_S,
    wait: Annotated[
        Literal["stored", "acked"],
        typer.Option("--wait", help="For the relay's receipt, or for the recipient's ack."),
    ] = "stored",
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds to go on trying and waiting.")
    ] = 10.0,
    key: Key = None,
    passphrase_file: PassphraseFile = None,
    relay: Url = DEFAULT_URL,
    plain: Annotated[bool, typer.Option("--plain", help="Do not seal the body.")] = False,
    take: Take = False,
    json: Json = False,
) -> None:
    """Send an envelope, until the relay has signed that it keeps it."""
    from relay.cli.agent import (  # noqa: PLC0415  as above
        key as identity,
    )
    from relay.cli.agent import (  # noqa: PLC0415  only now
        send,
    )

    check_recipient(to, "TO")
    body, default_type = _body(text, file)
    letter = send.Letter(to, body, content_type or default_type, not plain, kind, thread, lifetime)
    wish = send.Wish(wait, timeout, take=take, as_json=json)
    raise typer.Exit(
        run_async(send.send(identity.KeyFile(key, passphrase_file), relay, letter, wish))
    )


def _body(text: str | None, file: Path | None) -> tuple[bytes, str]:
    if (text is None) == (file is None):
        raise typer.BadParameter("give a text, or - for stdin, or --file", param_hint="TEXT")
    if file is not None:
        with file.open("rb") as opened:
            return opened.read(MORE_THAN_A_BODY), "application/octet-stream"
    if text == "-":
        return sys.stdin.buffer.read(MORE_THAN_A_BODY), TEXT
    return (text or "").encode(), TEXT


def _status(
    to: Annotated[str | None, typer.Argument(metavar="TO", help="Whom it was sent to.")] = None,
    message_id: Annotated[
        str | None, typer.Argument(metavar="ID", help="The id that relay send printed.")
    ] = None,
    key: Key = None,
    passphrase_file: PassphraseFile = None,
    relay: Url = DEFAULT_URL,
    *,
    take: Take = False,
    json: Json = False,
) -> None:
    """Show how your inbox stands, or how an envelope ended (TO ID)."""
    from relay.cli.agent import (  # noqa: PLC0415  as above
        key as identity,
    )
    from relay.cli.agent import (  # noqa: PLC0415  only now
        status,
    )

    file = identity.KeyFile(key, passphrase_file)
    if to is None:
        raise typer.Exit(run_async(status.show(file, relay, take=take, as_json=json)))
    if message_id is None:
        raise typer.BadParameter("give TO and ID, or neither", param_hint="ID")
    check_recipient(to, "TO")
    try:
        UUID(message_id)
    except ValueError as exc:
        raise typer.BadParameter("not an id as relay send prints it", param_hint="ID") from exc
    asking = status.trace(file, relay, to, message_id, take=take, as_json=json)
    raise typer.Exit(run_async(asking))


def _rules(
    action: Annotated[
        Literal["show", "allow", "deny", "forget", "first-contact"],
        typer.Argument(metavar="ACTION", help="show, allow, deny, forget or first-contact."),
    ] = "show",
    values: Annotated[
        list[str] | None,
        typer.Argument(metavar="WORDS", help="DIDs; or how to meet strangers."),
    ] = None,
    key: Key = None,
    passphrase_file: PassphraseFile = None,
    relay: Url = DEFAULT_URL,
    *,
    take: Take = False,
    json: Json = False,
) -> None:
    """Show or change whom your inbox takes envelopes from."""
    from relay.cli.agent import (  # noqa: PLC0415  as above
        key as identity,
    )
    from relay.cli.agent import (  # noqa: PLC0415  only now
        rules,
    )

    try:
        patch = rules.patch_of(action, values or [])
    except ValueError as exc:
        raise typer.BadParameter(str(exc), param_hint="ACTION") from exc
    if action in {"allow", "deny", "forget"}:
        for did in values or []:
            check_did(did, "DID")
    run_async(
        rules.rule(identity.KeyFile(key, passphrase_file), relay, patch, take=take, as_json=json)
    )


def _check(
    url: Annotated[str, typer.Argument(metavar="URL", help="Origin of the relay.")],
    *,
    no_send: Annotated[bool, typer.Option("--no-send", help="Send no envelope.")] = False,
    json: Json = False,
) -> None:
    """Check a relay from outside; a line each: ok, warn or FAIL."""
    from relay.cli.node import check  # noqa: PLC0415  as above

    try:
        raise typer.Exit(run_async(check.check(url, send=not no_send, as_json=json)))
    except ValueError as exc:
        raise typer.BadParameter(str(exc), param_hint="URL") from exc


def _bench(context: typer.Context) -> None:
    """Measure a relay under load; only in a checkout."""
    from relay.cli.dev import bench  # noqa: PLC0415  as above

    raise typer.Exit(bench.bench(context.args))


def check_did(did: str, hint: str) -> None:
    """Refuse what is no DID.

    Raises:
        BadParameter: it is none.
    """
    from relay.protocol.did import parse_did  # noqa: PLC0415  as above

    try:
        parse_did(did)
    except ValueError as exc:
        raise typer.BadParameter(f"{did!r}: {exc}", param_hint=hint) from exc


def check_recipient(to: str, hint: str) -> None:
    """Refuse what is neither a DID nor a handle.

    Raises:
        BadParameter: it is neither.
    """
    from relay.protocol import handles  # noqa: PLC0415  as above

    if to.startswith("did:") or not {"@", "."} & set(to):
        check_did(to, hint)
        return
    try:
        handles.parse(to)
    except ValueError as exc:
        raise typer.BadParameter(f"{to!r} is not a handle: {exc}", param_hint=hint) from exc
