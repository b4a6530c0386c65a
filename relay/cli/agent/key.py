"""The key of a command, and ``relay id``: create, export, import, change the passphrase.

The key is in the named file, or else in the default file, which is created on first use.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import typer

from relay.cli import prompt as passphrases
from relay.cli.exit_codes import Exit, LocalError
from relay.cli.output import say, write, write_json
from relay.client import KeyFileError, PassphraseError, SigningKey
from relay.client.identity import key_file, key_format
from relay.client.identity.key_format import EncryptedKey

PIPE: Final = Path("-")
"""In place of a file with a block: stdin, or stdout."""


@dataclass(frozen=True, slots=True)
class KeyFile:
    """A key file. A method raises LocalError if it cannot be used, and Exit if interrupted.

    Args:
        named: what the command line or RELAY_AGENT_KEY says, or None.
        passphrase_file: what the command line says; without it the variables are read.
    """

    named: Path | None
    passphrase_file: Path | None = None

    @property
    def path(self) -> Path:
        """The file; by default ``agent.key`` in the user's configuration directory."""
        if self.named is not None:
            return self.named
        directory = Path(typer.get_app_dir("did-relay"))
        if not directory.is_absolute():
            # XDG_CONFIG_HOME is empty or relative: to be ignored, not a place in this directory
            directory = _home() / ".config" / "did-relay"
        return directory / "agent.key"

    @property
    def state(self) -> Path:
        """The state file of this key's agent."""
        return self.path.with_name(f"{self.path.name}.state")

    def load(self) -> SigningKey:
        """Load the key, or create the default one. May ask a person for the passphrase."""
        if self.named is None and not self.path.exists():
            key = self.make(encrypt=False)
            say(f"This is your first use: a new identity, {key.did}, is in {self.path}")
            return key
        return self.unlock()[0]

    def make(self, *, encrypt: bool) -> SigningKey:
        """Create a key in a new file, encrypted if there is a passphrase."""
        chosen = self.chosen(ask=encrypt)
        with _explained():
            return key_file.generate(self.path, chosen)

    def chosen(self, *, ask: bool) -> str | None:
        """Return the passphrase for a key that has none yet."""
        if (found := passphrases.given(self.passphrase_file)) is not None:
            return found
        return passphrases.ask_new() if ask else None

    def read(self) -> SigningKey | EncryptedKey:
        """Read the file without a passphrase."""
        with _explained():
            return key_file.read(self.path)

    def unlock(self) -> tuple[SigningKey, str | None]:
        """Return the key in the file, and the passphrase that opened it."""
        found = self.read()
        if isinstance(found, SigningKey):
            return found, None
        return self.open(found, f"{self.path}")

    def open(self, locked: EncryptedKey, name: str) -> tuple[SigningKey, str]:
        """Return the key and its passphrase; ask for a missing one."""
        passphrase = passphrases.given(self.passphrase_file)
        if passphrase is None:
            passphrase = passphrases.ask(f"Passphrase of {name}: ")
        with _explained(f"{name}: "):
            return locked.open(passphrase), passphrase


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
    """Show the DID of a key file, which needs no passphrase."""
    found = file.read()
    encrypted = isinstance(found, EncryptedKey)
    if as_json:
        write_json({"did": found.did, "file": str(file.path), "encrypted": encrypted})
        return
    write(found.did)
    if encrypted:
        say(f"Its key is in {file.path}, encrypted; nobody can use it without the passphrase.")
    else:
        say(f"Its key is in {file.path}; who reads that file is this agent.")


def export(
    file: KeyFile, to: Path, new_passphrase: Path | None, *, plain: bool, as_json: bool
) -> None:
    """Write the key as a text block to a new file, or to stdout.

    Unless ``plain``, it is encrypted with the passphrase in that file, by default that of the key.
    """
    key, opened_with = file.unlock()
    chosen = None
    if not plain:
        own = passphrases.of_file(new_passphrase) if new_passphrase else opened_with
        chosen = own or file.chosen(ask=True)
    with _explained():
        block = key_format.encode_pem(key, chosen)
        if to != PIPE:
            key_file.write_new(to, block.encode())
    members = {"did": key.did, "encrypted": not plain}
    if to == PIPE and as_json:
        write_json({**members, "block": block})
    elif to == PIPE:
        write(block, end="")
    elif as_json:
        write_json({**members, "file": str(to)})
    else:
        say(f"The key of {key.did} is in {to}{'' if plain else ', encrypted'}.")


def import_(file: KeyFile, source: Path, *, encrypt: bool, as_json: bool) -> None:
    """Write the key of a block to a new key file.

    It is encrypted if the block is; else ``encrypt`` asks for a passphrase.
    """
    if file.path.exists():
        raise LocalError(f"{file.path} is there already; a key is never overwritten")
    name = "the block" if source == PIPE else f"{source}"
    with _explained(f"{name}: "):
        found = key_format.parse_pem(_text(source))
    chosen: str | None
    if isinstance(found, EncryptedKey):
        key, chosen = file.open(found, name)
    else:
        key, chosen = found, file.chosen(ask=encrypt)
    with _explained():
        key_file.save_new(file.path, key, chosen)
    show(file, as_json=as_json)
    if not as_json:
        say("Use it in one place at a time: a second session takes the inbox from the first.")


def _text(source: Path) -> str:
    limit = key_format.MAX_PEM_BYTES + 1
    if source == PIPE:
        return sys.stdin.buffer.read(limit).decode("latin-1")
    try:
        with source.open("rb") as stream:
            return stream.read(limit).decode("latin-1")
    except OSError as exc:
        raise LocalError(f"cannot read {source}: {exc.strerror}") from exc


def passwd(file: KeyFile, new_passphrase: Path | None, *, remove: bool, as_json: bool) -> None:
    """Set, change or remove the passphrase of a key file; the key stays the same.

    The new one is in the file ``new_passphrase``; without that a person is asked twice.
    """
    key, opened_with = file.unlock()
    chosen = None
    if new_passphrase is not None:
        chosen = passphrases.of_file(new_passphrase)
    elif not remove and opened_with is None:
        chosen = file.chosen(ask=True)
    elif not remove:
        chosen = passphrases.ask_new("--new-passphrase-file")
    with _explained():
        key_file.replace(file.path, key, chosen)
    show(file, as_json=as_json)
    if opened_with is None and chosen is not None and not as_json:
        say("Copies that were made before, backups too, are as readable as they were.")
