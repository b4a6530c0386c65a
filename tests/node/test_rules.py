"""Rules, contacts and strangers over a real relay (PROTOCOL.md §5.5, GUARANTEES.md R7)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx2
import pytest

from relay import clock
from relay.client import Agent, RejectedError, StrangerQuotaError, TooLargeError
from relay.inbox.client_ip import network_of
from relay.inbox.contacts import NO_INBOX_S, Contacts
from relay.inbox.model.types import Accepted, InboxLimits
from relay.protocol import endpoint_record
from relay.protocol.did import SigningKey
from relay.protocol.endpoint_record import Home
from relay.protocol.errors import ErrorCode, Refusal, UnavailableError
from relay.protocol.frames import Error, Ruled, Rules, Submit, Submitted
from relay.protocol.ids import AgentKey, Epoch, Seq, Timestamp
from relay.reference.memory_store import MemoryStore
from tests.node.test_http import client, log_in, submit
from tests.store.worlds import entry
from tests.support.nodes import Speaker, make_envelope, new_key, running_node, speaker
from tests.support.patience import within
from tests.support.relay_process import relay_process

pytestmark = pytest.mark.timeout(120)


async def rules(agent: Speaker, **changes: Any) -> Any:
    await agent.say(Rules("w", **changes))
    return await agent.hear(Ruled, Error)


async def send(agent: Speaker, *wires: bytes) -> Submitted:
    await agent.say(Submit("r", list(wires)))
    return await agent.hear(Submitted)


async def test_an_agent_says_whom_its_inbox_takes_envelopes_from():
    async with running_node() as node, speaker(node.url) as alice, speaker(node.url) as bob:
        assert await rules(bob) == Ruled("w", "accept", (), (), 0)
        assert (await rules(bob, deny=(alice.key.did,))).deny == (alice.key.did,)
        [no] = (await send(alice, make_envelope(alice.key, bob.key.did).wire)).rejected
        assert (no.error, no.stored) == (ErrorCode.BLOCKED, "no")
        await rules(bob, forget=(alice.key.did,), first_contact="refuse")
        [no] = (await send(alice, make_envelope(alice.key, bob.key.did).wire)).rejected
        assert (no.error, no.stored) == (ErrorCode.NOT_ADMITTED, "no")
        assert (await rules(bob, allow=(alice.key.did,))).allow == (alice.key.did,)
        assert (await send(alice, make_envelope(alice.key, bob.key.did).wire)).receipt


async def test_a_wish_that_is_wrong_is_answered_and_changes_nothing():
    async with running_node() as node, speaker(node.url) as bob:
        carol = new_key().did
        for wish in (
            {"allow": ("nobody",)},
            {"allow": (carol,), "deny": (carol,)},
            {"allow": (carol, carol)},
        ):
            no = await rules(bob, first_contact="refuse", **wish)
            assert (no.error, no.ref) == (ErrorCode.BAD_FRAME, "w")
        no = await rules(bob, deny=("did:web:example.org",))
        assert no.error is ErrorCode.UNSUPPORTED
        assert await rules(bob) == Ruled("w", "accept", (), (), 0)


async def test_a_send_only_session_has_no_rules():
    carol, other = new_key(), new_key()
    async with running_node() as node:
        home = [Home(other.did, "https://elsewhere.example")]
        record = endpoint_record.sign(carol, home, now=clock.now())
        async with speaker(node.url, carol, record=record) as away:
            no = await rules(away, deny=(other.did,))
            assert (no.error, no.ref) == (ErrorCode.UNKNOWN_INBOX, "w")


async def test_rules_are_changed_and_read_over_http():
    async with running_node() as node, client(node.url) as http:
        alice, bob = new_key(), await log_in(http, new_key())
        at = "/v1/inbox/rules"
        wish = {"deny": [alice.did], "first_contact": "refuse"}
        changed = await http.patch(at, json=wish, headers=bob.bearer)
        assert changed.json() == {
            "first_contact": "refuse", "allow": [], "deny": [alice.did], "contacts": 0,
        }  # fmt: skip
        assert (await http.get(at, headers=bob.bearer)).json() == changed.json()
        [no] = (await submit(http, make_envelope(alice, bob.key.did).wire))["rejected"]
        assert no["error"] == "blocked"
        wrong = await http.patch(at, json={"deny": "all"}, headers=bob.bearer)
        assert (wrong.status_code, wrong.json()["error"]) == (400, "bad_frame")
        assert (await http.get(at)).status_code == 401


async def test_the_sdk_asks_and_changes():
    async with running_node() as node:
        bob, carol = new_key(), new_key()
        async with Agent.open(bob, node.url) as me:
            found = await me.rules(first_contact="refuse", allow=[carol.did])
            assert (found.first_contact, found.allow, found.contacts) == (
                "refuse", (carol.did,), 0,
            )  # fmt: skip
            assert (await me.rules()).allow == (carol.did,)
            many = [new_key().did for _ in range(1_000)]
            with pytest.raises(TooLargeError):
                await me.rules(allow=many)
            assert (await me.rules()).allow == (carol.did,)
            async with Agent.open(new_key(), node.url) as eve:
                with pytest.raises(RejectedError) as no:
                    await eve.send(bob.did, "hello")
            assert no.value.code is ErrorCode.NOT_ADMITTED


async def test_whom_an_agent_writes_to_is_its_contact_when_it_has_the_receipt():
    async with running_node() as node, speaker(node.url) as alice, speaker(node.url) as bob:
        await rules(alice, first_contact="refuse")
        [no] = (await send(bob, make_envelope(bob.key, alice.key.did).wire)).rejected
        assert no.error is ErrorCode.NOT_ADMITTED
        assert (await send(alice, make_envelope(alice.key, bob.key.did).wire)).receipt
        assert (await rules(alice)).contacts == 1
        assert (await send(bob, make_envelope(bob.key, alice.key.did).wire)).receipt
        assert (await rules(alice, forget=(bob.key.did,))).contacts == 0
        [no] = (await send(bob, make_envelope(bob.key, alice.key.did).wire)).rejected
        assert no.error is ErrorCode.NOT_ADMITTED
        # forgotten on purpose, and written to again: a contact again
        assert (await send(alice, make_envelope(alice.key, bob.key.did).wire)).receipt
        assert (await rules(alice)).contacts == 1


class Meetings(MemoryStore):
    """Counts what is asked of it."""

    def __init__(self) -> None:
        super().__init__(InboxLimits(), clock.now)
        self.asked: list[Any] = []
        self.is_away = False
        self._add, self.rules.add_contacts = self.rules.add_contacts, self.add_contacts

    async def add_contacts(self, pairs):
        if self.is_away:
            raise UnavailableError(ErrorCode.STORAGE_UNAVAILABLE, "gone")
        self.asked.append(list(pairs))
        return await self._add(pairs)


def accepted(*, dup: bool = False) -> Accepted:
    return Accepted(Seq(1), Epoch("e"), dup=dup, session=None)


async def test_a_conversation_costs_one_step_of_the_store(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(clock, "monotonic", lambda: Timestamp(now[0]))
    store = Meetings()
    contacts = Contacts(store.rules, max_pairs=2)
    items = [entry(n, sender=AgentKey(f"key:{n % 3}")) for n in range(6)]
    no = Refusal(ErrorCode.INBOX_FULL)
    results = [accepted(), accepted(dup=True), no, accepted(), accepted(), no]
    assert await contacts.record(items, results) == results
    assert await contacts.record(items, results) == results
    assert store.asked == [[("key:0", "key:me"), ("key:1", "key:me")]]
    now[0] += NO_INBOX_S  # none of them has an inbox here yet
    await contacts.record(items, results)
    assert len(store.asked) == 2
    assert len(contacts) == 2


async def test_a_contact_that_cannot_be_noted_leaves_the_outcome_unknown():
    store = Meetings()
    contacts = Contacts(store.rules)
    store.is_away = True
    full = Refusal(ErrorCode.INBOX_FULL)
    told = await contacts.record([entry(1), entry(2)], [accepted(), full])
    assert isinstance(told[0], Refusal)
    assert (told[0].code, told[0].stored) == (ErrorCode.STORAGE_UNAVAILABLE, "unknown")
    assert told[1] is full
    store.is_away = False
    assert await contacts.record([entry(1)], [accepted(dup=True)]) == [accepted(dup=True)]
    assert len(store.asked) == 1


# ---------------------------------------------------------------- a flood of fresh keys


async def flood(http: httpx2.AsyncClient, to: SigningKey, keys: int) -> list[str]:
    """One envelope each of so many fresh keys; gives what became of them."""
    outcomes: list[str] = []
    for start in range(0, keys, 100):
        wires = [
            make_envelope(new_key(), to.did, b"buy now").wire
            for _ in range(start, min(start + 100, keys))
        ]
        answer = await submit(http, *wires)
        refused = [no["error"] for no in answer["rejected"]]
        outcomes += refused + ["stored"] * (len(wires) - len(refused))
    return outcomes


async def friend_is_served(data: Path, **knobs: str) -> None:
    """1,000 fresh keys flood an inbox; all that its friend sends is accepted and delivered."""
    limits = {"RELAY_INBOX_COUNT": "600", "RELAY_SENDER_COUNT": "200", **knobs}
    bob, friend = new_key(), new_key()
    async with relay_process(data, **limits) as relay, client(relay.url) as http:
        async with Agent.open(bob, relay.url) as me:
            await me.rules(allow=[friend.did])
        outcomes = await flood(http, bob, 1_000)
        assert len(outcomes) == 1_000
        async with Agent.open(friend, relay.url) as sender:
            # its whole own quota is there for it
            sent = [await sender.send(bob.did, str(n)) for n in range(200)]
            with pytest.raises(RejectedError) as no:
                await sender.send(bob.did, "one too many")
            assert no.value.code is ErrorCode.SENDER_QUOTA
        async with Agent.open(bob, relay.url) as me:
            found = set()
            async with within(60):
                async for message in me.inbox():
                    found.add(message.eid)
                    await message.ack()
                    if found >= {one.eid for one in sent}:
                        break
        assert outcomes.count("stored") + outcomes.count("stranger_quota") == 1_000


async def test_1000_fresh_keys_that_flood_an_inbox_cost_a_known_sender_nothing(tmp_path):
    await friend_is_served(tmp_path, RELAY_STRANGER_COUNT="300")


@pytest.mark.breaks("inbox rules", "strangers have a quota")
async def test_without_the_quota_of_strangers_the_same_flood_shuts_the_known_sender_out(tmp_path):
    with pytest.raises(RejectedError) as no:
        await friend_is_served(tmp_path, RELAY_STRANGER_COUNT="600")
    assert no.value.code is ErrorCode.INBOX_FULL
    assert not isinstance(no.value, StrangerQuotaError)


# ---------------------------------------------------------------- networks


async def test_strangers_of_one_network_are_limited_and_the_known_do_not_notice():
    async with (
        running_node(stranger_rate=5) as node,
        speaker(node.url) as bob,
        speaker(node.url) as friend,
    ):
        await rules(bob, allow=(friend.key.did,))
        async with client(node.url) as http:
            first = await submit(
                http, *(make_envelope(new_key(), bob.key.did).wire for _ in range(5))
            )
            assert not first["rejected"]
            [no] = (await submit(http, make_envelope(new_key(), bob.key.did).wire))["rejected"]
            assert (no["error"], no["stored"]) == ("rate_limited", "no")
            assert 1 <= no["retry_after"] <= 12
        wires = [make_envelope(friend.key, bob.key.did, b"%d" % n).wire for n in range(20)]
        assert not (await send(friend, *wires)).rejected
        [no] = (await send(friend, make_envelope(new_key(), bob.key.did).wire)).rejected
        assert no.error is ErrorCode.RATE_LIMITED


@pytest.mark.parametrize(
    ("peer", "network"),
    [
        ("192.0.2.7", "192.0.2.0/24"),
        ("::ffff:192.0.2.7", "192.0.2.0/24"),
        ("2001:db8:1:2ff::1", "2001:db8:1:200::/56"),
        ("2001:db8:1:1ff::1", "2001:db8:1:100::/56"),
        ("", ""),
        ("unix", "unix"),
    ],
)
def test_a_network_is_a_prefix_of_the_peers_address(peer: str, network: str):
    assert network_of(peer, v4=24, v6=56) == network
