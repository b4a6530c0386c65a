"""What an agent remembers between connections, and between starts where a file is given.

Rules of the file: a relay's DID is pinned to its origin at first contact and never changed by what
a relay says; a record's seq never goes back; the file is replaced as a whole, never half written.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from relay import clock
from relay.client.errors import typed
from relay.core import jws as jose
from relay.core import records
from relay.core.errors import ErrorCode, RelayError
from relay.core.ids import Did, Epoch

VERSION: Final = 1
MAX_BYTES: Final = 1024 * 1024

_pinned: Final[dict[str, Did]] = {}
"""First contacts of this process, for agents without a file."""


@dataclass(slots=True)
class State:
    """Pins, the newest own record, and the epoch last seen at each relay."""

    path: Path | None = None
    relays: dict[str, Did] = field(default_factory=dict)
    epochs: dict[Did, Epoch] = field(default_factory=dict)
    record: str | None = None

    def relay_at(self, origin: str) -> Did | None:
        """The relay that is expected at an origin; None on first contact."""
        return self.relays.get(origin)

    def pin(self, origin: str, relay: Did) -> None:
        """Remember who proved itself there."""
        if self.relays.get(origin) != relay:
            self.relays[origin] = relay
            self._save()

    def see_epoch(self, relay: Did, epoch: Epoch) -> Epoch | None:
        """Remember the inbox's epoch at a relay; gives the one before if it was another."""
        before = self.epochs.get(relay)
        if before == epoch:
            return None
        self.epochs[relay] = epoch
        self._save()
        return before

    @property
    def record_seq(self) -> int:
        """The highest seq that this agent's record is known to have."""
        return records.parse(self.record).seq if self.record else 0

    def keep_record(self, compact: str) -> None:
        """Remember the newest of the own records."""
        if self.record is None or records.parse(compact).order > records.parse(self.record).order:
            self.record = compact
            self._save()

    def _save(self) -> None:
        if self.path is None:
            return
        members = {
            "v": VERSION,
            "relays": self.relays,
            "epochs": self.epochs,
            "record": self.record,
        }
        temporary = self.path.with_name(f"{self.path.name}.{clock.entropy(8).hex()}")
        try:
            with temporary.open("xb") as file:
                file.write(jose.dumps(members))
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path)
        except OSError as exc:
            temporary.unlink(missing_ok=True)
            raise typed(ErrorCode.INTERNAL, f"cannot write {self.path}: {exc.strerror}") from exc


def in_memory() -> State:
    """State that lives as long as this process; its pins are shared by all agents in it."""
    return State(relays=_pinned)


def load(path: Path) -> State:
    """Read a state file; one that is not there yet is empty.

    Raises:
        AgentError: ``corrupt``: it is there, but cannot be understood.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        return State(path)
    try:
        return _parse(path, data)
    except (ValueError, RelayError) as exc:
        detail = f"{path} cannot be read ({exc}); move it away to begin anew"
        raise typed(ErrorCode.CORRUPT, detail) from exc


def _parse(path: Path, data: bytes) -> State:
    if len(data) > MAX_BYTES:
        raise ValueError("too large")
    value = jose.loads(data)
    members = jose.Members(value)
    members.integer("v", least=VERSION, most=VERSION)
    members.object("relays")
    members.object("epochs")
    record = members.optional_text("record", most=records.MAX_BYTES)
    if record is not None:
        records.parse(record)
    return State(path, dict(value["relays"]), dict(value["epochs"]), record)
