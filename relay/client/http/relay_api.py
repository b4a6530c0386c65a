"""The HTTP endpoints of one relay (PROTOCOL.md §6, §8), without a connection that stays.

Entry points: :class:`RelayApi`, and :class:`ApiSession`, which :meth:`RelayApi.login` returns.
Invariants: the login uses the same state machine as a WebSocket. It receives no envelope; but like
any login it takes the inbox from an older session of the same agent. Since this session has no
clean end, the relay marks what waits as possibly delivered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final, cast, get_args
from urllib.parse import quote

from relay import clock
from relay.client.errors import AgentError, from_core, make_error
from relay.client.http import transport
from relay.client.http.origin import Origin
from relay.client.state.agent_state import AgentState
from relay.protocol import client_session, endpoint_record, frames, receipts, relay_info
from relay.protocol import jws as jose
from relay.protocol.did import SigningKey
from relay.protocol.errors import ErrorCode, ProtocolError
from relay.protocol.ids import Did, Timestamp
from relay.protocol.types import FirstContact

INFO_PATH: Final = "/.well-known/agent-relay.json"
REF: Final = "http"
"""Frames have a ref, an HTTP answer needs none."""
MAX_REJECTIONS: Final = 256
_STATES: Final = frozenset(get_args(frames.State))
_RESOLUTIONS: Final = frozenset(get_args(frames.Resolution))


@dataclass(frozen=True, slots=True)
class RelayApi:
    """The requests that need no login, and the login.

    Args:
        origin: of the relay.
        timeout_s: for each request.
    """

    origin: Origin
    timeout_s: float = transport.REQUEST_TIMEOUT_S

    async def info(self) -> relay_info.RelayInfo:
        """Ask the relay for its information, and verify its signature.

        Raises:
            AgentError: unreachable; ``bad_frame`` or ``bad_signature``: not signed as it must be.
        """
        answer = await self._request("GET", INFO_PATH)
        try:
            info = relay_info.parse(answer.text("jws", limit=relay_info.MAX_INFO_BYTES))
        except ProtocolError as exc:
            raise make_error(exc.code, exc.detail) from exc
        except ValueError as exc:
            raise make_error(ErrorCode.BAD_FRAME, f"relay information: {exc}") from exc
        # the relay has just sent it, so its own clock decides; relay check compares the clocks
        refusal = relay_info.verify(info, Timestamp(info.issued_at))
        if refusal is not None:
            raise make_error(refusal.code, refusal.detail)
        return info

    async def resolve(self, did: str) -> frames.Resolved:
        """Ask for the record of an agent; its signature is not verified yet.

        Raises:
            AgentError: the relay's refusal, or no answer.
        """
        answer = await self._request("GET", f"/v1/agents/{did}")
        with _well_formed():
            state = answer.one_of("state", _RESOLUTIONS)
            record = answer.optional_text("record", limit=endpoint_record.MAX_RECORD_BYTES)
            return frames.Resolved(
                REF, cast("frames.Resolution", state), record, answer.boolean("stale")
            )

    async def publish(self, did: Did, record: str) -> str | None:
        """Publish the record of an agent, and return the record that the relay has instead.

        Returns:
            That record, not verified yet; None: the relay has stored this one.

        Raises:
            AgentError: the relay's refusal, or no answer.
        """
        answer = await self._request("PUT", f"/v1/agents/{did}", body={"record": record})
        with _well_formed():
            if answer.boolean("stored"):
                return None
            return answer.text("record", limit=endpoint_record.MAX_RECORD_BYTES)

    async def submit(
        self, submit: frames.Submit, on_connected: Callable[[], None] = transport.no_op
    ) -> frames.Submitted | AgentError:
        """Submit once, without a login: the envelope is its own proof.

        Args:
            submit: the envelopes.
            on_connected: called just before anything is sent.

        Returns:
            The relay's answer, not verified yet, or its error for all of it.

        Raises:
            AgentError: no answer, or none of a relay; ``stored`` tells what is known.
        """
        items = b",".join(cast("list[bytes]", list(submit.envelopes)))
        body = b'{"envelopes":[%b]}' % items
        made = transport.HttpRequest("POST", "/v1/envelopes", body, on_connected=on_connected)
        status, data = await transport.request(self.origin, made, self.timeout_s)
        answer = transport.read_members(self.origin, status, data)
        if answer.has("error"):
            return transport.error_of(self.origin, status, answer)
        try:
            return _submitted(answer, submit.ref)
        except ValueError as exc:
            raise transport.not_a_relay(self.origin, status) from exc

    async def login(
        self, key: SigningKey, state: AgentState, *, expected: Did | None = None
    ) -> ApiSession:
        """Log in; the relay is pinned at first contact.

        Args:
            key: of the agent.
            state: knows the expected relay, and remembers it.
            expected: the relay that must answer, as a signed record says.

        Raises:
            AgentError: unreachable, or the login fails.
        """
        url, is_pinned = str(self.origin), expected is None
        expected = expected or state.relay_at(url)
        login = client_session.LoginOptions(url, expected, state.record if expected else None)
        session = client_session.ClientSession(key, login, clock.entropy)
        hello = _hello(await self._request("POST", "/v1/session/nonce"))
        if is_pinned and hello.url == url and expected not in {None, hello.relay}:
            raise state.wrong_relay(hello.url, hello.relay)
        auth = _next_effect(session, hello, client_session.Send).frame
        if not isinstance(auth, frames.Auth):
            raise make_error(ErrorCode.BAD_FRAME, "a login begins with auth")
        body = {name: value for name, value in frames.to_members(auth).items() if name != "t"}
        answer = await self._request("POST", "/v1/session", body=body)
        with _well_formed():
            token, welcome = answer.text("token", limit=512), frames.read(frames.Welcome, answer)
        ready = _next_effect(session, welcome, client_session.Ready)
        state.pin(url, ready.relay)
        return ApiSession(self.origin, ready.relay, welcome, token)

    async def _request(self, method: str, path: str, *, body: object = None) -> jose.Members:
        return await transport.request_json(
            self.origin, method, path, body=body, timeout_s=self.timeout_s
        )


@dataclass(frozen=True, slots=True)
class ApiSession:
    """A session over HTTP; made by :meth:`RelayApi.login`."""

    origin: Origin
    relay: Did
    welcome: frames.Welcome
    token: str

    async def status(
        self, to: str, message_id: str, *, timeout_s: float = transport.REQUEST_TIMEOUT_S
    ) -> frames.State:
        """Return the state of an envelope that this agent sent to ``to``.

        Raises:
            AgentError: the relay's refusal, or no answer.
        """
        path = f"/v1/agents/{to}/envelopes/{quote(message_id, safe='')}"
        answer = await transport.request_json(
            self.origin, "GET", path, token=self.token, timeout_s=timeout_s
        )
        with _well_formed():
            return cast("frames.State", answer.one_of("state", _STATES))

    async def rules(
        self,
        *,
        first_contact: FirstContact | None = None,
        allow: Sequence[str] = (),
        deny: Sequence[str] = (),
        forget: Sequence[str] = (),
    ) -> frames.Ruled:
        """Return the rules of the inbox, changed before as for :meth:`Agent.rules`.

        Raises:
            AgentError: the relay's refusal (then nothing is changed), or no answer.
        """
        changes: dict[str, object] = {
            name: list(dids)
            for name, dids in (("allow", allow), ("deny", deny), ("forget", forget))
            if dids
        }
        if first_contact is not None:
            changes["first_contact"] = first_contact
        method, body = ("PATCH", changes) if changes else ("GET", None)
        answer = await transport.request_json(
            self.origin, method, "/v1/inbox/rules", body=body, token=self.token
        )
        with _well_formed():
            return frames.read(frames.Ruled, answer, ref=REF)


def _submitted(answer: jose.Members, ref: str) -> frames.Submitted:
    rejected = [
        frames.read(frames.Rejection, one) for one in answer.array("rejected", limit=MAX_REJECTIONS)
    ]
    return frames.Submitted(
        refs=(ref,),
        receipt=answer.optional_text("receipt", limit=receipts.MAX_RECEIPT_BYTES),
        rejected=tuple(replace(one, ref=ref) for one in rejected),
    )


def _hello(answer: jose.Members) -> frames.Hello:
    with _well_formed():
        return frames.Hello(
            relay=Did(answer.text("relay", limit=512)),
            url=answer.text("url", limit=512),
            nonce=answer.text("nonce", limit=64),
            limits=relay_info.read_limits(answer),
            time=int(clock.now()),
        )


def _next_effect(
    session: client_session.ClientSession, frame: frames.Frame, kind: type[Any]
) -> Any:
    for effect in session.receive(frame, clock.now()):
        if isinstance(effect, client_session.Failed):
            raise from_core(effect.error, record=effect.record)
        if isinstance(effect, kind):
            return effect
    raise make_error(ErrorCode.BAD_FRAME, "the login does not go on")


@contextmanager
def _well_formed() -> Iterator[None]:
    """Translate the errors of reading an answer."""
    try:
        yield
    except ValueError as exc:
        raise make_error(ErrorCode.BAD_FRAME, f"the relay sent a wrong answer: {exc}") from exc
