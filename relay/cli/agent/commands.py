"""The commands of an agent, and their options.

A command imports its work when it runs: the packages of a node come with another extra, and those
of an agent take a quarter of a second to import.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal
from uuid import UUID

import typer

from relay.cli.options import (
    DEFAULT_URL,
    Json,
    Key,
    NewPassphrase,
    Passphrase,
    Take,
    Url,
    checked,
    option,
    run_async,
)

if TYPE_CHECKING:
    from relay.cli.agent.key import KeyFile

app = typer.Typer()
id_app = typer.Typer(help="Identities of agents.", no_args_is_help=True)
handle_app = typer.Typer(help="Names of agents, for people.", no_args_is_help=True)

# ---------------------------------------------------------------- keys

Encrypt = Annotated[bool, option("--encrypt", "Ask for a passphrase for the key.")]
To = Annotated[Path, typer.Argument(metavar="FILE", help="A new file; - is stdout.")]
From = Annotated[Path, typer.Argument(metavar="FILE", help="The file with the block; - is stdin.")]
Plain = Annotated[bool, option("--plain", "Do not encrypt; needs --yes.")]
Yes = Annotated[bool, option("--yes", "Yes, show the key itself.")]
Remove = Annotated[bool, option("--remove", "Keep the key unencrypted.")]


@id_app.command("new")
def _new(
    key: Key = None, passphrase: Passphrase = None, encrypt: Encrypt = False, json: Json = False
) -> None:
    """Make an identity: a key file that only you can read."""
    from relay.cli.agent import key as keys

    keys.new(_file(key, passphrase), encrypt=encrypt, as_json=json)


@id_app.command("show")
def _show(key: Key = None, json: Json = False) -> None:
    """Show the DID of an identity."""
    from relay.cli.agent import key as keys

    keys.show(_file(key), as_json=json)


@id_app.command("export")
def _export(
    block: To,
    key: Key = None,
    passphrase: Passphrase = None,
    new: NewPassphrase = None,
    plain: Plain = False,
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Write the key as a block of text to carry elsewhere, encrypted."""
    from relay.cli.agent import key as keys

    if plain and not yes:
        hint = "who reads that block is this agent; say --plain --yes if you mean it"
        raise typer.BadParameter(hint, param_hint="--plain")
    _check_no_new_passphrase(new, "--plain", given=plain)
    keys.export(_file(key, passphrase), block, new, plain=plain, as_json=json)


@id_app.command("import")
def _import(
    block: From,
    key: Key = None,
    passphrase: Passphrase = None,
    encrypt: Encrypt = False,
    json: Json = False,
) -> None:
    """Make a key file of a block; never overwrites one."""
    from relay.cli.agent import key as keys

    file = _file(key, passphrase)
    keys.import_(file, block, encrypt=encrypt, as_json=json)


@id_app.command("passwd")
def _passwd(
    key: Key = None,
    passphrase: Passphrase = None,
    new: NewPassphrase = None,
    remove: Remove = False,
    json: Json = False,
) -> None:
    """Set, change or remove the passphrase of a key file."""
    from relay.cli.agent import key as keys

    _check_no_new_passphrase(new, "--remove", given=remove)
    keys.passwd(_file(key, passphrase), new, remove=remove, as_json=json)


def _check_no_new_passphrase(new: Path | None, other: str, *, given: bool) -> None:
    if given and new is not None:
        raise typer.BadParameter(f"not with {other}", param_hint="--new-passphrase-file")


# ---------------------------------------------------------------- sending and receiving


DAY_S: Final = 24 * 3600
TEXT: Final = "text/plain; charset=utf-8"
MORE_THAN_A_BODY: Final = 2 * 1024 * 1024
"""No relay takes so much: to read on would only fill the memory."""

Recipient = Annotated[str, typer.Argument(metavar="TO", help="The recipient's DID, or its handle.")]
Wait = Annotated[
    Literal["stored", "acked"],
    typer.Option("--wait", help="For the relay's receipt, or for the recipient's ack."),
]


@app.command("send")
def _send(
    to: Recipient,
    text: Annotated[str | None, typer.Argument(help="The text; - reads it from stdin.")] = None,
    file: Annotated[Path | None, option("--file", "Send a file's bytes.")] = None,
    content_type: Annotated[str | None, typer.Option(help="Media type of the body.")] = None,
    kind: Annotated[str | None, option("--type", "URI: what kind of content.")] = None,
    thread: Annotated[str | None, typer.Option(help="Thread id.")] = None,
    lifetime: Annotated[
        int, typer.Option(min=1, max=30 * DAY_S, help="Seconds until it expires.")
    ] = 7 * DAY_S,
    wait: Wait = "stored",
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds to go on trying and waiting.")
    ] = 10.0,
    key: Key = None,
    passphrase: Passphrase = None,
    relay: Url = DEFAULT_URL,
    plain: Annotated[bool, option("--plain", "Do not seal the body.")] = False,
    take: Take = False,
    json: Json = False,
) -> None:
    """Send an envelope, until the relay has signed that it keeps it."""
    from relay.cli.agent import send

    _check_recipient(to)
    body, default_type = _body(text, file)
    draft = send.MessageDraft(
        to, body, content_type or default_type, not plain, kind, thread, lifetime
    )
    options = send.SendOptions(wait, timeout, take=take, as_json=json)
    run_async(send.send(_file(key, passphrase), relay, draft, options))


def _body(text: str | None, file: Path | None) -> tuple[bytes, str]:
    if (text is None) == (file is None):
        raise typer.BadParameter("give a text, or - for stdin, or --file", param_hint="TEXT")
    if file is not None:
        with file.open("rb") as opened:
            return opened.read(MORE_THAN_A_BODY), "application/octet-stream"
    if text == "-":
        return sys.stdin.buffer.read(MORE_THAN_A_BODY), TEXT
    return (text or "").encode(), TEXT


@app.command("listen")
def _listen(
    count: Annotated[int | None, option("--count", "End after so many.", min=1)] = None,
    key: Key = None,
    passphrase: Passphrase = None,
    relay: Url = DEFAULT_URL,
    once: Annotated[bool, option("--once", "End after one.")] = False,
    json: Json = False,
) -> None:
    """Print what is delivered to this agent, and ack it once it is written."""
    from relay.cli.agent import listen

    count = 1 if once else count
    run_async(listen.listen(_file(key, passphrase), relay, count=count, as_json=json))


@app.command("inbox")
def _inbox(
    limit: Annotated[int, typer.Option(min=0, help="Show at most so many.")] = 20,
    key: Key = None,
    passphrase: Passphrase = None,
    relay: Url = DEFAULT_URL,
    json: Json = False,
) -> None:
    """Look at what waits, without acking it. Takes the inbox from a session that listens."""
    from relay.cli.agent import listen

    run_async(listen.look(_file(key, passphrase), relay, limit=limit, as_json=json))


@app.command("status")
def _status(
    to: Annotated[str | None, typer.Argument(metavar="TO", help="Whom it was sent to.")] = None,
    message_id: Annotated[
        str | None, typer.Argument(metavar="ID", help="The id that relay send printed.")
    ] = None,
    key: Key = None,
    passphrase: Passphrase = None,
    relay: Url = DEFAULT_URL,
    take: Take = False,
    json: Json = False,
) -> None:
    """Show how your inbox stands, or how an envelope ended (TO ID)."""
    from relay.cli.agent import status

    file = _file(key, passphrase)
    if to is None:
        run_async(status.show(file, relay, take=take, as_json=json))
    if message_id is None:
        raise typer.BadParameter("give TO and ID, or neither", param_hint="ID")
    _check_recipient(to)
    try:
        UUID(message_id)
    except ValueError as exc:
        raise typer.BadParameter("not an id as relay send prints it", param_hint="ID") from exc
    run_async(status.trace(file, relay, to, message_id, take=take, as_json=json))


@app.command("rules")
def _rules(
    action: Annotated[
        Literal["show", "allow", "deny", "forget", "first-contact"],
        typer.Argument(metavar="ACTION", help="show, allow, deny, forget or first-contact."),
    ] = "show",
    values: Annotated[
        list[str] | None, typer.Argument(metavar="WORDS", help="DIDs; or how to meet strangers.")
    ] = None,
    key: Key = None,
    passphrase: Passphrase = None,
    relay: Url = DEFAULT_URL,
    take: Take = False,
    json: Json = False,
) -> None:
    """Show or change whom your inbox takes envelopes from."""
    from relay.cli.agent import rules

    try:
        patch = rules.patch_of(action, values or [])
    except ValueError as exc:
        raise typer.BadParameter(str(exc), param_hint="ACTION") from exc
    if action in {"allow", "deny", "forget"}:
        for did in values or []:
            _check_did(did)
    run_async(rules.rule(_file(key, passphrase), relay, patch, take=take, as_json=json))


# ---------------------------------------------------------------- records and handles


Handle = Annotated[str, typer.Argument(metavar="HANDLE", help="name@relay, or a hostname.")]
Name = Annotated[
    str,
    typer.Argument(metavar="NAME|HOST", help="A name under your relay, or a hostname of your own."),
]
Who = Annotated[str, typer.Argument(metavar="HANDLE|DID", help="Whom to look up.")]
What = Annotated[
    str, typer.Argument(metavar="URL|HANDLE", help="A relay's address, or an agent's name.")
]
Accepted = Annotated[str, typer.Argument(metavar="DID", help="Who is there from now on.")]


@app.command("publish")
def _publish(
    key: Key = None, passphrase: Passphrase = None, relay: Url = DEFAULT_URL, json: Json = False
) -> None:
    """Publish your endpoint record again, and show it."""
    from relay.cli.agent import handle as records

    run_async(records.publish(_file(key, passphrase), relay, as_json=json))


@app.command("resolve")
def _resolve(who: Who, relay: Url = DEFAULT_URL, json: Json = False) -> None:
    """Show where an agent lives; a handle is checked both ways."""
    from relay.cli.agent import handle as records

    if who.startswith("did:"):
        _check_did(who)
    run_async(records.resolve(who, relay, as_json=json))


@app.command("accept")
def _accept(
    what: What,
    did: Accepted,
    key: Key = None,
    passphrase: Passphrase = None,
    relay: Url = DEFAULT_URL,
    json: Json = False,
) -> None:
    """Accept a relay that is back with a new key, or whom a handle leads to now.

    Ask its operator first: whoever has taken over the address looks the same.
    """
    from relay.cli.agent import accept

    _check_did(did)
    file = _file(key, passphrase)
    if "://" in what:
        run_async(accept.relay(file, checked(what), did, as_json=json))
    else:
        run_async(accept.handle(file, relay, what, did, as_json=json))


@handle_app.command("set")
def _set(
    name: Name,
    key: Key = None,
    passphrase: Passphrase = None,
    relay: Url = DEFAULT_URL,
    json: Json = False,
) -> None:
    """Put a handle into your endpoint record, and see whether it leads to you."""
    from relay.cli.agent import handle as records

    run_async(records.change(_file(key, passphrase), relay, "set", name, as_json=json))


@handle_app.command("remove")
def _remove(
    name: Name,
    key: Key = None,
    passphrase: Passphrase = None,
    relay: Url = DEFAULT_URL,
    json: Json = False,
) -> None:
    """Take a handle out of your endpoint record."""
    from relay.cli.agent import handle as records

    run_async(records.change(_file(key, passphrase), relay, "remove", name, as_json=json))


@handle_app.command("check")
def _check(handle: Handle, relay: Url = DEFAULT_URL, json: Json = False) -> None:
    """Check a handle both ways: where it leads, and whether that agent's record lists it."""
    from relay.cli.agent import handle as records

    run_async(records.check(handle, relay, as_json=json))


# ---------------------------------------------------------------- migration


def _checked_origin(url: str | None) -> str | None:
    return None if url is None else checked(url)


NewRelay = Annotated[
    str | None, option("--to", "Origin of the new relay.", callback=_checked_origin)
]
DeadSource = Annotated[bool, option("--dead-source", "Go on where the old relay does not answer.")]
DryRun = Annotated[bool, option("--dry-run", "Show what would be lost right now; move nothing.")]
Cancel = Annotated[bool, option("--cancel", "Take back a move that is not published yet.")]


@app.command("migrate")
def _migrate(
    to: NewRelay = None,
    dead_source: DeadSource = False,
    dry_run: DryRun = False,
    cancel: Cancel = False,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to go on.")] = 600.0,
    key: Key = None,
    passphrase: Passphrase = None,
    relay: Url = DEFAULT_URL,
    take: Take = False,
    json: Json = False,
) -> None:
    """Move your inbox to another relay; the same command goes on with a move that was cut off."""
    from relay.cli.agent import migrate

    if cancel == (to is not None):
        raise typer.BadParameter("give --to URL, or --cancel", param_hint="--to")
    if cancel and (dry_run or dead_source):
        hint = "goes with neither --dry-run nor --dead-source"
        raise typer.BadParameter(hint, param_hint="--cancel")
    file = _file(key, passphrase)
    options = migrate.MoveOptions(take, dead_source, timeout, json)
    if to is None:
        run_async(migrate.cancel(file, relay, options))
    elif dry_run:
        run_async(migrate.dry_run(file, relay, to, options))
    else:
        run_async(migrate.migrate(file, relay, to, options))


# ---------------------------------------------------------------- checked arguments


def _check_did(did: str, hint: str = "DID") -> None:
    from relay.protocol.did import parse_did

    try:
        parse_did(did)
    except ValueError as exc:
        raise typer.BadParameter(f"{did!r}: {exc}", param_hint=hint) from exc


def _check_recipient(to: str) -> None:
    from relay.protocol import handles

    if to.startswith("did:") or not {"@", "."} & set(to):
        _check_did(to, "TO")
        return
    try:
        handles.parse(to)
    except ValueError as exc:
        raise typer.BadParameter(f"{to!r} is not a handle: {exc}", param_hint="TO") from exc


def _file(key: Path | None, passphrase: Path | None = None) -> KeyFile:
    from relay.cli.agent.key import KeyFile

    return KeyFile(key, passphrase)
