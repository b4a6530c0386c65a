"""A relay chooses peers to dial, and names to others only relays that it has reached itself."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Sequence

import pytest

from relay import clock, metrics
from relay.inbox.model.types import InboxLimits
from relay.peering import admin
from relay.peering import links as links_module
from relay.peering.links import Links
from relay.peering.model import membership
from relay.peering.peers import Peers
from relay.protocol import relay_info
from relay.protocol.errors import ErrorCode, RelayError, UnavailableError
from relay.protocol.frames import Gossip, Want
from relay.protocol.ids import Did
from relay.reference.memory_store import MemoryStore
from tests.federation.linked_nodes import (
    Chooser,
    Dialler,
    Place,
    now,
    peer,
    places,
    relay_at,
    running_links,
    until,
)
from tests.federation.loopback_servers import INSIDE, said, web
from tests.federation.test_peer_admin import ask
from tests.support.nodes import RunningNode, new_key, running_node

pytestmark = pytest.mark.timeout(60)

OPEN = {"federation": "open"}
NOBODY = UnavailableError(ErrorCode.PEER_UNREACHABLE)


def info(place: Place, *, ago: float = 0) -> str:
    words = relay_info.RelayDescription(place.url, "s", "1", {}, 1, "open", "open", "fsync")
    return relay_info.sign(place.key, words, now() - ago)


@contextlib.asynccontextmanager
async def web_page(*, silent: bool = False):
    """A relay whose information is served, and that nobody can link with."""
    key = new_key()
    answers: dict[str, bytes] = {}

    def reply(request: bytes) -> bytes:
        is_page = request.startswith(b"GET /.well-known/")
        if is_page:
            return said(answers["page"], "application/json")
        return b"" if silent else said(b"", status="404 Not Found")

    async with web(reply, host=INSIDE, stays=silent) as site:
        place = Place(key, site.port)
        answers["page"] = json.dumps({"jws": info(place)}).encode()
        yield place


async def named(place: Place) -> set[str]:
    """The relays of which one tells a stranger that asks."""
    async with peer(place.url, place.did) as there:
        await there.say(Want("w", relays=True))
        while (answer := await there.hear(Gossip)).ref != "w":
            pass
        return {relay_info.parse(one).did for one in answer.relays}


# ---------------------------------------------------------------- whom to dial


async def test_with_many_relays_alive_those_that_are_gone_are_looked_for_all_the_same():
    mine = Peers(new_key().did, "open", frozenset(), MemoryStore(InboxLimits(), clock.now).peers)
    alive, gone = places(19), places(20)
    for place in (*alive, *gone):
        assert await mine.merge_relay_info(info(place))
    for place in alive:
        mine.on_link_up(place.did)
    for place in gone:
        for _ in range(membership.MAX_FAILURES):
            wait_s = mine.on_dial_failed(place.did, NOBODY, place.url)
            assert wait_s is not None
            assert 1 <= wait_s <= membership.MAX_BACKOFF_S
        peer_of = mine.members.get(place.did)
        assert peer_of is not None
        peer_of.dial_at = now()
    linked = {place.did for place in alive}
    due = dict(mine.due_dials(linked))
    assert 0 < len(due) <= membership.MAX_DESIRED_LINKS
    assert due.items() <= {place.did: place.url for place in gone}.items()
    assert linked >= dict(mine.desired_links()).keys()


async def test_a_dial_to_where_only_a_record_says_that_a_peer_is_tells_nothing_of_it():
    mine = Peers(new_key().did, "open", frozenset(), MemoryStore(InboxLimits(), clock.now).peers)
    [place] = places(1)
    await mine.merge_relay_info(info(place))
    assert mine.on_dial_failed(place.did, NOBODY, "http://127.0.0.1:1") is None
    assert mine.due_dials(()) == [(place.did, place.url)]


async def give_up(node: RunningNode, others: Sequence[Place]) -> None:
    """A relay knows the others, and has missed them often."""
    peers = node.parts.peers
    for there in others:
        await peers.merge_relay_info(info(there))
        for _ in range(membership.MAX_FAILURES):
            peers.on_dial_failed(there.did, NOBODY, there.url)
    assert not dict(peers.desired_links()).keys() & {there.did for there in others}


def halves() -> tuple[list[Place], list[Place]]:
    """Two pairs of relays, of which one would choose a relay of the other pair.

    Each choice is drawn by the keys, and with so few relays all may fall within a pair.
    """
    while True:
        half, other = places(2), places(2)
        for here in half:
            made = membership.MemberTable(here.did)
            for there in (*half, *other):
                made.add(there.did)
            if dict.fromkeys(made.due(clock.now())).keys() & {there.did for there in other}:
                return half, other


async def test_two_halves_of_a_mesh_that_have_given_each_other_up_find_each_other(monkeypatch):
    for name, value in (("MAX_DESIRED_LINKS", 1), ("ROTATED_LINKS", 0), ("MAX_BACKOFF_S", 2.0)):
        monkeypatch.setattr(membership, name, value)
    half, other = halves()
    async with contextlib.AsyncExitStack() as stack:
        nodes = [
            await stack.enter_async_context(relay_at(here, **OPEN)) for here in (*half, *other)
        ]
        for node, there in zip(nodes, (*half[::-1], *other[::-1]), strict=True):
            await node.parts.peers.merge_relay_info(info(there))
        await until(lambda: all(node.parts.links.live() for node in nodes))
        for node, others in zip(nodes, (other, other, half, half), strict=True):
            await give_up(node, others)

        def across() -> set[Did]:
            linked = {link.peer for node in nodes[:2] for link in node.parts.links.live()}
            return linked & {there.did for there in other}

        await until(across, 20)


async def test_a_dead_host_is_not_dialled_often_however_many_relays_claim_it(monkeypatch):
    for name in ("FIRST_BACKOFF_S", "LOGIN_DIAL_S"):
        monkeypatch.setattr(links_module, name, 60.0)
    dead = "http://127.0.0.1:1"

    class Dead(Dialler):
        async def websocket(self, origin):
            self.dialled.append(origin)
            if origin == dead:
                raise UnavailableError(ErrorCode.PEER_UNREACHABLE, "nobody is there")
            return await super().websocket(origin)

    dialler, chooser = Dead(), Chooser()
    async with (
        running_node(federation="open") as first,
        running_node(federation="open") as second,
        running_links(Links(new_key(), dialler, chooser), chooser) as links,
    ):
        chooser.wanted = [(new_key().did, dead) for _ in range(10)]
        for node in (first, second):
            await until(lambda: dead in dialler.dialled)
            chooser.wanted = [*chooser.wanted, (node.parts.key.did, node.url)]
            await until(lambda did=node.parts.key.did: links.to(did))
        assert dialler.dialled.count(dead) == 1


async def test_a_relay_that_was_missed_for_hours_leaves_the_links_to_others_alone():
    dialler, chooser = Dialler(), Chooser()
    dead = (new_key().did, "http://127.0.0.1:1")
    async with (
        running_node(federation="open") as node,
        running_links(Links(new_key(), dialler, chooser), chooser) as links,
    ):
        there = node.parts.key.did
        chooser.wanted = [(there, node.url)]
        await until(lambda: links.to(there))
        gone = UnavailableError(ErrorCode.PEER_UNREACHABLE, "nobody is there")
        for _ in range(1_100):
            links._on_dial_failed(*dead, dead[1], gone)
        assert links._is_cooling(dead[1])
        link = links.to(there)
        assert link is not None
        assert await links.reach(there, node.url) is link


async def test_a_bug_about_one_relay_leaves_the_links_to_others_alone():
    class Failing(Chooser):
        fails = False

        def due_dials(self, linked):
            if self.fails:
                raise ZeroDivisionError
            return super().due_dials(linked)

        def on_dial_failed(self, relay, why, url=None):
            super().on_dial_failed(relay, why, url)
            raise ZeroDivisionError

    chooser = Failing()
    async with (
        running_node(federation="open") as node,
        running_links(Links(new_key(), Dialler(), chooser), chooser) as links,
    ):
        there = node.parts.key.did
        chooser.wanted = [(there, node.url)]
        await until(lambda: links.to(there))
        link = links.to(there)
        before = metrics.INTERNAL._value.get()
        with pytest.raises(UnavailableError):
            await links.reach(new_key().did, "http://127.0.0.1:1")
        missed = metrics.INTERNAL._value.get()
        assert missed > before
        chooser.fails = True
        links.reconcile_now()
        await until(lambda: metrics.INTERNAL._value.get() > missed)
        assert links.to(there) is link


# ---------------------------------------------------------------- joining


@pytest.mark.parametrize("federation", ["open", "closed"])
async def test_a_join_that_fails_leaves_nothing_behind_and_tells_nobody(federation):
    a, b = places(2)
    async with (
        web_page() as dead,
        relay_at(a, [b], federation=federation) as node,
        relay_at(b, [a], federation=federation),
    ):
        peers = node.parts.peers
        await until(node.parts.links.live)
        before = peers.rows
        status, answer = await ask(node.admin, "POST", "/join", json={"url": dead.url})
        assert (status, answer["error"]) == (502, ErrorCode.PEER_UNREACHABLE)
        assert "not added" in answer["detail"]
        assert dead.did not in peers.rows
        assert dead.did not in peers.members
        assert [row.did for row in await node.parts.store.peers.all()] == [*before]
        assert not peers.may_contact(dead.did) or federation == "open"
        news = map(relay_info.parse, node.parts.exchange.pending)
        assert dead.did not in {one.did for one in news}


async def test_a_join_that_the_other_relay_refuses_says_so_and_leaves_nothing_behind():
    a, b = places(2)
    async with relay_at(a) as node, relay_at(b) as other:
        status, answer = await ask(node.admin, "POST", "/join", json={"url": b.url})
        assert (status, answer["error"]) == (403, ErrorCode.NOT_FEDERATED)
        assert "peers add" in answer["detail"]
        assert node.parts.peers.rows == {}
        await ask(other.admin, "POST", "/peers", json={"url": a.url, "did": a.did})
        status, answer = await ask(node.admin, "POST", "/join", json={"url": b.url})
        assert (status, answer["peer"]["linked"], answer["peer"]["state"]) == (200, True, "alive")
        assert node.parts.peers.rows[b.did].standing == "added"


async def test_a_join_that_is_interrupted_leaves_nothing_behind(monkeypatch):
    [a] = places(1)
    async with web_page(silent=True) as dead, relay_at(a) as node:
        dials = node.parts.links._dials
        joining = asyncio.create_task(node.parts.peer_admin.join(dead.url))
        await until(lambda: dead.url in dials)
        joining.cancel()
        await asyncio.wait([joining])
        assert node.parts.peers.rows == {}
        assert not node.parts.peers.may_contact(dead.did)
        monkeypatch.setattr(admin, "JOIN_S", 0.05)
        with pytest.raises(RelayError) as caught:
            await node.parts.peer_admin.join(dead.url)
        assert caught.value.code is ErrorCode.PEER_UNREACHABLE
        assert node.parts.peers.rows == {}
        assert not node.parts.peers.may_contact(dead.did)


async def test_a_join_of_a_relay_that_is_blocked_is_refused():
    a, b = places(2)
    async with relay_at(a, **OPEN) as node, relay_at(b, **OPEN):
        await ask(node.admin, "POST", f"/peers/{b.did}/block", json={})
        _, answer = await ask(node.admin, "POST", "/join", json={"url": b.url})
        assert answer["error"] == ErrorCode.BLOCKED
        assert node.parts.peers.rows[b.did].standing == "blocked"


# ---------------------------------------------------------------- relays that a relay names


async def test_a_relay_that_was_added_and_never_answered_is_named_to_nobody():
    [a] = places(1)
    async with web_page() as dead, relay_at(a, **OPEN) as node:
        status, _ = await ask(node.admin, "POST", "/peers", json={"url": dead.url})
        assert status == 200
        peers = node.parts.peers
        assert peers.rows[dead.did].info
        await until(lambda: node.parts.links.backoff(dead.did, dead.url))
        assert await named(a) == {a.did}
        # it stays added here, and its own word is no proof that anybody can reach it
        async with peer(a.url, a.did, dead.key) as there:
            await there.say(Gossip(relays=(info(dead, ago=-61),)))
            await there.say(Want("w", view=True))
            await there.hear()
        assert await named(a) == {a.did}
        assert peers.rows[dead.did].standing == "added"


async def test_a_relay_that_others_named_is_passed_on_only_once_it_was_reached(monkeypatch):
    a, b = places(2)
    async with relay_at(a, **OPEN) as node:
        async with peer(a.url, a.did) as there:
            await there.say(Gossip(relays=(info(b, ago=100),)))
            await until(lambda: b.did in node.parts.peers.rows)
        assert await named(a) == {a.did}
        assert node.parts.exchange.pending == []
        async with relay_at(b, **OPEN):
            # it knows nobody: the other relay dials it by itself
            await until(lambda: node.parts.peers.is_proven(b.did), 20)
            assert await named(a) == {a.did, b.did}
        for _ in range(2 * membership.MAX_FAILURES):
            node.parts.peers.on_dial_failed(b.did, NOBODY)
        assert await named(a) == {a.did}, "it is gone"
        # the negative control: it is the proof that is missing, nothing else
        monkeypatch.setattr(Peers, "is_proven", lambda _self, did: bool(did))
        assert await named(a) == {a.did, b.did}


async def test_a_relay_with_another_address_is_named_once_it_was_reached_there():
    a, b, elsewhere = places(3)
    async with relay_at(a, **OPEN) as node, relay_at(b, **OPEN):
        peers = node.parts.peers
        assert await peers.merge_relay_info(info(b, ago=100))
        await until(lambda: peers.is_proven(b.did))
        moved = Place(b.key, elsewhere.port)
        assert await peers.merge_relay_info(info(moved, ago=-61))
        assert not peers.is_proven(b.did)
