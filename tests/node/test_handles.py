"""Names under a relay, and handles of anybody, over real HTTP (PROTOCOL.md §7.5)."""

from __future__ import annotations

import time

import httpx2
import pytest

from relay import clock
from relay.directory.local_handles import RESERVED_S, SERVED_S, LocalHandles
from relay.directory.ports import RecordRow
from relay.directory.remote_handles import RemoteHandles
from relay.inbox.model.types import InboxLimits
from relay.peering.dialer import Dialer
from relay.protocol import endpoint_record, handles
from relay.protocol.did import SigningKey
from relay.protocol.endpoint_record import Home
from relay.protocol.handles import LookupResult
from relay.protocol.ids import Did, Timestamp
from relay.reference.memory_store import MemoryStore
from tests.support.nodes import RunningNode, new_key, running_node

ORIGIN = "https://relay.example"
HANDLE = handles.parse("alice@relay.example")
DAY = 24 * 3600


def client(node: RunningNode) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(base_url=node.url, timeout=8)


def authority(node: RunningNode) -> str:
    return node.url.removeprefix("http://")


async def publish(node: RunningNode, key: SigningKey, *listed: str) -> None:
    home = Home(node.parts.key.did, node.url)
    now = Timestamp(time.time())
    record = endpoint_record.sign(key, [home], now=now, handles=listed)
    async with client(node) as http:
        answer = await http.put(f"/v1/agents/{key.did}", json={"record": record})
        assert answer.json()["stored"], answer.text


async def finger(node: RunningNode, handle: str) -> httpx2.Response:
    async with client(node) as http:
        return await http.get("/.well-known/webfinger", params={"resource": f"acct:{handle}"})


async def test_an_agent_gets_the_name_that_its_record_lists():
    alice = new_key()
    async with running_node() as node:
        handle = f"alice@{authority(node)}"
        assert (await finger(node, handle)).status_code == 404
        await publish(node, alice, handle)
        answer = await finger(node, handle)
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "application/jrd+json"
        assert answer.headers["access-control-allow-origin"] == "*"
        links = [{"rel": "self", "href": alice.did}]
        assert answer.json() == {"subject": f"acct:{handle}", "links": links}
        async with client(node) as http:
            said = (await http.get(f"/v1/handles/{handle.upper()}")).json()
        assert (said["state"], said["did"], said["verified"]) == ("found", alice.did, True)
        assert endpoint_record.parse(said["record"]).did == alice.did


async def test_a_name_that_is_taken_stays_with_who_has_it():
    alice, mallory = new_key(), new_key()
    async with running_node() as node:
        handle = f"alice@{authority(node)}"
        await publish(node, alice, handle)
        await publish(node, mallory, handle)
        assert (await finger(node, handle)).json()["links"][0]["href"] == alice.did


async def test_whom_registration_does_not_admit_gets_no_name():
    alice, mallory = new_key(), new_key()
    async with running_node(registration="allow", allow=(alice.did,)) as node:
        handles_of = {
            key: f"{name}@{authority(node)}" for key, name in ((alice, "a"), (mallory, "m"))
        }
        for key, handle in handles_of.items():
            await publish(node, key, handle)
        answers = [(await finger(node, handle)).status_code for handle in handles_of.values()]
        assert answers == [200, 404]


async def test_names_of_the_operator_and_of_others_are_not_given():
    alice = new_key()
    async with running_node() as node:
        admin, elsewhere = f"admin@{authority(node)}", "alice@relay.example"
        await publish(node, alice, admin, elsewhere, "not a handle", "agent.example")
        assert (await finger(node, admin)).status_code == 404
        assert (await finger(node, elsewhere)).status_code == 404
        assert await node.parts.store.handles.all() == []


@pytest.mark.parametrize("resource", ["", "acct:", "acct:x", "https://x/", "acct:a b@x", "a" * 400])
async def test_what_is_no_handle_is_a_bad_request(resource: str):
    async with running_node() as node, client(node) as http:
        answer = await http.get("/.well-known/webfinger", params={"resource": resource})
        assert (answer.status_code, answer.json()["error"]) == (400, "bad_frame")


async def test_a_stranger_cannot_make_the_relay_ask_around():
    async with running_node() as node, client(node) as http:
        answer = await http.get("/v1/handles/alice@127.0.0.1:1")
        assert answer.status_code in {400, 401}


async def test_one_relay_finds_a_name_of_another_by_webfinger():
    alice = new_key()
    async with running_node() as node:
        handle = handles.parse(f"alice@{authority(node)}")
        naming = RemoteHandles(Dialer(["127.0.0.0/8"]))
        assert (await naming.resolve(handle)).state == "absent"
        await publish(node, alice, str(handle))
        assert (await RemoteHandles(Dialer(["127.0.0.0/8"])).resolve(handle)) == LookupResult(
            "found", alice.did
        )
        # the same, where nobody has named this machine: nothing is dialled
        assert (await RemoteHandles(Dialer()).resolve(handle)).state == "unreadable"


# ---------------------------------------------------------------- coming and going


class World:
    """A store, a clock to be turned, and names over both."""

    def __init__(self) -> None:
        self.now = Timestamp(1_700_000_000.0)
        self.store = MemoryStore(InboxLimits(), clock.now)
        self.names = LocalHandles(ORIGIN, self.store.handles, self.store.records, lambda: self.now)
        self.us, self.them = new_key().did, new_key().did

    async def publish(
        self, key: SigningKey, *listed: str, home: Did | None = None
    ) -> endpoint_record.EndpointRecord:
        """What a directory does with a record: keep it, then give names."""
        home = home or self.us
        compact = endpoint_record.sign(key, [Home(home, ORIGIN)], now=self.now, handles=listed)
        record = endpoint_record.parse(compact)
        row = RecordRow(record.version, compact, home == self.us)
        owner = endpoint_record.parse_did(key.did).agent_key
        [merged] = await self.store.records.merge([(owner, row)])
        assert merged.outcome == "newer"
        if home == self.us:
            await self.names.claim(record)
        return record

    async def whose(self) -> Did | None:
        return (await self.names.resolve(HANDLE)).did


async def test_a_name_leads_to_an_agent_that_left_for_thirty_days():
    world, alice = World(), new_key()
    await world.publish(alice, str(HANDLE))
    world.now = Timestamp(world.now + DAY)
    await world.publish(alice, str(HANDLE), home=world.them)
    assert await world.whose() == alice.did
    world.now = Timestamp(world.now + SERVED_S - 1)
    assert await world.whose() == alice.did
    world.now = Timestamp(world.now + 1)
    assert await world.whose() is None


async def test_who_left_counts_from_its_record_not_from_the_first_question():
    world, alice = World(), new_key()
    await world.publish(alice, str(HANDLE))
    world.now = Timestamp(world.now + DAY)
    await world.publish(alice, str(HANDLE), home=world.them)
    world.now = Timestamp(world.now + SERVED_S)
    assert await world.whose() is None


async def test_a_name_that_was_left_is_not_given_to_another_for_a_year():
    world, alice, bob = World(), new_key(), new_key()
    await world.publish(alice, str(HANDLE))
    world.now = Timestamp(world.now + DAY)
    await world.publish(alice, home=world.them)
    world.now = Timestamp(world.now + RESERVED_S - 1)
    await world.publish(bob, str(HANDLE))
    assert await world.whose() is None
    world.now = Timestamp(world.now + 1)
    await world.publish(bob, str(HANDLE))
    assert await world.whose() == bob.did


async def test_a_name_that_nobody_asked_about_is_free_after_a_year_too():
    world, alice, bob = World(), new_key(), new_key()
    await world.publish(alice, str(HANDLE))
    world.now = Timestamp(world.now + DAY)
    await world.publish(alice, home=world.them)
    world.now = Timestamp(world.now + RESERVED_S)
    await world.publish(bob, str(HANDLE))
    assert await world.whose() == bob.did


async def test_who_comes_back_has_its_name_again():
    world, alice = World(), new_key()
    await world.publish(alice, str(HANDLE))
    world.now = Timestamp(world.now + DAY)
    await world.publish(alice, str(HANDLE), home=world.them)
    world.now = Timestamp(world.now + SERVED_S)
    assert await world.whose() is None
    await world.publish(alice, str(HANDLE))
    assert await world.whose() == alice.did
    row = await world.store.handles.get("alice")
    assert row is not None
    assert row.left_at is None


async def test_a_name_that_the_record_lists_no_more_leads_nowhere_and_stays_its_agents():
    world, alice, bob = World(), new_key(), new_key()
    await world.publish(alice, str(HANDLE))
    world.now = Timestamp(world.now + DAY)
    await world.publish(alice)
    assert await world.whose() is None
    await world.publish(bob, str(HANDLE))
    assert await world.whose() is None
    world.now = Timestamp(world.now + DAY)
    await world.publish(alice, str(HANDLE))
    assert await world.whose() == alice.did
