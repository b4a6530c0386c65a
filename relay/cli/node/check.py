"""``relay check``: examine a relay from outside, as an agent sees it.

The command prints each finding at once, with its reason. It uses the SDK for every check. Its key
is temporary.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

from relay import clock
from relay.cli.agent.status import DURABILITY
from relay.cli.exit_codes import Exit
from relay.cli.output import printable, write, write_json
from relay.client import Agent, Sent, SigningKey
from relay.client.errors import NotAdmittedError, UnavailableError
from relay.client.http import origin as origins
from relay.client.http.relay_api import RelayApi
from relay.client.http.transport import HttpRequest, certificate_expiry, request
from relay.client.session.connection import dial
from relay.protocol import frames
from relay.protocol.client_session import LoginOptions
from relay.protocol.did import KEY_BYTES
from relay.protocol.errors import RelayError
from relay.protocol.relay_info import RelayInfo
from relay.protocol.signed import MAX_SKEW_S

STEP_S: Final = 10.0
CLOCK_WARN_S: Final = 5.0
CERTIFICATE_WARN_DAYS: Final = 14
OPERATORS: Final = ("/metrics", "/readyz")
OK: Final = 200
BODY: Final = b"relay check"

Level = Literal["ok", "warn", "FAIL"]


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check; ``warn``: it works, with a reservation; ``FAIL``: it is no use."""

    name: str
    level: Level
    detail: str
    ms: int | None = None


class _FailedError(Exception):
    """A check failed; the text is the reason."""


@dataclass(slots=True)
class Examination:
    """One run over one relay, at ``url`` as the user typed it; a quiet one prints no findings."""

    url: str
    quiet: bool
    findings: list[Finding] = field(default_factory=list)
    is_unreachable: bool = False
    key: SigningKey = field(default_factory=lambda: SigningKey(clock.entropy(KEY_BYTES)))
    origin: origins.Origin = field(init=False)
    """After the first step."""
    information: RelayInfo | None = None
    hello: frames.Hello | None = None

    def find(self, name: str, level: Level, detail: str, began: float | None = None) -> None:
        """Record a finding and print it; it took the time since ``began`` (monotonic)."""
        ms = None if began is None else round((clock.monotonic() - began) * 1000)
        self.findings.append(Finding(name, level, detail, ms))
        if not self.quiet:
            took = "" if ms is None else f" ({ms} ms)"
            write(f"{level:<4}  {name:<12}  {printable(detail)}{took}")

    async def step(self, name: str, look: Callable[[Examination], Awaitable[None]]) -> bool:
        """Run one check; False: it failed."""
        try:
            async with asyncio.timeout(STEP_S):
                await look(self)
        except _FailedError as exc:
            self.find(name, "FAIL", str(exc))
        except RelayError as exc:
            self.is_unreachable = isinstance(exc, UnavailableError)
            self.find(name, "FAIL", f"{exc.code}: {exc.detail or 'no more is known'}")
        except TimeoutError:
            self.is_unreachable = True
            self.find(name, "FAIL", f"nothing came within {STEP_S:.0f} s")
        else:
            return True
        return False

    @property
    def info(self) -> RelayInfo:
        """The information of the relay, after the second step."""
        if self.information is None:
            raise RuntimeError("looked before the information was read")
        return self.information

    @property
    def exit_code(self) -> Exit:
        """The exit code of the command."""
        if all(finding.level != "FAIL" for finding in self.findings):
            return Exit.OK
        return Exit.UNAVAILABLE if self.is_unreachable else Exit.REFUSED


async def check(url: str, *, send: bool, as_json: bool) -> Exit:
    """Examine a relay, show the findings, and return the exit code."""
    run = Examination(url, quiet=as_json)
    await _examine(run, send=send)
    if as_json:
        write_json(_members(run))
    return run.exit_code


async def _examine(run: Examination, *, send: bool) -> None:
    if not await run.step("address", _address) or not await run.step("information", _information):
        return
    for name, look in _OUTSIDE.items():
        await run.step(name, look)
    if not await run.step("login", _login) or run.hello is None:
        return
    await run.step("same relay", _same_relay)
    run.find("clock", *clock_finding(run.hello.time - clock.now()))
    limits = run.hello.limits
    run.find("limits", "ok", ", ".join(f"{name} {value}" for name, value in limits.items()))
    if send:
        await run.step("round trip", _round_trip)


async def _address(run: Examination) -> None:
    run.origin = origins.parse(run.url)
    where = "plain text, which never leaves this machine" if run.origin.is_insecure else "TLS"
    run.find("address", "ok", f"{run.origin}: {where}")


async def _information(run: Examination) -> None:
    began = clock.monotonic()
    info = run.information = await RelayApi(run.origin).info()
    detail = f"signed by {info.did}, {info.description.software} {info.description.version}"
    run.find("information", "ok", detail, began)


async def _certificate(run: Examination) -> None:
    if run.origin.is_insecure:
        return
    days = (await certificate_expiry(run.origin) - clock.now()) / 86_400
    level: Level = "ok" if days > CERTIFICATE_WARN_DAYS else "warn"
    run.find("certificate", level, f"good for {days:.0f} days more")


async def _origin(run: Examination) -> None:
    public_url = run.info.description.url
    found, reason = f"it says that agents dial it at {public_url}", "none will log in here"
    if public_url != str(run.origin):
        raise _FailedError(f"{found} (RELAY_PUBLIC_URL), not at {run.origin}: {reason}")
    run.find("origin", "ok", found)


async def _description(run: Examination) -> None:
    info = run.info.description
    level: Level = "ok" if info.durability == "fsync" else "warn"
    run.find("durability", level, DURABILITY.get(info.durability, info.durability))
    who = "every agent gets" if info.registration == "open" else "agents that it knows get"
    run.find("registration", "ok", f"{info.registration}: {who} an inbox")
    if info.contact is None:
        run.find("contact", "warn", "the operator names none (RELAY_CONTACT)")
    else:
        run.find("contact", "ok", info.contact)


async def _operators_side(run: Examination) -> None:
    """The admin bind has no login: it must not be reachable where agents are."""
    for path in OPERATORS:
        status, _ = await request(run.origin, HttpRequest("GET", path), STEP_S)
        if status == OK:
            raise _FailedError(f"{path} is public (RELAY_ADMIN); it is for the operator alone")
    run.find("operator", "ok", f"{', '.join(OPERATORS)} are not public")


_OUTSIDE: Final = {
    "certificate": _certificate,
    "origin": _origin,
    "description": _description,
    "operator": _operators_side,
}
"""The steps that need no login, in their order."""


async def _login(run: Examination) -> None:
    began = clock.monotonic()
    try:
        async with dial(run.origin, run.key, LoginOptions(str(run.origin))) as line:
            run.hello = line.ready.hello
            run.find(
                "login", "ok", "a key made just now got in, and the relay proved itself", began
            )
    except NotAdmittedError as exc:
        if run.info.description.registration == "open":
            raise
        run.find("login", "warn", f"not admitted, as is to be expected ({exc.detail}); ends here")


async def _same_relay(run: Examination) -> None:
    info = run.info
    if run.hello is None or run.hello.relay != info.did:
        found = run.hello.relay if run.hello else "nobody"
        raise _FailedError(f"{found} greets over the WebSocket, {info.did} over HTTP")
    there, over_http = run.hello.limits, info.description.limits
    if there != over_http:
        raise _FailedError(f"limits differ: {there} there, {over_http} over HTTP")
    run.find("same relay", "ok", "the WebSocket and HTTP say the same of it")


def clock_finding(ahead: float) -> tuple[Level, str]:
    """Return the finding for a clock that is ``ahead`` seconds ahead of this machine's."""
    off = abs(ahead)
    way = "ahead of" if ahead > 0 else "behind"
    if off <= CLOCK_WARN_S:
        return "ok", "within a few seconds of this machine's"
    if off <= MAX_SKEW_S:
        return "warn", f"{off:.0f} s {way} this machine's; over {MAX_SKEW_S} s logins fail"
    return "FAIL", f"{off:.0f} s {way} this machine's"


async def _round_trip(run: Examination) -> None:
    async with Agent.open(run.key, str(run.origin), open_timeout_s=STEP_S) as me:
        began = clock.monotonic()
        sent = await me.send(me.did, BODY, deadline_s=STEP_S)
        _check_receipt(run.info, sent)
        run.find("stored", "ok", f"the receipt holds, and promises {sent.durability}", began)
        message = await anext(me.inbox())
        if message.eid != sent.eid or message.body != BODY:
            raise _FailedError("another envelope was delivered to a key made just now")
        if message.redelivered:
            raise _FailedError("it is said to have been handed over before")
        run.find("delivered", "ok", "the same envelope came back, sealed", began)
        await message.ack()
        state = await me.status(me.did, sent.id)
        if state != "acked":
            raise _FailedError(f"it was acked, but the relay tells its sender: {state}")
        run.find("acked", "ok", "its sender is told so", began)


def _check_receipt(info: RelayInfo, sent: Sent) -> None:
    promised = info.description.durability
    if sent.relay != info.did:
        raise _FailedError(f"the receipt is of {sent.relay}")
    if sent.durability != promised:
        raise _FailedError(f"the receipt promises {sent.durability}, not {promised}")
    if sent.dup:
        raise _FailedError("a new envelope is said to have been stored before")


def _members(run: Examination) -> dict[str, Any]:
    info = run.information
    return {
        "url": run.url,
        "relay": info.did if info else None,
        "version": info.description.version if info else None,
        "ok": run.exit_code is Exit.OK,
        "findings": [asdict(finding) for finding in run.findings],
    }
