"""``relay publish``, ``relay resolve`` and ``relay handle`` against real nodes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from relay.cli.exit_codes import Exit
from relay.client import Agent
from relay.client.identity import key_file
from tests.cli.terminal import Terminal
from tests.support.nodes import new_key, running_node

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
async def terminal(tmp_path: Path):
    async with running_node() as node:
        yield Terminal(tmp_path, node.url)


def another(terminal: Terminal, name: str) -> Terminal:
    """Somebody else, at the same relay."""
    home = terminal.home / name
    home.mkdir()
    return Terminal(home, terminal.url)


async def test_a_name_is_set_checked_resolved_and_given_up(terminal: Terminal):
    place = terminal.url.removeprefix("http://")
    did = (await terminal.run("id", "new")).out.strip()
    done = await terminal.run("handle", "set", "Alice", "--json")
    assert (done.code, done.json["leads_to"]) == (0, did)
    assert done.json["handles"] == [f"alice@{place}"]
    checked = await terminal.run("handle", "check", f"alice@{place}", "--json")
    assert (checked.code, checked.json["verified"], checked.json["did"]) == (0, True, did)
    bob = another(terminal, "bob")
    for who in (f"alice@{place}", did):
        found = await bob.run("resolve", who, "--json")
        assert (found.code, found.json["did"]) == (0, did)
        assert [home["url"] for home in found.json["homes"]] == [terminal.url]
    assert "verified, both ways" in (await bob.run("resolve", f"alice@{place}")).out
    gone = await terminal.run("handle", "remove", "alice", "--json")
    assert (gone.code, gone.json["handles"]) == (0, [])
    left = await bob.run("resolve", f"alice@{place}", "--json")
    assert (left.code, left.json["state"]) == (Exit.REFUSED, "absent")


async def test_a_name_that_another_has_is_not_published(terminal: Terminal):
    await terminal.run("handle", "set", "alice")
    bob = another(terminal, "bob")
    taken = await bob.run("handle", "set", "alice", "--json")
    assert taken.code == Exit.REFUSED
    assert json.loads(taken.err.splitlines()[-1])["error"] == "not_admitted"
    did = (await bob.run("id", "show")).out.strip()
    assert (await bob.run("resolve", did)).code == Exit.REFUSED, "nothing was published"


async def test_a_name_of_the_operators_is_not_published(terminal: Terminal):
    done = await terminal.run("handle", "set", "Admin")
    assert (done.code, "is the operator's" in done.err) == (Exit.REFUSED, True)
    assert "yet" not in done.err
    did = (await terminal.run("id", "show")).out.strip()
    assert (await terminal.run("resolve", did)).code == Exit.REFUSED, "nothing was published"


async def test_a_hostname_that_does_not_lead_here_is_listed_and_said_to_be_unverified(
    terminal: Terminal,
):
    done = await terminal.run("handle", "set", "agent.invalid")
    assert done.code in {Exit.REFUSED, Exit.UNAVAILABLE}
    assert "lists     agent.invalid" in done.out
    assert '_agent.agent.invalid. TXT "did=did:key:' in done.err
    assert "https://agent.invalid/.well-known/agent-did" in done.err


async def test_publish_renews_the_record_and_keeps_what_it_lists(terminal: Terminal):
    await terminal.run("handle", "set", "alice")
    first = (await terminal.run("publish", "--json")).json
    second = (await terminal.run("publish", "--json")).json
    assert second["seq"] > first["seq"]
    assert second["handles"] == first["handles"] != []
    assert second["missed"] == []


async def test_a_state_that_was_lost_does_not_take_the_seq_back(terminal: Terminal):
    first = (await terminal.run("publish", "--json")).json
    [state] = [path for path in terminal.home.rglob("agent.key.state*") if path.suffix == ".state"]
    for path in state.parent.glob("agent.key.state*"):
        path.unlink()
    second = (await terminal.run("publish", "--json")).json
    assert second["seq"] > first["seq"]


async def test_an_agent_that_listens_keeps_its_session_and_its_handle(tmp_path: Path):
    async with running_node() as node:
        key = new_key()
        key_file.save_new(tmp_path / "agent.key", key, None)
        terminal = Terminal(tmp_path, node.url)
        async with Agent.open(key, node.url, state=tmp_path / "agent.key.state") as agent:
            done = await terminal.run("handle", "set", "alice", "--key", "agent.key")
            assert done.code == 0, done.err
            sent = await agent.send(agent.did, b"still here")
            async for message in agent.inbox():
                assert message.eid == sent.eid
                await message.ack()
                break


async def test_a_relay_that_is_no_home_takes_no_record_and_gives_no_name(tmp_path: Path):
    async with running_node() as home, running_node() as other:
        terminal = Terminal(tmp_path, home.url)
        await terminal.run("publish")
        # the other relay does not know the agent, but the state here does
        done = await terminal.run("handle", "set", "alice", "--relay", other.url)
        assert done.code == Exit.REFUSED
        assert f"it has {home.url}" in done.err


async def test_what_is_not_there_and_what_cannot_be_asked_are_told_apart(terminal: Terminal):
    place = terminal.url.removeprefix("http://")
    nobody = await terminal.run("handle", "check", f"nobody@{place}", "--json")
    assert (nobody.code, nobody.json["state"]) == (Exit.REFUSED, "absent")
    away = await terminal.run("resolve", "alice@127.0.0.1:1", "--json")
    assert (away.code, away.json["state"]) == (Exit.UNAVAILABLE, "unreadable")
    wrong = await terminal.run("resolve", "no handle", "--json")
    assert wrong.code == Exit.REFUSED
    unknown = await terminal.run("resolve", new_key().did, "--json")
    assert (unknown.code, unknown.json["state"]) == (Exit.REFUSED, "absent")
    nowhere = Terminal(terminal.home)
    assert (await nowhere.run("resolve", new_key().did)).code == Exit.UNAVAILABLE
