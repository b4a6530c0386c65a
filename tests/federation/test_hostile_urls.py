"""Every hostile URL is refused before anything is dialled (tests/vectors/hostile_urls.json)."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import httpx2
import pytest

from relay.peering import dialer as dialling
from relay.peering.dialer import Dialer
from relay.protocol import hosts
from relay.protocol.errors import ErrorCode, ProtocolError, UnavailableError
from tests.federation.loopback_servers import HERE, Table, canary, said, watched, web

VECTORS = Path(__file__).parents[1] / "vectors"
FILE = json.loads((VECTORS / "hostile_urls.json").read_text())
CASES = [case for case in FILE["cases"] if "url" in case]
REDIRECTS = [case for case in FILE["cases"] if "location" in case]
HOSTS = ("relay.example", "a.localhost", "localhost", "relay.localhost")


def dialer(case: dict[str, Any]) -> Dialer:
    return Dialer(resolver=Table({host: case.get("answers", ()) for host in HOSTS}))


def test_there_are_many_and_the_file_is_what_its_script_makes():
    assert len(FILE["cases"]) >= 300
    assert len(Counter(case["class"] for case in FILE["cases"])) >= 15
    command = [sys.executable, str(VECTORS / "make_hostile_urls.py"), "--check"]
    assert subprocess.run(command, check=False).returncode == 0  # noqa: S603


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
async def test_it_is_refused_before_a_connect(case: dict[str, Any]):
    way = dialer(case)
    with watched() as seen:
        for dial in (way.get, way.websocket):
            with pytest.raises(ProtocolError) as caught:
                await dial(case["url"])
            assert caught.value.code == ErrorCode.UNSUPPORTED
    assert seen == []


async def test_what_watches_sees_a_connect():
    async with canary() as bird:
        with watched() as seen, pytest.raises(UnavailableError):
            await Dialer(["127.0.0.0/8"]).get(f"http://127.0.0.1:{bird.port}/")
        assert seen == [f"socket.connect ('127.0.0.1', {bird.port})"]
        assert bird.hits == 1


@pytest.mark.parametrize("case", FILE["allowed"], ids=[case["name"] for case in FILE["allowed"]])
async def test_what_is_public_may_be_dialled(case: dict[str, Any]):
    way = Dialer(
        resolver=Table({"relay.example": case["answers"], "xn--rlay-bpa.example": case["answers"]})
    )
    target = dialling.urls.parse_origin(case["url"])
    found = [str(address) for address in await way._checked(target)]
    assert found
    wanted = case["answers"] or [target.host]
    assert found == [str(hosts.literal(one.removeprefix("::ffff:"))) for one in wanted]


@pytest.mark.parametrize("case", REDIRECTS, ids=[case["name"] for case in REDIRECTS])
async def test_a_redirect_is_not_followed(case: dict[str, Any]):
    async with canary() as bird:
        place = case["location"].format(canary=f"127.0.0.1:{bird.port}", port=bird.port)
        moved = said(b"", "text/plain", f"{case['status']} Moved", f"Location: {place}")
        async with web(moved) as site:
            # plain text and even the canary are allowed, so that only the redirect is judged
            way = Dialer(["127.0.0.0/8"], Table())
            assert (await way.get(f"http://{HERE}:{site.port}/")).status == case["status"]
            with pytest.raises(UnavailableError) as caught:
                await way.websocket(f"ws://{HERE}:{site.port}")
            assert caught.value.code == ErrorCode.PEER_UNREACHABLE
            assert len(site.requests) == 2
        assert bird.hits == 0


async def test_with_the_table_off_the_canary_is_hit():
    async with canary() as bird:
        way = Dialer(["0.0.0.0/0"], Table({"relay.example": ["127.0.0.1"]}))
        with pytest.raises(UnavailableError):
            await way.get(f"http://relay.example:{bird.port}/")
        assert bird.hits == 1


async def test_who_follows_redirects_hits_the_canary():
    async with canary() as bird:
        moved = said(b"", "text/plain", "302 Found", f"Location: http://127.0.0.1:{bird.port}/")
        async with web(moved) as site, httpx2.AsyncClient(follow_redirects=True) as client:
            with pytest.raises(httpx2.TransportError):
                await client.get(f"http://{HERE}:{site.port}/")
        assert bird.hits == 1
