"""Resolving an agent's record: own store first, then other relays, within a budget."""

from __future__ import annotations

import asyncio
import time

import pytest

from relay import clock
from relay.directory.publish import Directory, RecordLookup
from relay.directory.remote_handles import RemoteHandles
from relay.directory.resolve import ASKER_BURST, MAX_ASKED, RecordResolver
from relay.forwarding.routing import Routing
from relay.inbox.keys import DidKeys
from relay.inbox.model.types import InboxLimits
from relay.limits import TokenBuckets
from relay.peering.dialer import Dialer
from relay.protocol import endpoint_record
from relay.protocol.endpoint_record import Home
from relay.protocol.errors import ErrorCode, RelayError, UnavailableError
from relay.protocol.frames import Resolve, Resolved
from relay.protocol.ids import Did, NodeId, Timestamp
from relay.reference.memory_store import MemoryStore
from relay.store.ports import Store
from tests.support.nodes import new_key

ME, OTHER, THIRD, AGENT = new_key(), new_key(), new_key(), new_key()


def record(*homes: Home, age_s: int = 0, key=AGENT) -> str:
    return endpoint_record.sign(key, homes, now=Timestamp(time.time() - age_s))


def home(key, prio: int = 0) -> Home:
    return Home(key.did, "https://relay.example", prio)


class Links:
    """Other relays behind the port: each sends its scripted answer, or nothing."""

    def __init__(self, *, allowed: bool = True, **says: Resolved | None) -> None:
        self.says = {Did(did): reply for did, reply in says.items()}
        self.asked: list[Did] = []
        self.allowed = allowed
        self.missing = 0
        self.gate: asyncio.Event | None = None
        self.was_asked = asyncio.Event()

    def allows(self, relay: Did) -> bool:
        return self.allowed and bool(relay)

    def live(self) -> list[Link]:
        return [Link(did, self) for did in self.says]

    def wanted(self) -> int:
        return len(self.says) + self.missing

    async def reach(self, relay: Did, url: str, *, handoff: bool = False) -> Link:
        assert not handoff
        if relay not in self.says:
            raise UnavailableError(ErrorCode.PEER_UNREACHABLE, url)
        return Link(relay, self)


class Link:
    def __init__(self, peer: Did, links: Links) -> None:
        self.peer = peer
        self._links = links

    async def ask(self, make) -> Resolved:
        assert isinstance(make("r"), Resolve)
        self._links.asked.append(self.peer)
        self._links.was_asked.set()
        if self._links.gate is not None:
            await self._links.gate.wait()
        reply = self._links.says[self.peer]
        if reply is None:
            raise UnavailableError(ErrorCode.PEER_UNREACHABLE, "no answer")
        return reply

    async def submit(self, envelopes, *, hops=(), marked=()):
        raise NotImplementedError

    def push(self, gossip) -> bool:
        raise NotImplementedError


def found(compact: str) -> Resolved:
    return Resolved("r", "found", compact)


ABSENT, UNREADABLE = Resolved("r", "absent"), Resolved("r", "unreadable")


async def resolving(links: Links, *held: str) -> RecordResolver:
    store: Store = MemoryStore(InboxLimits(), clock.now)
    await store.start(relay=ME.did, node=NodeId("n"))
    directory = Directory(ME.did, store.records, DidKeys())

    async def keep(compact: str, peer: Did) -> None:
        assert peer
        await directory.publish(compact, owner=endpoint_record.parse(compact).did)

    for compact in held:
        await keep(compact, ME.did)
    return RecordResolver(ME.did, directory, links, keep, RemoteHandles(Dialer()))


async def test_what_is_held_and_fresh_asks_nobody():
    links = Links(**{OTHER.did: ABSENT})
    resolver = await resolving(links, record(home(OTHER)))
    assert (await resolver.resolve(AGENT.did, around=True)).state == "found"
    assert links.asked == []


async def test_who_asks_from_outside_is_answered_from_the_own_store():
    links = Links(**{OTHER.did: found(record(home(OTHER)))})
    resolver = await resolving(links)
    assert await resolver.resolve(AGENT.did) == RecordLookup("absent")
    assert links.asked == []


async def test_a_peer_is_asked_and_its_record_is_stored():
    links = Links(**{OTHER.did: found(record(home(OTHER)))})
    resolver = await resolving(links)
    assert (await resolver.resolve(AGENT.did, around=True)).state == "found"
    assert (await resolver.resolve(AGENT.did)).state == "found"


async def test_what_is_not_asked_for_want_of_the_relays_own_rate_costs_its_asker_nothing():
    links = Links(**{OTHER.did: ABSENT})
    resolver = await resolving(links)
    resolver._all = TokenBuckets(1e-9, 0)
    for _ in range(int(ASKER_BURST)):
        assert (
            await resolver.resolve(AGENT.did, around=True, asker=THIRD.did)
        ).state == "unreadable"
    resolver._all = TokenBuckets(1e-9, 1)
    assert (await resolver.resolve(AGENT.did, around=True, asker=THIRD.did)).state == "absent"
    assert links.asked == [OTHER.did]


async def test_found_absent_and_unreadable_stay_three_answers():
    for says, state in [
        ({OTHER.did: ABSENT}, "absent"),
        ({OTHER.did: UNREADABLE}, "unreadable"),
        ({OTHER.did: None}, "unreadable"),
        ({OTHER.did: None, THIRD.did: ABSENT}, "absent"),
        ({}, "absent"),
    ]:
        resolver = await resolving(Links(**says))
        assert (await resolver.resolve(AGENT.did, around=True)).state == state, says


async def test_with_no_link_up_nobody_can_say_that_an_agent_is_nowhere():
    links = Links()
    links.missing = 1
    resolver = await resolving(links)
    assert (await resolver.resolve(AGENT.did, around=True)).state == "unreadable"


async def test_a_stale_record_is_refreshed_at_the_homes_it_names_or_used_as_it_is():
    old = record(home(OTHER), age_s=8 * 24 * 3600)
    new = record(home(THIRD))
    for says, fresh in [({OTHER.did: found(new)}, True), ({OTHER.did: None}, False)]:
        links = Links(**says)
        resolver = await resolving(links, old)
        answer = await resolver.resolve(AGENT.did, around=True)
        assert (answer.state, answer.stale) == ("found", not fresh)
        assert links.asked == [OTHER.did]


async def test_a_record_of_somebody_else_is_no_answer():
    links = Links(**{OTHER.did: found(record(home(OTHER), key=new_key()))})
    resolver = await resolving(links)
    assert (await resolver.resolve(AGENT.did, around=True)).state == "unreadable"


async def test_a_record_that_a_full_directory_refused_is_not_called_absent():
    links = Links(**{OTHER.did: found(record(home(OTHER)))})
    resolver = await resolving(links)

    async def is_full(compact: str, peer: Did) -> None:
        assert compact
        assert peer

    resolver.on_record_reply = is_full
    assert (await resolver.resolve(AGENT.did, around=True)).state == "unreadable"


async def test_many_askers_of_one_agent_make_one_question():
    links = Links(**{OTHER.did: ABSENT})
    links.gate = asyncio.Event()
    resolver = await resolving(links)
    asking = [asyncio.ensure_future(resolver.resolve(AGENT.did, around=True)) for _ in range(20)]
    await links.was_asked.wait()
    links.gate.set()
    assert {answer.state for answer in await asyncio.gather(*asking)} == {"absent"}
    assert len(links.asked) == 1


async def test_no_more_than_three_are_asked_and_an_absent_agent_not_at_once_again():
    links = Links(**{new_key().did: ABSENT for _ in range(9)})
    resolver = await resolving(links)
    for _ in range(3):
        assert (await resolver.resolve(AGENT.did, around=True)).state == "absent"
    assert len(links.asked) == MAX_ASKED


async def test_mail_goes_to_the_preferred_home_of_another_relay():
    compact = record(home(ME), home(OTHER, 2), home(THIRD, 1))
    links = Links()
    routing = Routing(await resolving(links, compact), links)
    assert await routing.find(AGENT.did) == THIRD.agent_key
    assert routing.known(AGENT.agent_key) == THIRD.agent_key
    assert [one.did for one in await routing.all(AGENT.did)] == [THIRD.did, OTHER.did]


@pytest.mark.parametrize(
    ("held", "allowed", "says", "code"),
    [
        ((), True, {}, ErrorCode.UNKNOWN_INBOX),
        ((), True, {OTHER.did: None}, ErrorCode.PEER_UNREACHABLE),
        ((record(home(OTHER)),), False, {}, ErrorCode.NOT_FEDERATED),
        ((record(home(ME)),), True, {}, ErrorCode.UNKNOWN_INBOX),
    ],
    ids=["nobody knows", "nobody can tell", "not ours", "only here"],
)
async def test_where_mail_cannot_go_has_a_name(held, allowed, says, code):
    links = Links(allowed=allowed, **says)
    routing = Routing(await resolving(links, *held), links)
    with pytest.raises(RelayError) as caught:
        await routing.find(AGENT.did)
    assert caught.value.code is code
    assert routing.known(AGENT.agent_key) is None


async def test_an_agent_that_asks_for_anybody_leaves_others_their_questions():
    links = Links(**{OTHER.did: ABSENT})
    resolver = await resolving(links)
    greedy = [
        (await resolver.resolve(new_key().did, around=True, asker=ME.did)).state for _ in range(60)
    ]
    assert greedy[:50] == ["absent"] * 50
    assert greedy[-1] == "unreadable"
    assert (await resolver.resolve(new_key().did, around=True, asker=AGENT.did)).state == "absent"
    assert (await resolver.resolve(new_key().did, around=True)).state == "absent"
