"""``relay peers`` and ``relay join``: what an operator asks the admin side of a node."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import quote

from relay import clock
from relay.cli.exit_codes import Exit
from relay.cli.options import EVERYWHERE
from relay.cli.output import clock_time, printable, write, write_json
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
    """A line each."""
    found = (await _ask(admin, "GET", "/peers"))["peers"]
    if as_json:
        for peer in found:
            write_json(peer)
        return
    if not found:
        write("no other relay is known; relay peers add URL, or relay join URL")
    for peer in found:
        write(_line(peer))


async def show(admin: str, did: str, *, as_json: bool) -> Exit:
    """All of one."""
    peer = await _ask(admin, "GET", f"/peers/{quote(did, safe='')}")
    if as_json:
        write_json(peer)
    else:
        for name, words in _lines(peer):
            write(f"{name:<10}  {printable(words)}")
    return Exit.OK


async def add(admin: str, url: str, did: str | None, *, as_json: bool) -> None:
    """Deal with a relay from now on."""
    peer = await _ask(admin, "POST", "/peers", {"url": url, **({"did": did} if did else {})})
    if as_json:
        write_json(peer)
    else:
        write(f"added  {peer['did']}  at {printable(peer['url'])}")


async def remove(admin: str, did: str, *, as_json: bool) -> None:
    """Remove a peer."""
    answer = await _ask(admin, "DELETE", f"/peers/{quote(did, safe='')}")
    if as_json:
        write_json(answer)
    else:
        write(f"removed  {answer['removed']}")


async def block(admin: str, did: str, *, as_json: bool) -> None:
    """Refuse a relay, inbound and outbound."""
    peer = await _ask(admin, "POST", f"/peers/{quote(did, safe='')}/block", {})
    if as_json:
        write_json(peer)
    else:
        write(f"blocked  {peer['did']}")


async def unblock(admin: str, did: str, *, as_json: bool) -> None:
    """Stop refusing a relay."""
    answer = await _ask(admin, "DELETE", f"/peers/{quote(did, safe='')}/block")
    if as_json:
        write_json(answer)
    else:
        write(f"unblocked  {answer['unblocked']}")


async def join(admin: str, url: str, *, as_json: bool) -> Exit:
    """Join a mesh by one of its relays."""
    answer = await _ask(admin, "POST", "/join", {"url": url})
    if as_json:
        write_json(answer)
    else:
        write(_line(answer["peer"]))
        write(f"It told of {len(answer['known'])} other relays; relay peers list shows all.")
    return Exit.OK if answer["peer"]["linked"] else Exit.UNAVAILABLE


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


def _lines(peer: dict[str, Any]) -> list[tuple[str, str]]:
    lines = [("did", peer["did"]), ("url", peer["url"])]
    since = f" since {clock_time(peer['since'])}" if peer["since"] else ""
    lines.append(("standing", f"{peer['standing']}{since}"))
    lines.append(("link", _link(peer)))
    for name, value in (("back-off", peer["back_off"]), ("refused", peer["refused"])):
        if value is not None:
            when = f" (in {value['wait_s']} s)" if "wait_s" in value else ""
            lines.append((name, f"{value['error']}: {value['detail']}{when}"))
    strikes = "none" if not peer["strikes"] else f"{peer['strikes']}"
    out = "" if peer["out_s"] is None else f"; not listened to for {peer['out_s']} s"
    lines.append(("strikes", f"{strikes}{out}"))
    lines.append(("sees us", _sees_us(peer["sees_us"])))
    waits = peer["outbox"]
    lines.append(("outbox", f"{waits['count']} envelopes wait for it, {waits['bytes']} bytes"))
    lines.append(("records", f"{peer['records']} first heard from it since this node started"))
    return lines


def _link(peer: dict[str, Any]) -> str:
    ours = "up" if peer["linked"] else "down"
    state = peer["state"] or "not dialled"
    since = f" since {clock_time(peer['state_since'])}" if peer["state_since"] else ""
    reason = f" ({peer['reason']})" if peer["reason"] else ""
    return f"{ours}; {state}{since}{reason}; {peer['inbound']} of its own to this node"


def _sees_us(view: dict[str, Any] | None) -> str:
    if view is None:
        return "it was not asked yet"
    since = f" since {clock_time(view['since'])}" if view["since"] else ""
    out = "" if view["retry_after"] is None else f"; does not listen for {view['retry_after']} s"
    reason = f" ({view['reason']})" if view["reason"] else ""
    asked = clock_time(int(clock.now()) - view["age_s"])
    return f"{view['state']}{since}{reason}; strikes {view['strikes']}{out}; asked {asked}"
