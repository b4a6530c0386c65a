"""``relay status`` and ``relay rules`` against a real node."""

from __future__ import annotations

import json

import pytest

from relay.cli.exit_codes import Exit
from relay.client import Agent
from relay.client.identity import key_file
from tests.cli.terminal import Terminal, line_with, stalling
from tests.support.nodes import new_key, running_node
from tests.support.patience import within
from tests.support.relay_process import relay_process

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
async def terminal(tmp_path):
    async with running_node() as node:
        yield Terminal(tmp_path, node.url)


async def own_did(terminal: Terminal, *words: str) -> str:
    """Our DID; the inbox is there afterwards."""
    return (await terminal.run("inbox", "--json", *words)).json["did"]


async def test_status_says_what_waits_and_leaves_it_there(terminal):
    did = await own_did(terminal)
    await terminal.run("send", did, "one")
    status = await terminal.run("status", "--json")
    assert status.code == 0
    said = status.json
    assert (said["did"], said["url"], said["durability"]) == (did, terminal.url, "memory")
    assert (said["is_home"], [home["url"] for home in said["homes"]]) == (True, [terminal.url])
    assert (said["inbox"]["pending"], said["inbox"]["turned_away"]) == (1, 0)
    assert said["inbox"]["oldest_age"] is not None
    words = (await terminal.run("status")).out
    for expected in ("gone with the relay's process", "1 not acked", "homes         http://"):
        assert expected in words
    assert (await terminal.run("listen", "--once")).out == "one\n"
    assert "nothing waits" in (await terminal.run("status")).out


async def test_status_says_which_envelopes_were_never_answered(terminal):
    did = await own_did(terminal)
    async with stalling() as quiet:
        lost = await terminal.run(
            "send", did, "x", "--relay", quiet.url, "--timeout", "0.5", "--json"
        )
    kept = json.loads(lost.err.splitlines()[-1])
    status = await terminal.run("status", "--json")
    assert [item["id"] for item in status.json["unanswered"]] == [kept["id"]]
    assert kept["id"] in (await terminal.run("status")).out
    one = await terminal.run("status", did, kept["id"], "--json")
    assert one.code == Exit.UNKNOWN
    assert (one.json["state"], one.json["unanswered"]) == ("unknown", True)


async def test_without_a_relay_status_still_says_what_this_machine_knows(tmp_path):
    nowhere = Terminal(tmp_path)
    did = (await nowhere.run("id", "new")).out.strip()
    status = await nowhere.run("status", "--json")
    assert status.code == Exit.UNAVAILABLE
    assert (status.json["did"], status.json["inbox"], status.json["is_home"]) == (did, None, None)
    assert json.loads(status.err)["error"] == "peer_unreachable"
    assert "not known" in (await nowhere.run("status")).out


async def test_a_relay_that_is_no_home_is_named_as_such(tmp_path):
    async with running_node() as home, running_node() as other:
        terminal = Terminal(tmp_path, home.url)
        await own_did(terminal)
        status = await terminal.run("status", "--relay", other.url)
        assert (status.code, "no endpoint record" in status.out) == (0, True)
        assert "none here" not in status.out


async def test_status_leaves_the_inbox_to_a_listener_unless_told_to_take_it(terminal):
    async with terminal.running("listen") as listening:
        await line_with(listening.stderr, "Listening as")
        status = await terminal.run("status", "--json")
        assert (status.code, status.json["inbox"], status.json["listens_here"]) == (0, None, True)
        assert "--take" in (await terminal.run("status")).out
        did = status.json["did"]
        left = await terminal.run("rules", "deny", did, "--json")
        said = json.loads(left.err)["detail"]
        assert (left.code, "Nothing was sent or changed" in said) == (Exit.REFUSED, True)
        taken = await terminal.run("status", "--take", "--json")
        assert taken.json["inbox"]["pending"] == 0
        assert await listening.wait() == Exit.SUPERSEDED


async def test_an_agent_with_the_sdk_keeps_its_inbox_while_others_ask(terminal, tmp_path):
    (tmp_path / "me.key.state").touch()
    key = key_file.generate(tmp_path / "me.key")
    mine = ("--key", "me.key", "--json")
    async with Agent.open(key, terminal.url, state=tmp_path / "me.key.state") as me:
        status = await terminal.run("status", *mine)
        assert (status.code, status.json["inbox"], status.json["listens_here"]) == (0, None, True)
        for words in (
            ("rules",), ("status", me.did, "0" * 32), ("send", me.did, "x", "--wait", "acked"),
        ):  # fmt: skip
            assert (await terminal.run(*words, *mine)).code == Exit.REFUSED, words
        assert (await terminal.run("send", me.did, "sending takes nothing", *mine)).code == 0
        async with within(10):
            assert (await anext(me.inbox())).text() == "sending takes nothing"
    after = await terminal.run("status", *mine)
    assert (after.json["listens_here"], after.json["inbox"]["pending"]) == (False, 1)


async def test_status_of_an_envelope_has_an_exit_code_for_each_outcome(terminal):
    did = await own_did(terminal)
    sent = (await terminal.run("send", did, "x")).out.strip()
    waits = await terminal.run("status", did, sent)
    assert (waits.code, waits.out) == (Exit.WAITING, "stored\n")
    assert "not acked yet" in waits.err
    await terminal.run("listen", "--once")
    acked = await terminal.run("status", did, sent, "--json")
    assert acked.code == 0
    assert acked.json == {"to": did, "id": sent, "state": "acked", "unanswered": False}
    other = await terminal.run("status", did, "0" * 32)
    assert (other.code, other.out) == (Exit.UNKNOWN, "unknown\n")
    for words in (["status", did], ["status", "bob", sent], ["status", did, "x/y"]):
        assert (await terminal.run(*words)).code == Exit.USAGE


async def test_a_durable_relay_is_shown_as_such(tmp_path):
    async with relay_process(tmp_path / "relay") as relay:
        terminal = Terminal(tmp_path, relay.url)
        await own_did(terminal)
        assert "fsync: on disk before" in (await terminal.run("status")).out


async def test_rules_are_shown_changed_and_hold(terminal):
    await terminal.run("id", "new", "--key", "bob.key")
    alice, bob = await own_did(terminal), await own_did(terminal, "--key", "bob.key")
    mine = ("--key", "bob.key")
    shown = await terminal.run("rules", *mine, "--json")
    assert shown.json == {"first_contact": "accept", "allow": [], "deny": [], "contacts": 0}
    assert (await terminal.run("rules", "deny", alice, *mine, "--json")).json["deny"] == [alice]
    blocked = await terminal.run("send", bob, "x", "--json")
    assert (blocked.code, json.loads(blocked.err)["error"]) == (Exit.REFUSED, "blocked")
    forgotten = await terminal.run("rules", "forget", alice, *mine, "--json")
    assert forgotten.json["deny"] == []
    strict = await terminal.run("rules", "first-contact", "refuse", *mine)
    assert "agents that you do not know are refused" in strict.out
    stranger = await terminal.run("send", bob, "x", "--json")
    assert json.loads(stranger.err)["error"] == "not_admitted"
    assert f"allow          {alice}" in (await terminal.run("rules", "allow", alice, *mine)).out
    assert (await terminal.run("send", bob, "x")).code == 0


async def test_a_rule_that_the_relay_does_not_take_changes_nothing(terminal):
    await own_did(terminal)
    twice = new_key().did
    no = await terminal.run("rules", "allow", twice, twice, "--json")
    assert (no.code, json.loads(no.err)["error"]) == (Exit.REFUSED, "bad_frame")
    assert (await terminal.run("rules", "--json")).json["allow"] == []


@pytest.mark.parametrize(
    "words",
    [
        ["allow"],
        ["deny", "bob"],
        ["show", "more"],
        ["first-contact"],
        ["first-contact", "maybe"],
        ["admit", "did:key:z6Mk"],
    ],
)
async def test_wrong_words_after_rules_are_usage(tmp_path, words):
    done = await Terminal(tmp_path).run("rules", *words)
    assert (done.code, done.out) == (Exit.USAGE, "")
