"""Which key a command acts with: the named file, else the default one, made on first use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import typer

from relay.cli.exits import Exit
from relay.cli.output import say, write, write_json
from relay.client import KeyFileError, SigningKey, keystore


@dataclass(frozen=True, slots=True)
class KeyFile:
    """A key file.

    Args:
        named: what the command line or RELAY_AGENT_KEY says, or None.
    """

    named: Path | None

    @property
    def path(self) -> Path:
        """The file; by default ``agent.key`` in the user's configuration directory."""
        if self.named is not None:
            return self.named
        directory = Path(typer.get_app_dir("did-relay"))
        if not directory.is_absolute():
            # XDG_CONFIG_HOME is empty or relative: to be ignored, not a place in this directory
            directory = Path.home() / ".config" / "did-relay"
        return directory / "agent.key"

    @property
    def state(self) -> Path:
        """Where the agent of this key keeps what it must remember."""
        return self.path.with_name(f"{self.path.name}.state")

    def load(self) -> SigningKey:
        """The key; the default one is made on first use.

        Raises:
            Exit: a named one is not there, or it cannot be used.
        """
        if self.named is None and not self.path.exists():
            key = self.make()
            say(f"This is your first use: a new identity, {key.did}, is in {self.path}")
            return key
        return self.read()

    def make(self) -> SigningKey:
        """A new key in a new file.

        Raises:
            Exit: the file is there already, or cannot be written.
        """
        with _explained():
            return keystore.new(self.path)

    def read(self) -> SigningKey:
        """The key that is there.

        Raises:
            Exit: it is not there, or cannot be used.
        """
        with _explained():
            return keystore.load(self.path)


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except KeyFileError as exc:
        say(f"relay: {exc}")
        raise typer.Exit(Exit.FAILED) from exc


def new(file: KeyFile, *, as_json: bool) -> None:
    """Make a key file."""
    _tell(file.make(), file, as_json=as_json)


def show(file: KeyFile, *, as_json: bool) -> None:
    """Say which DID a key file holds; never the key."""
    _tell(file.read(), file, as_json=as_json)


def _tell(key: SigningKey, file: KeyFile, *, as_json: bool) -> None:
    if as_json:
        write_json({"did": key.did, "file": str(file.path)})
        return
    write(key.did)
    say(f"Its key is in {file.path}; who reads that file is this agent.")
