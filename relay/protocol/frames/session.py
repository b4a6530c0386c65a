"""The frames of a login and of an end: hello, auth, welcome, error and bye (PROTOCOL.md §5.1)."""

from dataclasses import dataclass
from typing import Annotated, Any, Final

from relay.protocol import jws as jose
from relay.protocol import relay_info
from relay.protocol.endpoint_record import MAX_RECORD_BYTES
from relay.protocol.errors import ErrorCode
from relay.protocol.frames.fields import (
    MAX_CODE_CHARS,
    MAX_DETAIL_CHARS,
    MAX_REF_CHARS,
    Codec,
    Field,
    SenderField,
    base64,
    integer,
    optional,
    text,
)
from relay.protocol.handshake import MAX_AUTH_BYTES, NONCE_BYTES
from relay.protocol.ids import MAX_DID_BYTES, MAX_EPOCH_CHARS, MAX_URL_CHARS, Did, Epoch, Fence, Seq

SUBPROTOCOL: Final = "agent-relay.v1"
MAX_INVITE_CHARS: Final = 512


def _read_code(m: jose.Members, name: str) -> ErrorCode:
    """Read a code; one that only a newer relay knows is ``internal``."""
    code = m.text(name, limit=MAX_CODE_CHARS)
    return ErrorCode(code) if code in ErrorCode.__members__.values() else ErrorCode.INTERNAL


Code = Annotated[ErrorCode, Field(_read_code)]
Detail = Annotated[str, optional(text(MAX_DETAIL_CHARS), "")]
RetryAfter = Annotated[int | None, optional(integer())]
OptionalRecord = Annotated[str | None, optional(text(MAX_RECORD_BYTES))]


@dataclass(frozen=True, slots=True)
class Hello:
    """The first frame of a relay: who it is, and a nonce to sign."""

    relay: Annotated[Did, text(MAX_DID_BYTES)]
    url: Annotated[str, text(MAX_URL_CHARS)]
    nonce: Annotated[str, base64(NONCE_BYTES)]
    limits: Annotated[dict[str, int], Field(lambda m, _: relay_info.read_limits(m))]
    time: Annotated[int, integer()]


@dataclass(frozen=True, slots=True)
class Auth:
    """The login of a dialler; ``record`` is its newest endpoint record."""

    jws: Annotated[str, text(MAX_AUTH_BYTES)]
    record: OptionalRecord = None
    invite: Annotated[str | None, optional(text(MAX_INVITE_CHARS))] = None


@dataclass(frozen=True, slots=True)
class WelcomePending:
    """The envelopes that wait in the inbox; ages in seconds, times in Unix seconds."""

    count: int = 0
    bytes: int = 0
    oldest_age: int | None = None
    refused_count: int = 0
    refused_first_at: int | None = None
    refused_last_at: int | None = None


@dataclass(frozen=True, slots=True)
class Welcome:
    """The login holds. ``epoch`` and ``session`` are None for a send-only session."""

    inbox: bool
    session: Fence | None
    epoch: Epoch | None
    cursor: Seq
    head: Seq
    pending: WelcomePending
    window_count: int
    window_bytes: int
    proof: str


class _WelcomeCodec(Codec[Welcome]):
    """Nested objects, and members that depend on ``inbox``."""

    def __init__(self) -> None:
        self.kind, self.name, self.sender = Welcome, "welcome", SenderField.HOST_LOGIN

    def read(self, value: object, **_: Any) -> Welcome:
        m = value if isinstance(value, jose.Members) else jose.Members(value)
        pending, window = m.object("pending"), m.object("window")
        refused = pending.object("refused")
        inbox = m.boolean("inbox")
        return Welcome(
            inbox=inbox,
            session=Fence(m.integer("session", minimum=1)) if inbox else None,
            epoch=Epoch(m.text("epoch", limit=MAX_EPOCH_CHARS)) if inbox else None,
            cursor=Seq(m.integer("cursor")),
            head=Seq(m.integer("head")),
            pending=WelcomePending(
                count=pending.integer("count"),
                bytes=pending.integer("bytes"),
                oldest_age=_optional_integer(pending, "oldest_age"),
                refused_count=refused.integer("count"),
                refused_first_at=_optional_integer(refused, "first_at"),
                refused_last_at=_optional_integer(refused, "last_at"),
            ),
            window_count=window.integer("count", minimum=1),
            window_bytes=window.integer("bytes", minimum=1),
            proof=m.text("proof", limit=MAX_AUTH_BYTES),
        )

    def write(self, value: Welcome) -> dict[str, Any]:
        pending = value.pending
        return {
            "inbox": value.inbox,
            "session": value.session,
            "epoch": value.epoch,
            "cursor": value.cursor,
            "head": value.head,
            "pending": {
                "count": pending.count,
                "bytes": pending.bytes,
                "oldest_age": pending.oldest_age,
                "refused": {
                    "count": pending.refused_count,
                    "first_at": pending.refused_first_at,
                    "last_at": pending.refused_last_at,
                },
            },
            "window": {"count": value.window_count, "bytes": value.window_bytes},
            "proof": value.proof,
        }


def _optional_integer(m: jose.Members, name: str) -> int | None:
    return m.integer(name) if m.has(name) else None


@dataclass(frozen=True, slots=True)
class Error:
    """A request failed; the conversation goes on."""

    error: Code
    detail: Detail = ""
    retry_after: RetryAfter = None
    ref: Annotated[str | None, optional(text(MAX_REF_CHARS))] = None


@dataclass(frozen=True, slots=True)
class Bye:
    """The last frame; then the socket closes."""

    error: Code
    detail: Detail = ""
    retry_after: RetryAfter = None
    record: OptionalRecord = None


_ANY_ROLE: Final = (
    SenderField.AGENT | SenderField.PEER | SenderField.HOST_TO_AGENT | SenderField.HOST_TO_PEER
)
CODECS: Final[tuple[Codec[Any], ...]] = (
    Codec(Hello, SenderField.HOST_LOGIN),
    Codec(Auth, SenderField.DIALER_LOGIN),
    _WelcomeCodec(),
    Codec(Error, _ANY_ROLE),
    Codec(Bye, SenderField.DIALER_LOGIN, SenderField.HOST_LOGIN),
)
