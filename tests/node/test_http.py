"""The HTTP edge (PROTOCOL.md §6, §8): an agent that wakes up now and then."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

import httpx2
import pytest

from relay import clock
from relay.inbox.model.types import InboxLimits
from relay.protocol import endpoint_record, handshake, jws
from relay.protocol.did import SigningKey
from relay.protocol.endpoint_record import Home
from relay.protocol.frames import (
    Bye,
    Deliver,
    DeliverItem,
    Status,
    Statuses,
    StatusItem,
    Submit,
    Submitted,
)
from relay.protocol.handshake import InboxPosition, LoginClaims
from relay.protocol.ids import Did, Timestamp
from relay.protocol.receipts import verify_receipt
from relay.reference.memory_store import MemoryStore
from tests.support.nodes import RunningNode, Speaker, make_envelope, new_key, running_node, speaker
from tests.support.patience import wait_until


@dataclass
class Poller:
    """An agent over HTTP."""

    key: SigningKey
    http: httpx2.AsyncClient
    welcome: dict[str, Any]

    @property
    def bearer(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.welcome['token']}"}

    async def inbox(self, wait: int = 0) -> dict[str, Any]:
        answer = await self.http.get(f"/v1/inbox?wait={wait}", headers=self.bearer)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def ack(self, **values: Any) -> httpx2.Response:
        body = {"epoch": self.welcome["epoch"], **values}
        return await self.http.post("/v1/inbox/ack", json=body, headers=self.bearer)


def client(url: str) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(base_url=url, timeout=8)


async def log_in(http: httpx2.AsyncClient, key: SigningKey) -> Poller:
    said = (await http.post("/v1/session/nonce")).json()
    cnonce = jws.b64encode(os.urandom(32))
    claims = LoginClaims(key.did, Did(said["relay"]), said["url"], said["nonce"], cnonce, "agent")
    auth = handshake.sign_auth(key, claims, Timestamp(time.time()))
    answer = await http.post("/v1/session", json={"jws": auth})
    assert answer.status_code == 200, answer.text
    welcome = answer.json()
    standing = InboxPosition(welcome["epoch"], welcome["cursor"], welcome["head"])
    handshake.verify_proof(welcome["proof"], claims, standing)
    return Poller(key, http, welcome)


async def submit(http: httpx2.AsyncClient, *wires: bytes) -> dict[str, Any]:
    body = b'{"envelopes":[' + b",".join(wires) + b"]}"
    answer = await http.post("/v1/envelopes", content=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_an_envelope_is_submitted_taken_and_acked_over_http():
    async with running_node() as node, client(node.url) as http:
        alice, bob = new_key(), await log_in(http, new_key())
        envelope = make_envelope(alice, bob.key.did)
        answer = await submit(http, envelope.wire)
        assert verify_receipt(answer["receipt"], node.parts.key.did).items[0].eid == (envelope.eid)
        page = await bob.inbox()
        assert [(i["seq"], i["redelivered"]) for i in page["items"]] == [(1, False)]
        assert jws.dumps(page["items"][0]["envelope"]) == envelope.wire
        assert [i["redelivered"] for i in (await bob.inbox())["items"]] == [True]
        assert (await bob.ack(upto=1)).json()["upto"] == 1
        assert (await bob.inbox())["items"] == []


async def test_an_ack_beyond_what_was_taken_is_refused_and_deletes_nothing():
    async with running_node() as node, client(node.url) as http:
        alice, bob = new_key(), await log_in(http, new_key())
        await submit(http, make_envelope(alice, bob.key.did).wire)
        answer = await bob.ack(upto=1)
        assert (answer.status_code, answer.json()["error"]) == (400, "bad_frame")
        assert len((await bob.inbox())["items"]) == 1


async def test_a_long_poll_ends_when_mail_comes():
    async with running_node() as node, client(node.url) as http:
        alice, bob = new_key(), await log_in(http, new_key())
        waiting = asyncio.ensure_future(bob.inbox(wait=5))
        await wait_until(lambda: node.parts.dispatcher._listeners, 8, "the poll to wait")
        await submit(http, make_envelope(alice, bob.key.did).wire)
        assert len((await waiting)["items"]) == 1


async def waiting_poll(node: RunningNode, bob: Poller) -> tuple[asyncio.Future[Any], Any]:
    """A poll that has looked and found nothing, and what waits in it."""
    request = bob.http.get("/v1/inbox?wait=8", headers=bob.bearer)
    answer, found = asyncio.ensure_future(request), node.parts.dispatcher._listeners
    await wait_until(lambda: found, 8, "the poll to wait")
    [waiter] = found.values()
    await wait_until(lambda: waiter.seen is not None, 8, "its first look")
    return answer, waiter


@contextlib.asynccontextmanager
async def two_nodes() -> AsyncIterator[tuple[RunningNode, Any, Poller, httpx2.AsyncClient]]:
    """A node over a store that gives no hints, an agent at it, and a client of a second node."""
    key, store = new_key(), MemoryStore(InboxLimits(), clock.now)
    async with (
        running_node(store, key=key) as node,
        running_node(store, key=key) as other,
        client(node.url) as http,
        client(other.url) as elsewhere,
    ):
        yield node, store, await log_in(http, new_key()), elsewhere


async def test_a_waiting_poll_is_woken_by_what_is_new_and_by_nothing_else():
    async with two_nodes() as (node, store, bob, elsewhere):
        answer, waiter = await waiting_poll(node, bob)
        for _ in range(3):
            await node.parts.dispatcher.poll(store.inboxes)
            assert not waiter.wakeup.is_set()
        await submit(elsewhere, make_envelope(new_key(), bob.key.did).wire)
        await node.parts.dispatcher.poll(store.inboxes)
        assert len((await answer).json()["items"]) == 1


async def test_a_waiting_poll_that_was_superseded_elsewhere_is_told():
    async with two_nodes() as (node, store, bob, elsewhere):
        answer, _ = await waiting_poll(node, bob)
        await log_in(elsewhere, bob.key)
        await node.parts.dispatcher.poll(store.inboxes)
        assert (await answer).json()["error"] == "superseded"


async def test_an_http_session_and_a_socket_supersede_each_other():
    async with running_node() as node, client(node.url) as http:
        bob = new_key()
        poller = await log_in(http, bob)
        async with speaker(node.url, bob) as me:
            answer = await http.get("/v1/inbox", headers=poller.bearer)
            assert (answer.status_code, answer.json()["error"]) == (409, "superseded")
            again = await log_in(http, bob)
            page = await again.inbox()
            assert page["items"] == []
            assert (await me.hear(Bye)).error == "superseded"


async def test_a_nonce_is_good_once_and_a_token_is_needed():
    async with running_node() as node, client(node.url) as http:
        key = new_key()
        said = (await http.post("/v1/session/nonce")).json()
        cnonce = jws.b64encode(os.urandom(32))
        claims = LoginClaims(
            key.did, Did(said["relay"]), said["url"], said["nonce"], cnonce, "agent"
        )
        auth = handshake.sign_auth(key, claims, Timestamp(time.time()))
        assert (await http.post("/v1/session", json={"jws": auth})).status_code == 200
        again = await http.post("/v1/session", json={"jws": auth})
        assert (again.status_code, again.json()["error"]) == (401, "auth_required")
        for headers in ({}, {"Authorization": "Bearer x"}, {"Authorization": f"Bearer {'A' * 43}"}):
            answer = await http.get("/v1/inbox", headers=headers)
            assert (answer.status_code, answer.json()["error"]) == (401, "auth_required")


async def test_a_login_for_another_origin_is_named_and_does_not_use_up_the_nonce():
    async with running_node() as node, client(node.url) as http:
        key = new_key()
        said = (await http.post("/v1/session/nonce")).json()
        cnonce = jws.b64encode(os.urandom(32))
        right = LoginClaims(
            key.did, Did(said["relay"]), said["url"], said["nonce"], cnonce, "agent"
        )
        for wrong in (replace(right, url="http://x"), replace(right, aud=key.did)):
            auth = handshake.sign_auth(key, wrong, Timestamp(time.time()))
            answer = await http.post("/v1/session", json={"jws": auth})
            assert (answer.status_code, answer.json()["error"]) == (421, "wrong_relay")
        auth = handshake.sign_auth(key, right, Timestamp(time.time()))
        assert (await http.post("/v1/session", json={"jws": auth})).status_code == 200


@pytest.mark.parametrize("ack", [{"seqs": [1, 3]}, {"refuse": [{"seq": 7, "code": "poison"}]}])
async def test_an_ack_of_seqs_that_were_never_assigned_is_refused_whole(ack):
    async with running_node() as node, client(node.url) as http:
        alice, bob = new_key(), await log_in(http, new_key())
        await submit(http, make_envelope(alice, bob.key.did).wire)
        await bob.inbox()
        answer = await bob.ack(**ack)
        assert (answer.status_code, answer.json()["error"]) == (400, "bad_frame")
        assert len((await bob.inbox())["items"]) == 1


@pytest.mark.parametrize("also", [{"upto": 1}, {"seqs": [1]}])
async def test_a_seq_that_is_acked_and_refused_counts_as_refused_and_bounces(also):
    async with running_node() as node, client(node.url) as http, speaker(node.url) as alice:
        bob = await log_in(http, new_key())
        envelope = make_envelope(alice.key, bob.key.did)
        await submit(http, envelope.wire)
        await bob.inbox()
        answer = await bob.ack(refuse=[{"seq": 1, "code": "poison"}], **also)
        assert answer.json()["refused"] == [1]
        await alice.say(Status("s", (StatusItem(bob.key.did, envelope.id),)))
        assert (await alice.hear(Statuses)).items[0].state == "refused"
        [bounce] = (await alice.hear(Deliver)).items if not delivered(alice) else delivered(alice)
        assert bounce.seq == 1


def delivered(agent: Speaker) -> list[DeliverItem]:
    return [item for frame in agent.heard if isinstance(frame, Deliver) for item in frame.items]


async def test_an_unknown_must_member_is_unsupported():
    async with running_node() as node, client(node.url) as http:
        answer = await http.post("/v1/envelopes", json={"envelopes": [{}], "must_x": 1})
        assert (answer.status_code, answer.json()["error"]) == (400, "unsupported")


@pytest.mark.alone
async def test_a_login_over_http_is_told_to_the_socket_at_once():
    async with running_node() as node, client(node.url) as http:
        bob = new_key()
        async with speaker(node.url, bob) as me:
            await log_in(http, bob)
            # far below the poll interval
            async with asyncio.timeout(1.5):
                assert (await me.hear(Bye)).error == "superseded"


async def test_a_sender_asks_what_became_of_its_envelope_and_nobody_else_learns_it():
    async with running_node() as node, client(node.url) as http:
        alice, bob = await log_in(http, new_key()), await log_in(http, new_key())
        envelope = make_envelope(alice.key, bob.key.did)
        await submit(http, envelope.wire)
        path = f"/v1/agents/{bob.key.did}/envelopes/{envelope.id}"
        assert (await http.get(path, headers=alice.bearer)).json()["state"] == "stored"
        assert (await http.get(path, headers=bob.bearer)).json()["state"] == "unknown"
        await bob.inbox()
        await bob.ack(upto=1)
        assert (await http.get(path, headers=alice.bearer)).json()["state"] == "acked"


async def test_records_are_published_and_resolved_over_http():
    async with running_node() as node, client(node.url) as http:
        key = new_key()
        absent = await http.get(f"/v1/agents/{key.did}")
        assert (absent.status_code, absent.json()["state"]) == (404, "absent")
        now = Timestamp(time.time())
        record = endpoint_record.sign(key, [Home(node.parts.key.did, node.url)], now=now)
        published = await http.put(f"/v1/agents/{key.did}", json={"record": record})
        assert published.json()["stored"]
        found = (await http.get(f"/v1/agents/{key.did}")).json()
        assert (found["state"], found["record"]) == ("found", record)
        other = new_key()
        stray = endpoint_record.sign(other, [Home(other.did, "https://elsewhere.example")], now=now)
        refused = await http.put(f"/v1/agents/{other.did}", json={"record": stray})
        assert refused.json()["error"] == "not_admitted"
        wrong = await http.put(f"/v1/agents/{other.did}", json={"record": record})
        assert wrong.json()["error"] == "bad_signature"


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "bad_frame"),
        (b"[]", 400, "bad_frame"),
        (b'{"envelopes":[]}', 400, "bad_frame"),
        (b'{"envelopes":1.5}', 400, "bad_frame"),
        (b'{"envelopes":[],"envelopes":[]}', 400, "bad_frame"),
        (b" " * (2 * 1024 * 1024 + 1), 413, "too_large"),
    ],
)
async def test_bad_bodies_get_the_one_error_shape(body, status, code):
    async with running_node() as node, client(node.url) as http:
        answer = await http.post("/v1/envelopes", content=body)
        assert answer.status_code == status
        assert answer.json()["error"] == code
        assert set(answer.json()) == {"error", "detail", "retry_after"}


async def test_the_relays_information_is_signed_and_true():
    async with running_node(contact="ops@example.org") as node, client(node.url) as http:
        compact = (await http.get("/.well-known/agent-relay.json")).json()["jws"]
        parsed = jws.parse(compact, typ="agent-relay-info+jws", max_bytes=8192)
        key = node.parts.key
        assert jws.is_signed_by(parsed, key.public_key)
        info = jws.loads(parsed.payload)
        assert (info["did"], info["url"]) == (key.did, node.url)
        assert info["durability"] == "memory"
        assert info["contact"] == "ops@example.org"


async def test_envelopes_sent_over_http_arrive_on_a_socket():
    async with (
        running_node() as node,
        client(node.url) as http,
        speaker(node.url) as bob,
        speaker(node.url) as alice,
    ):
        await submit(http, make_envelope(new_key(), bob.key.did, b"1").wire)
        await alice.say(Submit("r", [make_envelope(alice.key, bob.key.did, b"2").wire]))
        await alice.hear(Submitted)
        seqs: list[int] = []
        while len(seqs) < 2:
            seqs += [item.seq for item in (await bob.hear()).items]
        assert seqs == [1, 2]


async def test_the_api_describes_itself():
    async with running_node() as node, client(node.url) as http:
        paths = (await http.get("/openapi.json")).json()["paths"]
        assert "/v1/envelopes" in paths
        assert "/metrics" not in paths


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "unsupported"),
        ("DELETE", "/v1/envelopes", 405, "unsupported"),
        ("GET", "/v1/inbox?wait=31", 400, "bad_frame"),
        ("GET", "/v1/agents/did:web:example.org", 400, "unsupported"),
    ],
)
async def test_wrong_paths_and_parameters_get_the_one_error_shape_too(method, path, status, code):
    async with running_node() as node, client(node.url) as http:
        answer = await http.request(method, path)
        assert (answer.status_code, answer.json()["error"]) == (status, code)
        assert set(answer.json()) == {"error", "detail", "retry_after"}
