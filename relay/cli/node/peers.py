"""``relay peers`` and ``relay join``: what an operator asks the admin side of a node."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final
from urllib.parse import quote

from relay import clock
from relay.cli.exit_codes import Exit
from relay.cli.options import EVERYWHERE
from relay.cli.output import clock_time, printable, write, write_json, write_rows
from relay.client.errors import ProtocolError, make_error
from relay.client.http import origin as origins
from relay.client.http.transport import HttpRequest, error_of, request
from relay.protocol import jws as jose
from relay.protocol.errors import ErrorCode

ASK_S: Final = 30.0
"""The node dials the other relay meanwhile, which alone may take 25 s."""
PATH: Final = "/v1/admin"
NOT_FOUND: Final = 404


async def list_peers(admin: str, *, as_json: bool) -> None:
    """Show all peers, a line each."""
    found = (await _ask(admin, "GET", "/peers"))["peers"]
    if not found and not as_json:
        write("no other relay is known; relay peers add URL, or relay join URL")
    for peer in found:
        _tell(peer, _line, as_json=as_json)


async def show(admin: str, did: str, *, as_json: bool) -> None:
    """Show all that is known of one peer."""
    peer = await _ask(admin, "GET", _path(did))
    if as_json:
        write_json(peer)
    else:
        write_rows(_rows(peer), 10)


async def add(admin: str, url: str, did: str | None, *, as_json: bool) -> None:
    """Deal with a relay from now on."""
    peer = await _ask(admin, "POST", "/peers", {"url": url, **({"did": did} if did else {})})
    _tell(peer, lambda it: f"added  {it['did']}  at {printable(it['url'])}", as_json=as_json)


async def remove(admin: str, did: str, *, as_json: bool) -> None:
    """Remove a peer."""
    answer = await _ask(admin, "DELETE", _path(did))
    _tell(answer, lambda it: f"removed  {it['removed']}", as_json=as_json)


async def block(admin: str, did: str, *, as_json: bool) -> None:
    """Refuse a relay, inbound and outbound."""
    peer = await _ask(admin, "POST", f"{_path(did)}/block", {})
    _tell(peer, lambda it: f"blocked  {it['did']}", as_json=as_json)


async def unblock(admin: str, did: str, *, as_json: bool) -> None:
    """Stop refusing a relay."""
    answer = await _ask(admin, "DELETE", f"{_path(did)}/block")
    _tell(answer, lambda it: f"unblocked  {it['unblocked']}", as_json=as_json)


async def join(admin: str, url: str, *, as_json: bool) -> Exit:
    """Join a mesh by one of its relays."""
    answer = await _ask(admin, "POST", "/join", {"url": url})
    _tell(answer, lambda it: _line(it["peer"]), as_json=as_json)
    if not as_json:
        write(f"It told of {len(answer['known'])} other relays; relay peers list shows all.")
    return Exit.OK if answer["peer"]["linked"] else Exit.UNAVAILABLE


def _tell(answer: Any, line: Callable[[Any], str], *, as_json: bool) -> None:
    if as_json:
        write_json(answer)
    else:
        write(line(answer))


def _path(did: str) -> str:
    return f"/peers/{quote(did, safe='')}"


async def _ask(admin: str, method: str, path: str, body: object = None) -> Any:
    """Send one request to the admin side: plain HTTP on loopback or a private network."""
    origin = origins.parse(admin, insecure_networks=EVERYWHERE)
    made = HttpRequest(method, f"{PATH}{path}", None if body is None else jose.dumps(body))
    status, answer = await request(origin, made, ASK_S, max_s=ASK_S)
    try:
        answer = jose.loads(answer)
        members = jose.Members(answer)
    except ValueError as exc:
        detail = f"{origin} answered HTTP {status}, but not as a relay's admin side does"
        raise make_error(ErrorCode.PEER_UNREACHABLE, detail) from exc
    if members.has("detail") and members.has("error"):
        if status == NOT_FOUND:
            raise ProtocolError(ErrorCode.UNSUPPORTED, members.text("detail", limit=1024))
        raise error_of(origin, status, members)
    return answer


def _line(peer: dict[str, Any]) -> str:
    ways = {(True, True): "<->", (True, False): " ->", (False, True): "<- ", (False, False): "   "}
    link = ways[bool(peer["linked"]), bool(peer["inbound"])]
    trouble = f"  {_trouble(peer)}" if _trouble(peer) else ""
    state, waits = peer["state"] or "-", peer["outbox"]
    mail = f"  {waits['count']} wait ({waits['bytes']} bytes)" if waits["count"] else ""
    return printable(
        f"{link} {state:<8} {peer['standing']:<8} {peer['did']}  {peer['url']}{mail}{trouble}"
    )


def _trouble(peer: dict[str, Any]) -> str:
    if peer["out_s"] is not None:
        return f"out for {peer['out_s']} s: {peer['strikes']} forged records"
    if peer["linked"]:
        return ""
    if peer["refused"] is not None:
        return f"refuses this relay: {peer['refused']['error']}"
    return str(peer["reason"] or "")


def _rows(peer: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "did", peer["did"]
    yield "url", peer["url"]
    yield "standing", f"{peer['standing']}{_since(peer['since'])}"
    yield "link", _link(peer)
    for name, value in (("back-off", peer["back_off"]), ("refused", peer["refused"])):
        if value is not None:
            when = f" (in {value['wait_s']} s)" if "wait_s" in value else ""
            yield name, f"{value['error']}: {value['detail']}{when}"
    out = "" if peer["out_s"] is None else f"; not listened to for {peer['out_s']} s"
    yield "strikes", f"{peer['strikes'] or 'none'}{out}"
    yield "sees us", _sees_us(peer["sees_us"])
    waits = peer["outbox"]
    yield "outbox", f"{waits['count']} envelopes wait for it, {waits['bytes']} bytes"
    yield "records", f"{peer['records']} first heard from it since this node started"


def _since(at: int | None) -> str:
    return f" since {clock_time(at)}" if at else ""


def _link(peer: dict[str, Any]) -> str:
    ours = "up" if peer["linked"] else "down"
    state = peer["state"] or "not dialled"
    since = _since(peer["state_since"])
    reason = f" ({peer['reason']})" if peer["reason"] else ""
    return f"{ours}; {state}{since}{reason}; {peer['inbound']} of its own to this node"


def _sees_us(view: dict[str, Any] | None) -> str:
    if view is None:
        return "it was not asked yet"
    since = _since(view["since"])
    out = "" if view["retry_after"] is None else f"; does not listen for {view['retry_after']} s"
    reason = f" ({view['reason']})" if view["reason"] else ""
    asked = clock_time(int(clock.now()) - view["age_s"])
    return f"{view['state']}{since}{reason}; strikes {view['strikes']}{out}; asked {asked}"
