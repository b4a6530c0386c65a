"""``relay id``: its commands and their options; what they do is in :mod:`relay.cli.agent.key`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from relay.cli.options import Json, Key, NewPassphraseFile, PassphraseFile

id_app = typer.Typer(help="Identities of agents.", no_args_is_help=True)

Encrypt = Annotated[bool, typer.Option("--encrypt", help="Ask for a passphrase for the key.")]
To = Annotated[Path, typer.Argument(metavar="FILE", help="A new file; - is stdout.")]
From = Annotated[Path, typer.Argument(metavar="FILE", help="The file with the block; - is stdin.")]
_PIPE: Final = Path("-")


@id_app.command("new")
def _new(
    key: Key = None,
    passphrase_file: PassphraseFile = None,
    *,
    encrypt: Encrypt = False,
    json: Json = False,
) -> None:
    """Make an identity: a key file that only you can read."""
    from relay.cli.agent import key as identity  # noqa: PLC0415  as in relay.cli.app: needed only when it runs

    identity.new(identity.KeyFile(key, passphrase_file), encrypt=encrypt, as_json=json)


@id_app.command("show")
def _show(key: Key = None, *, json: Json = False) -> None:
    """Show the DID of an identity."""
    from relay.cli.agent import key as identity  # noqa: PLC0415  as above

    identity.show(identity.KeyFile(key), as_json=json)


@id_app.command("export")
def _export(
    block: To,
    key: Key = None,
    passphrase_file: PassphraseFile = None,
    new_passphrase_file: NewPassphraseFile = None,
    *,
    plain: Annotated[bool, typer.Option("--plain", help="Do not encrypt; needs --yes.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Yes, show the key itself.")] = False,
    json: Json = False,
) -> None:
    """Write the key as a block of text to carry elsewhere, encrypted."""
    from relay.cli.agent import key as identity  # noqa: PLC0415  as above

    if plain and not yes:
        hint = "who reads that block is this agent; say --plain --yes if you mean it"
        raise typer.BadParameter(hint, param_hint="--plain")
    _one_of(plain=plain, other="--plain", new_passphrase_file=new_passphrase_file)
    to = None if block == _PIPE else block
    file = identity.KeyFile(key, passphrase_file)
    identity.export(file, to, new_passphrase_file, plain=plain, as_json=json)


@id_app.command("import")
def _import(
    block: From,
    key: Key = None,
    passphrase_file: PassphraseFile = None,
    *,
    encrypt: Encrypt = False,
    json: Json = False,
) -> None:
    """Make a key file of a block; never overwrites one."""
    from relay.cli.agent import key as identity  # noqa: PLC0415  as above

    source = None if block == _PIPE else block
    file = identity.KeyFile(key, passphrase_file)
    identity.import_(file, source, encrypt=encrypt, as_json=json)


@id_app.command("passwd")
def _passwd(
    key: Key = None,
    passphrase_file: PassphraseFile = None,
    new_passphrase_file: NewPassphraseFile = None,
    *,
    remove: Annotated[bool, typer.Option("--remove", help="Keep the key unencrypted.")] = False,
    json: Json = False,
) -> None:
    """Set, change or remove the passphrase of a key file."""
    from relay.cli.agent import key as identity  # noqa: PLC0415  as above

    _one_of(plain=remove, other="--remove", new_passphrase_file=new_passphrase_file)
    file = identity.KeyFile(key, passphrase_file)
    identity.passwd(file, new_passphrase_file, remove=remove, as_json=json)


def _one_of(*, plain: bool, other: str, new_passphrase_file: Path | None) -> None:
    if plain and new_passphrase_file is not None:
        raise typer.BadParameter(f"not with {other}", param_hint="--new-passphrase-file")
