"""Which key a command acts with, and ``relay id``: making it, carrying it, its passphrase.

The key is in the named file, else in the default one, which is made on first use.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import typer

from relay.cli import prompt as passphrases
from relay.cli.exit_codes import (
    Exit,
    LocalError,
)
from relay.cli.output import say, write, write_json, write_text
from relay.client import (
    KeyFileError,
    PassphraseError,
    SigningKey,
)
from relay.client.identity import (
    key_file,
    key_format,
)
from relay.client.identity.key_format import Locked


@dataclass(frozen=True, slots=True)
class KeyFile:
    """A key file.

    Args:
        named: what the command line or RELAY_AGENT_KEY says, or None.
        passphrase_file: what the command line says; without it the variables are read.
    """

    named: Path | None
    passphrase_file: Path | None = None

    @property
    def path(self) -> Path:
        """The file; by default ``agent.key`` in the user's configuration directory.

        Raises:
            LocalError: none is named, and there is no home directory.
        """
        if self.named is not None:
            return self.named
        directory = Path(typer.get_app_dir("did-relay"))
        if not directory.is_absolute():
            # XDG_CONFIG_HOME is empty or relative: to be ignored, not a place in this directory
            directory = _home() / ".config" / "did-relay"
        return directory / "agent.key"

    @property
    def state(self) -> Path:
        """Where the agent of this key keeps what it must remember."""
        return self.path.with_name(f"{self.path.name}.state")

    def load(self) -> SigningKey:
        """The key; the default one is made on first use. May ask a person for the passphrase.

        Raises:
            LocalError: a named one is not there, or it cannot be used or opened.
            Exit: interrupted.
        """
        if self.named is None and not self.path.exists():
            key = self.make(encrypt=False)
            say(f"This is your first use: a new identity, {key.did}, is in {self.path}")
            return key
        return self.unlock()[0]

    def make(self, *, encrypt: bool) -> SigningKey:
        """A new key in a new file, encrypted where a passphrase is given or asked for.

        Raises:
            LocalError: the file is there already, or cannot be written.
        """
        chosen = self.chosen(ask=encrypt)
        with _explained():
            return key_file.new(self.path, chosen)

    def chosen(self, *, ask: bool) -> str | None:
        """The passphrase for a key that has none yet."""
        if (found := passphrases.given(self.passphrase_file)) is not None:
            return found
        return passphrases.ask_new() if ask else None

    def read(self) -> SigningKey | Locked:
        """What is in the file, without asking anybody.

        Raises:
            LocalError: it is not there, or not a key.
        """
        with _explained():
            return key_file.read(self.path)

    def unlock(self) -> tuple[SigningKey, str | None]:
        """The key that is there, and the passphrase that opened it.

        Raises:
            LocalError: as :meth:`load`.
        """
        found = self.read()
        if isinstance(found, SigningKey):
            return found, None
        return self.open(found, f"{self.path}")

    def open(self, locked: Locked, name: str) -> tuple[SigningKey, str]:
        """The key and its passphrase, which is asked for where none is given."""
        said = passphrases.given(self.passphrase_file)
        if said is None:
            said = passphrases.ask(f"Passphrase of {name}: ")
        with _explained(f"{name}: "):
            return locked.open(said), said


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError as exc:
        detail = "this user has no home directory: name a key file, --key FILE or RELAY_AGENT_KEY"
        raise LocalError(detail) from exc


@contextmanager
def _explained(before: str = "") -> Iterator[None]:
    try:
        yield
    except PassphraseError as exc:
        raise LocalError(f"{before}{exc}", Exit.LOCKED) from exc
    except KeyFileError as exc:
        raise LocalError(f"{before}{exc}") from exc


def new(file: KeyFile, *, encrypt: bool, as_json: bool) -> None:
    """Make a key file."""
    file.make(encrypt=encrypt)
    show(file, as_json=as_json)


def show(file: KeyFile, *, as_json: bool) -> None:
    """Say which DID a key file holds; never the key, so nobody need open it."""
    found = file.read()
    encrypted = isinstance(found, Locked)
    if as_json:
        write_json({"did": found.did, "file": str(file.path), "encrypted": encrypted})
        return
    write(found.did)
    if encrypted:
        say(f"Its key is in {file.path}, encrypted; nobody can use it without the passphrase.")
    else:
        say(f"Its key is in {file.path}; who reads that file is this agent.")


def export(
    file: KeyFile, to: Path | None, new_passphrase: Path | None, *, plain: bool, as_json: bool
) -> None:
    """Write the key as a block: encrypted, unless it is to be ``plain``.

    Args:
        file: the key.
        to: a new file; None is stdout.
        new_passphrase: the file with the block's; without it the block has the key's own.
        plain: anybody who reads the block is this agent.
        as_json: as one JSON object.
    """
    key, opened_with = file.unlock()
    chosen = None
    if not plain:
        own = passphrases.of_file(new_passphrase) if new_passphrase else opened_with
        chosen = own or file.chosen(ask=True)
    with _explained():
        block = key_format.block(key, chosen)
        if to is not None:
            key_file.write_new(to, block.encode())
    told = {"did": key.did, "encrypted": not plain}
    if to is None and as_json:
        write_json({**told, "block": block})
    elif to is None:
        write_text(block)
    elif as_json:
        write_json({**told, "file": str(to)})
    else:
        say(f"The key of {key.did} is in {to}{'' if plain else ', encrypted'}.")


def import_(file: KeyFile, source: Path | None, *, encrypt: bool, as_json: bool) -> None:
    """Keep the key of a block in a new key file, encrypted if the block is.

    Args:
        file: the new key file.
        source: the file with the block; None is stdin.
        encrypt: ask for a passphrase if the block has none.
        as_json: as one JSON object.
    """
    if file.path.exists():
        raise LocalError(f"{file.path} is there already; a key is never overwritten")
    name = "the block" if source is None else f"{source}"
    with _explained(f"{name}: "):
        found = key_format.read_block(_text(source))
    chosen: str | None
    if isinstance(found, Locked):
        key, chosen = file.open(found, name)
    else:
        key, chosen = found, file.chosen(ask=encrypt)
    with _explained():
        key_file.add(file.path, key, chosen)
    show(file, as_json=as_json)
    if not as_json:
        say("Use it in one place at a time: a second session takes the inbox from the first.")


def _text(source: Path | None) -> str:
    most = key_format.MAX_BLOCK_BYTES + 1
    if source is None:
        return sys.stdin.buffer.read(most).decode("latin-1")
    try:
        with source.open("rb") as stream:
            return stream.read(most).decode("latin-1")
    except OSError as exc:
        raise LocalError(f"cannot read {source}: {exc.strerror}") from exc


def passwd(file: KeyFile, new_passphrase: Path | None, *, remove: bool, as_json: bool) -> None:
    """Set, change or remove the passphrase of a key file; the key stays the same.

    Args:
        file: the key file.
        new_passphrase: the file with the new one; without it a person is asked, twice.
        remove: it is to have none.
        as_json: as one JSON object.
    """
    key, opened_with = file.unlock()
    chosen = None
    if new_passphrase is not None:
        chosen = passphrases.of_file(new_passphrase)
    elif not remove:
        if opened_with is None:
            chosen = file.chosen(ask=True)
        else:
            chosen = passphrases.ask_new("--new-passphrase-file")
    with _explained():
        key_file.replace(file.path, key, chosen)
    show(file, as_json=as_json)
    if opened_with is None and chosen is not None and not as_json:
        say("Copies that were made before, backups too, are as readable as they were.")
