"""The frames about endpoint records: resolve, publish and their answers (PROTOCOL.md §5.6)."""

from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from relay.protocol.endpoint_record import MAX_RECORD_BYTES
from relay.protocol.frames.fields import (
    Codec,
    SenderField,
    boolean,
    integer,
    one_of,
    optional,
    text,
)
from relay.protocol.frames.mail import OptionalDid, Ref
from relay.protocol.frames.session import OptionalRecord

MAX_HANDLE_READ_CHARS: Final = 512

Resolution = Literal["found", "absent", "unreadable"]


@dataclass(frozen=True, slots=True)
class Resolve:
    """Ask where an agent lives, by its DID or by its handle."""

    ref: Ref
    did: OptionalDid = None
    handle: Annotated[str | None, optional(text(MAX_HANDLE_READ_CHARS))] = None


def _check_resolve(frame: Resolve) -> None:
    if (frame.did is None) == (frame.handle is None):
        raise ValueError("resolve names a did or a handle")


@dataclass(frozen=True, slots=True)
class Resolved:
    """Found, absent and unreadable are three answers, never confused."""

    ref: Ref
    state: Annotated[Resolution, one_of(Resolution)]
    record: OptionalRecord = None
    stale: Annotated[bool, optional(boolean(), default=False)] = False


@dataclass(frozen=True, slots=True)
class Publish:
    """The agent's own endpoint record."""

    ref: Ref
    record: Annotated[str, text(MAX_RECORD_BYTES)]


@dataclass(frozen=True, slots=True)
class Published:
    """The current record; ``stored`` is false where the relay had a newer one already."""

    ref: Ref
    stored: Annotated[bool, boolean()]
    kv: Annotated[int, integer(minimum=1)]
    seq: Annotated[int, integer()]
    record: OptionalRecord = None


CODECS: Final[tuple[Codec[Any], ...]] = (
    Codec(Resolve, SenderField.AGENT | SenderField.PEER, check=_check_resolve),
    Codec(Resolved, SenderField.HOST_TO_AGENT | SenderField.HOST_TO_PEER),
    Codec(Publish, SenderField.AGENT),
    Codec(Published, SenderField.HOST_TO_AGENT),
)
