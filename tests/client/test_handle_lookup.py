"""The forward leg of a handle, as an agent checks it."""

from __future__ import annotations

import pytest

from relay.client.errors import AgentError
from relay.client.identity import handles
from relay.protocol.handles import LookupResult
from tests.federation.loopback_servers import INSIDE, said, web
from tests.support.ports import free_port
from tests.unit.builders import ALICE, BOB


def jrd(did: str) -> bytes:
    return said(b'{"links":[{"rel":"self","href":"%s"}]}' % did.encode())


async def test_a_name_is_asked_of_its_own_relay():
    async with web(jrd(ALICE.did), host=INSIDE) as site:
        handle = f"alice@127.0.0.1:{site.port}"
        assert await handles.lookup(handle, is_local=True) == LookupResult("found", ALICE.did)
        assert b"GET /.well-known/webfinger?resource=acct%3Aalice%40" in site.requests[0]


async def test_a_hostname_is_asked_for_its_file():
    async with web(said(BOB.did.encode()), host=INSIDE) as site:
        heard = await handles.lookup(f"localhost:{site.port}", is_local=True)
        assert heard == LookupResult("found", BOB.did)


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        (said(b"", status="404 Not Found"), "absent"),
        (said(b"", status="500 Oh"), "unreadable"),
        (said(b"", "text/plain", "302 Found", "Location: /x"), "unreadable"),
        (said(b"{}" + b" " * 70_000), "unreadable"),
        (said(b"{"), "unreadable"),
        (b"no HTTP", "unreadable"),
    ],
)
async def test_found_absent_and_unreadable_are_three_answers(answer: bytes, wanted: str):
    async with web(answer, host=INSIDE) as site:
        heard = await handles.lookup(f"alice@127.0.0.1:{site.port}", is_local=True)
        assert heard.state == wanted
        assert heard.why


async def test_a_relay_that_is_away_is_unreadable():
    heard = await handles.lookup(f"alice@127.0.0.1:{free_port(INSIDE)}", is_local=True)
    assert heard.state == "unreadable"


async def test_a_strangers_handle_makes_nobody_ask_around_on_this_machine():
    async with web(jrd(ALICE.did), host=INSIDE) as site:
        for host in ("127.0.0.1", "localhost"):
            assert (await handles.lookup(f"a@{host}:{site.port}")).state == "unreadable"
        assert site.requests == []


async def test_what_is_no_handle_is_said():
    with pytest.raises(AgentError) as caught:
        await handles.lookup("nobody")
    assert caught.value.code == "bad_frame"
