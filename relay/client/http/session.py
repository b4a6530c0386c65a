"""A session without a connection (PROTOCOL.md §6): to ask, not to be handed anything.

Rules of the file: who logs in and checks is the same state machine as over a WebSocket. Nothing
that waits is handed over; but like any login it takes the inbox from an older session of the same
agent, and since it has no clean end, the relay marks what waits as perhaps handed over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, cast, get_args
from urllib.parse import quote

from relay import clock
from relay.client.directory.resolve import (
    Found,
    found,
)
from relay.client.errors import AgentError, of, typed
from relay.client.http.origin import Origin
from relay.client.http.transport import (
    EXCHANGE_S,
    ask,
)
from relay.client.state.agent_state import State as AgentState
from relay.protocol import frames, relay_info
from relay.protocol import jws as jose
from relay.protocol.client_session import (
    AgentSession,
    Failed,
    Login,
    Ready,
    Send,
)
from relay.protocol.did import SigningKey
from relay.protocol.errors import ErrorCode
from relay.protocol.ids import Did
from relay.protocol.types import FirstContact

_STATES: Final = frozenset(get_args(frames.State))
_RESOLUTIONS: Final = frozenset(get_args(frames.Resolution))


@dataclass(frozen=True, slots=True)
class Visit:
    """A login that holds; made by :func:`log_in`."""

    origin: Origin
    relay: Did
    welcome: frames.Welcome
    token: str

    async def status(
        self, to: str, message_id: str, *, seconds: float = EXCHANGE_S
    ) -> frames.State:
        """What became of an envelope that this agent sent to ``to``.

        Raises:
            AgentError: the relay's no, or no answer.
        """
        path = f"/v1/agents/{to}/envelopes/{quote(message_id, safe='')}"
        answer = await ask(self.origin, "GET", path, token=self.token, seconds=seconds)
        return cast("frames.State", _one_of(answer, "state", _STATES))

    async def rules(
        self,
        *,
        first_contact: FirstContact | None = None,
        allow: Sequence[str] = (),
        deny: Sequence[str] = (),
        forget: Sequence[str] = (),
    ) -> frames.Ruled:
        """As :meth:`Agent.rules`.

        Raises:
            AgentError: the relay's no (then nothing is changed), or no answer.
        """
        patch: dict[str, object] = {"allow": allow, "deny": deny, "forget": forget}
        patch = {name: list(cast("Sequence[str]", dids)) for name, dids in patch.items() if dids}
        if first_contact is not None:
            patch["first_contact"] = first_contact
        method, body = ("PATCH", patch) if patch else ("GET", None)
        path = "/v1/inbox/rules"
        answer = await ask(self.origin, method, path, body=body, token=self.token)
        try:
            return frames.read(frames.Ruled, answer, ref="http")
        except ValueError as exc:
            raise _wrong(exc) from exc


async def log_in(
    key: SigningKey,
    origin: Origin,
    state: AgentState,
    *,
    expected: Did | None = None,
    seconds: float = EXCHANGE_S,
) -> Visit:
    """Log in over HTTP; the relay is pinned at first contact.

    Args:
        key: who logs in.
        origin: where.
        state: knows which relay is expected there, and remembers it.
        expected: the relay that is to be there, as a signed record says.
        seconds: for each request.

    Raises:
        AgentError: unreachable, or the login does not hold.
    """
    is_pinned = expected is None
    expected = expected or state.relay_at(str(origin))
    login = Login(str(origin), expected, state.record if expected else None)
    session = AgentSession(key, login, clock.entropy)
    hello = _hello(await ask(origin, "POST", "/v1/session/nonce", seconds=seconds))
    if is_pinned and hello.url == str(origin) and expected not in {None, hello.relay}:
        raise state.other_relay(hello.url, hello.relay)
    auth = _next(session, hello, Send).frame
    if not isinstance(auth, frames.Auth):
        raise typed(ErrorCode.BAD_FRAME, "a login begins with auth")
    body = {name: value for name, value in frames.to_members(auth).items() if name != "t"}
    answer = await ask(origin, "POST", "/v1/session", body=body, seconds=seconds)
    try:
        token, welcome = answer.text("token", most=512), frames.read(frames.Welcome, answer)
    except ValueError as exc:
        raise _wrong(exc) from exc
    ready = _next(session, welcome, Ready)
    state.pin(str(origin), ready.relay)
    return Visit(origin, ready.relay, welcome, token)


async def resolve(origin: Origin, did: str, *, is_own: bool = False) -> Found:
    """Where an agent lives, as the relay knows it; needs no login. The signature is checked here.

    ``is_own``: the caller signs for ``did``, so its record may be from the future.

    Raises:
        AgentError: the relay's no, or no answer.
    """
    return found(await ask_record(origin, did), did, is_own=is_own)


async def ask_record(origin: Origin, did: str) -> frames.Resolved:
    """As :func:`resolve`, but the signature is not checked yet.

    Raises:
        AgentError: the relay's no, or no answer.
    """
    answer = await ask(origin, "GET", f"/v1/agents/{did}")
    state = _one_of(answer, "state", _RESOLUTIONS)
    try:
        record, stale = answer.optional_text("record", most=4096), answer.boolean("stale")
    except ValueError as exc:
        raise _wrong(exc) from exc
    return frames.Resolved("http", state, record, stale)


def _hello(greeting: jose.Members) -> frames.Hello:
    try:
        return frames.Hello(
            relay=Did(greeting.text("relay", most=512)),
            url=greeting.text("url", most=512),
            nonce=greeting.text("nonce", most=64),
            limits=relay_info.read_limits(greeting),
            time=int(clock.now()),
        )
    except ValueError as exc:
        raise _wrong(exc) from exc


def _next(session: AgentSession, frame: frames.Frame, kind: type[Any]) -> Any:
    for effect in session.receive(frame, clock.now()):
        if isinstance(effect, Failed):
            raise of(effect.error, record=effect.record)
        if isinstance(effect, kind):
            return effect
    raise typed(ErrorCode.BAD_FRAME, "the login does not go on")


def _one_of(answer: jose.Members, name: str, known: frozenset[str]) -> Any:
    try:
        return answer.one_of(name, known)
    except ValueError as exc:
        raise _wrong(exc) from exc


def _wrong(exc: ValueError) -> AgentError:
    return typed(ErrorCode.BAD_FRAME, f"the relay said what cannot be: {exc}")
