"""The operator's side: relays are added, removed, joined, looked at; over HTTP and by command."""

from __future__ import annotations

import httpx2
import pytest

from relay.cli.exit_codes import Exit
from relay.client import Agent
from relay.protocol.errors import ErrorCode, RelayError
from tests.cli.terminal import Terminal
from tests.federation.linked_nodes import Place, peer, places, record_of, relay_at, until
from tests.support.nodes import new_key

pytestmark = pytest.mark.timeout(60)


async def ask(admin: str, method: str, path: str, **options):
    async with httpx2.AsyncClient(base_url=admin, timeout=20) as http:
        answer = await http.request(method, f"/v1/admin{path}", **options)
        return answer.status_code, answer.json()


async def test_two_relays_whose_operators_add_each_other_are_linked_both_ways():
    a, b = places(2)
    async with relay_at(a) as first, relay_at(b) as second:
        # the DID is taken from what the relay there has signed
        status, added = await ask(first.admin, "POST", "/peers", json={"url": b.url})
        assert (status, added["did"], added["standing"]) == (200, b.did, "added")
        await until(lambda: b.did in first.parts.peers.refusals)
        _, shown = await ask(first.admin, "GET", f"/peers/{b.did}")
        assert shown["refused"]["error"] == ErrorCode.NOT_FEDERATED
        assert shown["back_off"]["wait_s"] >= 0
        assert not shown["linked"]
        await ask(second.admin, "POST", "/peers", json={"url": a.url, "did": a.did})
        # the other one's login tells that it is worth another dial
        await until(lambda: first.parts.links.live() and second.parts.links.live())
        await until(lambda: b.did in first.parts.peers.views)
        _, listed = await ask(first.admin, "GET", "/peers")
        [one] = listed["peers"]
        assert (one["linked"], one["inbound"], one["state"]) == (True, 1, "alive")
        assert one["refused"] is None
        assert one["outbox"] == {"count": 0, "bytes": 0}
        assert one["sees_us"]["state"] in {"alive", "suspect"}
        status, _ = await ask(first.admin, "DELETE", f"/peers/{b.did}")
        assert status == 200
        await until(lambda: not first.parts.links.live())
        assert await ask(first.admin, "GET", f"/peers/{b.did}") == (
            404,
            {"error": "unsupported", "detail": "no such relay is known", "retry_after": None},
        )
        # whoever was removed is cut off
        await until(lambda: not first.parts.peers.inbound)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"url": "https://example.org/path"}, ErrorCode.BAD_FRAME),
        ({"url": "https://192.0.2.1", "did": "did:web:x"}, ErrorCode.BAD_FRAME),
        ({"url": "http://192.0.2.1"}, ErrorCode.UNSUPPORTED),
        ({"url": 1}, ErrorCode.BAD_FRAME),
        ({"url": "http://127.0.0.1:1"}, ErrorCode.PEER_UNREACHABLE),
    ],
)
async def test_what_cannot_be_added_is_refused_by_name(body, code):
    [a] = places(1)
    async with relay_at(a) as node:
        _, reply = await ask(node.admin, "POST", "/peers", json=body)
        assert reply["error"] == code
        _, listed = await ask(node.admin, "GET", "/peers")
        assert listed["peers"] == []


async def test_a_relay_is_no_peer_of_itself_and_a_page_in_a_browser_adds_none():
    [a] = places(1)
    async with relay_at(a) as node:
        _, reply = await ask(node.admin, "POST", "/peers", json={"url": a.url})
        assert reply["error"] == ErrorCode.NOT_FEDERATED
        plain = {"content": b'{"url":"http://127.0.0.1:1"}'}
        for kind in ("text/plain", "application/x-www-form-urlencoded"):
            headers = {"Content-Type": kind}
            _, reply = await ask(node.admin, "POST", "/peers", headers=headers, **plain)
            assert reply["error"] == ErrorCode.UNSUPPORTED
        async with httpx2.AsyncClient(base_url=node.url) as http:
            assert (await http.get("/v1/admin/peers")).status_code == 404, "never in public"


async def test_a_relay_that_says_it_is_elsewhere_is_not_added():
    a, b = places(2)
    elsewhere = f"http://localhost:{b.port}"
    async with relay_at(a) as node, relay_at(b, public_url=elsewhere):
        _, reply = await ask(node.admin, "POST", "/peers", json={"url": b.url})
        assert reply["error"] == ErrorCode.WRONG_RELAY


async def test_a_relay_that_is_added_once_is_known_to_the_other_node_of_the_store():
    a, b = places(2)
    [other_port] = places(1)
    async with relay_at(b, [a]), relay_at(a, public_url=a.url) as first:
        store = first.parts.store
        async with relay_at(a, store=store, listen=f"127.0.0.1:{other_port.port}",
                            public_url=a.url) as second:  # fmt: skip
            await ask(first.admin, "POST", "/peers", json={"url": b.url})
            await until(lambda: first.parts.links.live() and second.parts.links.live(), 20)
            assert second.parts.peers.rows[b.did].standing == "added"


async def test_settings_and_what_the_operator_added_are_both_known_after_a_restart():
    a, b = places(2)
    key = new_key()
    async with relay_at(a, [b]) as node:
        store = node.parts.store
        body = {"url": "https://relay.example", "did": key.did}
        await ask(node.admin, "POST", "/peers", json=body)
    async with relay_at(a, [b], store) as node:
        assert node.parts.peers.rows.keys() == {b.did, key.did}
        async with peer(a.url, a.did, key) as there:
            assert there.ready.relay == a.did


async def test_a_relay_that_is_back_with_a_new_key_is_added_again_and_its_old_self_removed():
    a, b = places(2)
    renewed = Place(new_key(), b.port)
    async with relay_at(a, [b]) as first:
        async with relay_at(b, [a]):
            await until(first.parts.links.live)
        async with relay_at(renewed, [a]):
            refusals = first.parts.peers.refusals
            await until(
                lambda: b.did in refusals and refusals[b.did].code is ErrorCode.WRONG_RELAY, 20
            )
            _, shown = await ask(first.admin, "GET", f"/peers/{b.did}")
            assert f"found {renewed.did}" in shown["refused"]["detail"]
            assert renewed.did not in first.parts.peers.rows, "nobody is added on hearsay"
            _, added = await ask(first.admin, "POST", "/peers", json={"url": b.url})
            assert added["did"] == renewed.did
            await ask(first.admin, "DELETE", f"/peers/{b.did}")
            await until(lambda: [link.peer for link in first.parts.links.live()] == [renewed.did])


# ---------------------------------------------------------------- commands


async def test_the_commands_of_an_operator(tmp_path):
    a, b, c = places(3)
    terminal = Terminal(tmp_path)
    async with (
        relay_at(a, federation="open") as first,
        relay_at(b, [a], federation="open"),
        relay_at(c, federation="open") as third,
    ):
        here = ("--admin", third.admin)
        assert "no other relay" in (await terminal.run("peers", "list", *here)).out
        # of a relay that it has not reached itself it would not tell
        await until(lambda: first.parts.peers.is_proven(b.did))
        joined = await terminal.run("join", a.url, *here, "--json")
        assert (joined.code, joined.json["peer"]["linked"]) == (Exit.OK, True)
        assert joined.json["known"] == [b.did], "one live relay is enough"
        listed = await terminal.run("peers", "list", RELAY_ADMIN_URL=third.admin)
        assert {a.url, b.url} <= set(listed.out.split())
        shown = await terminal.run("peers", "show", a.did, *here)
        assert "sees us" in shown.out
        as_json = await terminal.run("peers", "show", a.did, *here, "--json")
        assert as_json.json["state"] == "alive"
        gone = await terminal.run("peers", "remove", a.did, *here)
        assert gone.code == Exit.OK
        again = await terminal.run("peers", "remove", new_key().did, *here)
        assert (again.code, "no such relay" in again.err) == (Exit.REFUSED, True)
        added = await terminal.run("peers", "add", b.url, "--did", b.did, *here)
        assert (added.code, added.out.split()[:2]) == (Exit.OK, ["added", b.did])
        nobody = await terminal.run("peers", "list", "--admin", "http://127.0.0.1:1")
        assert nobody.code == Exit.UNAVAILABLE


async def test_an_unreachable_peer_is_listed_and_shown_with_its_waiting_mail(tmp_path):
    a, b = places(2)
    carol = new_key()
    terminal = Terminal(tmp_path)
    async with relay_at(a, [b]) as node:
        here = ("--admin", node.admin)
        await until(lambda: node.parts.links.backoff(b.did, b.url))
        record = record_of(carol, b)
        await node.parts.directory.merge_from_peer([record], b.did)
        async with Agent.open(new_key(), node.url) as alice:
            sent = await alice.send(carol.did, b"for later")
            assert sent.custody == "outbox"
        # whichever moment of the back-off it is: half a second is no whole number of them
        await until(lambda: (node.parts.links.backoff(b.did, b.url) or (0.0,))[0] % 1 > 0.05)
        shown = await terminal.run("peers", "show", b.did, *here)
        assert shown.code == Exit.OK, shown.err
        assert "outbox      1 envelopes wait for it" in shown.out
        as_json = await terminal.run("peers", "show", b.did, *here, "--json")
        assert as_json.json["outbox"]["count"] == 1
        waits = as_json.json["back_off"]
        assert waits is None or isinstance(waits["wait_s"], int)
        listed = await terminal.run("peers", "list", *here)
        assert "  1 wait (" in listed.out
        await node.parts.housekeeping.measure()
        async with httpx2.AsyncClient(base_url=node.admin) as http:
            figures = (await http.get("/metrics")).text.splitlines()
        assert "relay_outbox_envelopes 1.0" in figures
        assert "relay_outbox_peers 1.0" in figures
        [size] = [line for line in figures if line.startswith("relay_outbox_bytes ")]
        assert float(size.split()[1]) == as_json.json["outbox"]["bytes"] > 0


async def test_what_waits_for_a_relay_that_was_removed_is_seen_too(tmp_path):
    a, b = places(2)
    carol = new_key()
    async with relay_at(a, [b]) as node:
        await node.parts.directory.merge_from_peer([record_of(carol, b)], b.did)
        async with Agent.open(new_key(), node.url) as alice:
            await alice.send(carol.did, b"for later")
        await ask(node.admin, "DELETE", f"/peers/{b.did}")
        _, listed = await ask(node.admin, "GET", "/peers")
        [one] = listed["peers"]
        assert (one["did"], one["standing"], one["outbox"]["count"]) == (b.did, "unknown", 1)
        shown = await Terminal(tmp_path).run("peers", "show", b.did, "--admin", node.admin)
        assert (shown.code, "standing    unknown\n" in shown.out) == (Exit.OK, True)


async def test_a_relay_that_is_blocked_is_cut_off_both_ways_and_stays_so_over_a_restart():
    a, b = places(2)
    async with relay_at(a, [b]) as first, relay_at(b, [a]) as second:
        store = first.parts.store
        peers = first.parts.peers
        await until(lambda: first.parts.links.live() and peers.inbound.get(b.did))
        status, reply = await ask(first.admin, "POST", f"/peers/{b.did}/block", json={})
        assert (status, reply["standing"], reply["linked"]) == (200, "blocked", reply["linked"])
        await until(lambda: not first.parts.links.live() and not peers.inbound)
        with pytest.raises(RelayError) as caught:
            async with peer(a.url, a.did, b.key):
                pass
        assert caught.value.code is ErrorCode.BLOCKED
        with pytest.raises(RelayError) as caught:
            await first.parts.links.reach(b.did, b.url)
        assert caught.value.code is ErrorCode.BLOCKED
        assert a.did in second.parts.peers.rows
    async with relay_at(a, [b], store) as first:
        assert first.parts.peers.rows[b.did].standing == "blocked", "settings do not lift it"
        status, _ = await ask(first.admin, "DELETE", f"/peers/{b.did}/block")
        assert status == 200
        assert first.parts.peers.rows[b.did].standing == "learned"
        status, _ = await ask(first.admin, "DELETE", f"/peers/{b.did}/block")
        assert status == 404
        await ask(first.admin, "POST", "/peers", json={"url": b.url, "did": b.did})
        async with peer(a.url, a.did, b.key) as there:
            assert there.ready.relay == a.did


async def test_a_relay_that_nobody_knows_yet_is_blocked_and_unblocked_by_command(tmp_path):
    [a] = places(1)
    stranger = new_key()
    terminal = Terminal(tmp_path)
    async with relay_at(a, federation="open") as node:
        here = ("--admin", node.admin)
        blocked = await terminal.run("peers", "block", stranger.did, *here)
        assert blocked.out.split() == ["blocked", stranger.did]
        with pytest.raises(RelayError):
            async with peer(a.url, a.did, stranger):
                pass
        listed = await terminal.run("peers", "list", *here)
        assert "blocked" in listed.out
        shown = await terminal.run("peers", "show", stranger.did, *here)
        assert (shown.code, "blocked since" in shown.out) == (Exit.OK, True)
        free = await terminal.run("peers", "unblock", stranger.did, *here)
        assert free.out.split() == ["unblocked", stranger.did]
        assert node.parts.peers.rows == {}
        async with peer(a.url, a.did, stranger) as there:
            assert there.ready.relay == a.did
        again = await terminal.run("peers", "unblock", stranger.did, *here)
        assert (again.code, "not blocked" in again.err) == (Exit.REFUSED, True)
        own = await terminal.run("peers", "block", a.did, *here)
        assert own.code == Exit.REFUSED


async def test_a_page_in_a_browser_blocks_nobody():
    a, b = places(2)
    async with relay_at(a, [b]) as node:
        headers = {"Content-Type": "text/plain"}
        path = f"/peers/{b.did}/block"
        _, reply = await ask(node.admin, "POST", path, headers=headers, content=b"{}")
        assert reply["error"] == ErrorCode.UNSUPPORTED
        assert node.parts.peers.rows[b.did].standing == "added"


@pytest.mark.parametrize("path", ["/peers", "/clock"])
async def test_a_page_under_a_name_that_leads_to_this_machine_changes_nothing(path):
    a, b = places(2)
    async with relay_at(a) as node:
        body = {"url": b.url, "did": b.did}
        headers = {"Origin": "http://rebound.example", "Host": "rebound.example"}
        status, reply = await ask(node.admin, "POST", path, headers=headers, json=body)
        assert (status, reply["error"]) == (403, ErrorCode.NOT_ADMITTED)
        assert node.parts.peers.rows == {}
        status, _ = await ask(node.admin, "POST", path, json=body)
        assert status == 200
