"""Policy and knowledge of peers, the cost of judging records, and the bounds of a bad relay."""

from __future__ import annotations

import asyncio

import pytest

from relay import clock
from relay.directory.budget import Budget
from relay.directory.change_log import RecordChangeReader
from relay.directory.publish import Directory
from relay.inbox.keys import DidKeys
from relay.inbox.model.types import InboxLimits
from relay.peering import peers as peering
from relay.peering.links import Links
from relay.peering.model.membership import MAX_DESIRED_LINKS
from relay.peering.peers import Peers, ReceivedView
from relay.protocol import relay_info
from relay.protocol.errors import ErrorCode, ProtocolError, RelayError
from relay.protocol.frames import View
from relay.reference.memory_store import MemoryStore
from tests.federation.linked_nodes import (
    Chooser,
    Dialler,
    Place,
    now,
    places,
    record_of,
    relay_at,
    running_links,
    until,
    until_held,
)
from tests.support.nodes import new_key, running_node

pytestmark = pytest.mark.timeout(60)


def memory() -> MemoryStore:
    return MemoryStore(InboxLimits(), clock.now)


def info(key, *, ago: float = 0, url: str = "https://relay.example") -> str:
    reply = relay_info.RelayDescription(url, "s", "1", {}, 1, "open", "open", "fsync")
    return relay_info.sign(key, reply, now() - ago)


async def known(federation="open", store=None) -> Peers:
    made = Peers(new_key().did, federation, frozenset(), (store or memory()).peers)
    await made.load()
    return made


# ---------------------------------------------------------------- what others tell


async def test_relay_information_is_learned_once_and_its_newer_word_moves_it():
    mine, other = await known(), new_key()
    assert await mine.merge_relay_info(info(other, ago=100))
    assert await mine.merge_relay_info(info(other, ago=100)) is None
    assert await mine.merge_relay_info(info(other, ago=200)) is None
    assert await mine.merge_relay_info(info(other, url="https://new.example"))
    assert mine.rows[other.did].url == "https://new.example"
    assert mine.rows[other.did].standing == "learned"
    assert other.did in mine.members


async def test_new_information_of_a_relay_counts_once_a_minute():
    mine, other = await known(), new_key()
    assert await mine.merge_relay_info(info(other, ago=59))
    assert await mine.merge_relay_info(info(other)) is None


async def test_the_operators_word_on_where_a_relay_is_stands_over_its_own():
    mine, other = await known(), new_key()
    await mine.add(other.did, "https://added.example")
    assert await mine.merge_relay_info(info(other, url="https://elsewhere.example"))
    assert mine.rows[other.did].url == "https://added.example"
    assert mine.rows[other.did].info


@pytest.mark.parametrize("action", ["blocked", "removed"])
async def test_news_of_a_relay_undoes_nothing_that_the_operator_did_at_another_node(action):
    store, other = memory(), new_key()
    here, there = await known("closed", store), await known("closed", store)
    await there.add(other.did, "https://added.example", info(other, ago=100))
    await here.refresh()
    await (there.block if action == "blocked" else there.remove)(other.did)
    assert await here.merge_relay_info(info(other)) is None
    assert not here.may_contact(other.did)
    await there.refresh()
    assert not there.may_contact(other.did)


async def test_forged_expired_and_own_information_changes_nothing():
    mine, other = await known(), new_key()
    head, payload, _ = info(other).split(".")
    with pytest.raises(ProtocolError):
        await mine.merge_relay_info(f"{head}.{payload}.{info(new_key()).rpartition('.')[2]}")
    assert await mine.merge_relay_info(info(other, ago=8 * 24 * 3600)) is None
    assert mine.rows == {}


async def test_a_thousand_relays_are_learned_and_one_that_is_gone_makes_room(monkeypatch):
    monkeypatch.setattr(peering, "MAX_LEARNED", 3)
    mine = await known()
    first = new_key()
    for key in (first, new_key(), new_key()):
        assert await mine.merge_relay_info(info(key))
    late = new_key()
    assert await mine.merge_relay_info(info(late)) is None
    for _ in range(10):
        mine.on_dial_failed(first.did, RelayError(ErrorCode.PEER_UNREACHABLE))
    assert await mine.merge_relay_info(info(late))
    assert first.did not in mine.rows


async def test_where_no_room_is_left_a_frame_of_relays_holds_up_nobody(monkeypatch):
    monkeypatch.setattr(peering, "MAX_LEARNED", 500)
    mine = await known()
    for key in [new_key() for _ in range(500)]:
        assert await mine.merge_relay_info(info(key))
    late = [info(new_key()) for _ in range(64)]
    began = clock.cpu()
    for compact in late:
        assert await mine.merge_relay_info(compact) is None
    # reading all that are known for each of these takes several times as long
    assert clock.cpu() - began < 0.15


async def test_of_relays_that_are_not_written_down_nothing_is_remembered():
    mine, added = await known(), new_key().did
    await mine.add(added, "https://added.example")
    for did in [added, *(new_key().did for _ in range(20))]:
        mine.introduced[did] += 1
        mine.views[did] = ReceivedView(View("r", "alive", 0, 0, None), 0)
    await mine.refresh()
    assert list(mine.introduced) == list(mine.views) == [added]


async def test_added_relays_are_linked_however_many_others_are_named():
    mine = await known()
    added = [new_key().did for _ in range(3)]
    for did in added:
        await mine.add(did, "https://added.example")
    for _ in range(MAX_DESIRED_LINKS * 3):
        await mine.merge_relay_info(info(new_key()))
    chosen = {did for did, _ in mine.desired_links()}
    assert set(added) <= chosen
    assert len(chosen) <= MAX_DESIRED_LINKS + len(added)


async def test_a_relay_is_never_a_peer_of_itself():
    store = memory()
    own = new_key()
    mine = Peers(own.did, "open", frozenset(), store.peers)
    await mine.load([(own.did, "https://me.example")])
    assert await mine.merge_relay_info(info(own)) is None
    assert mine.rows == {}
    with pytest.raises(RelayError) as caught:
        mine.require_contact(own.did)
    assert caught.value.code is ErrorCode.NOT_FEDERATED


# ---------------------------------------------------------------- what it costs


async def test_what_was_spent_is_paid_back_by_resting():
    began = clock.monotonic()
    spent, budget = 0.1, Budget(0.25)
    with budget.spending():
        end = clock.cpu() + spent
        while clock.cpu() < end:
            pass
    await budget.rest()
    assert clock.monotonic() - began >= spent / 0.25 * 0.9
    assert budget.spent_s >= spent


@pytest.mark.alone
async def test_fetched_records_cost_no_more_than_a_quarter_of_a_core():
    store, home = memory(), Place(new_key(), 1)
    directory = Directory(new_key().did, store.records, DidKeys())
    made = [record_of(new_key(), home) for _ in range(1_500)]
    budget, free = Budget(), Budget(1.0)
    began = clock.monotonic()
    await directory.merge_from_peer(made, home.did, budget)
    took = clock.monotonic() - began
    assert budget.spent_s <= 0.25 * took + 0.1
    changes = RecordChangeReader(store.records)
    await changes.read()
    assert len(changes.index) == len(made)
    # the negative control: the same without a budget hardly rests
    other = Directory(new_key().did, memory().records, DidKeys())
    await other.merge_from_peer(made, home.did, free)
    assert free.rested_s < budget.rested_s / 2


# ---------------------------------------------------------------- what it cannot hold up


async def test_a_bug_about_one_relay_ends_no_link_to_another():
    class Broken(Dialler):
        async def websocket(self, origin):
            if origin.endswith(":1"):
                raise ZeroDivisionError
            return await super().websocket(origin)

    chooser = Chooser()
    async with (
        running_node(federation="open") as node,
        running_links(Links(new_key(), Broken(), chooser), chooser) as links,
    ):
        wrong = new_key().did
        chooser.wanted = [(wrong, "http://127.0.0.1:1"), (node.parts.key.did, node.url)]
        await until(lambda: ("missed", wrong, ErrorCode.INTERNAL) in chooser.notes)
        await until(links.live)


async def test_a_relay_that_takes_connections_and_says_nothing_holds_up_no_other():
    async def mute(reader, writer):
        await reader.read(-1)
        writer.close()

    server = await asyncio.start_server(mute, "127.0.0.1", 0)
    async with server:
        a, b = places(2)
        silent = Place(new_key(), server.sockets[0].getsockname()[1])
        agent = new_key()
        async with relay_at(a, [silent, b]) as first, relay_at(b, [silent, a]) as second:
            record = record_of(agent, a)
            await first.parts.directory.publish(record, only=agent.did)
            await until_held(second, agent, record)
            assert silent.did not in {link.peer for link in first.parts.links.live()}
