"""``relay send`` to agents elsewhere: straight to their home, by DID or handle, and followed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from relay.cli.exit_codes import Exit
from relay.client import Agent
from relay.client.state.journal import Journal
from relay.protocol.did import SigningKey
from relay.protocol.ids import Did
from tests.cli.terminal import Stalling, Terminal, stalling
from tests.client.scripted_relay import new_key
from tests.federation.linked_nodes import Place, places, record_of, relay_at, until_held
from tests.support.nodes import RunningNode, running_node
from tests.support.patience import within

pytestmark = pytest.mark.timeout(90)


@dataclass
class World:
    """Alice's terminal at one relay; Bob at another that has nothing to do with it."""

    terminal: Terminal
    own: RunningNode
    far: RunningNode
    home: Place
    key: SigningKey

    async def know(self, record: str) -> None:
        """Alice's relay holds a record of Bob."""
        await self.own.parts.directory.merge_from_peer([record], self.home.did)

    def bob(self, **values) -> contextlib.AbstractAsyncContextManager[Agent]:
        return Agent.open(self.key, self.home.url, **values)

    @property
    def handle(self) -> str:
        return f"bob@{self.home.url.removeprefix('http://')}"


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    [home] = places(1)
    listen = f"127.0.0.1:{home.port}"
    async with (
        running_node() as own,
        running_node(key=home.key, listen=listen) as far,
    ):
        terminal = Terminal(tmp_path, own.url)
        await terminal.run("id", "new")
        yield World(terminal, own, far, home, new_key())


def lines(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


async def take(bob: Agent) -> str:
    async with within(10):
        message = await anext(bob.inbox())
    await message.ack()
    return message.text()


async def test_what_lives_elsewhere_is_posted_there_and_its_state_is_asked_there(world: World):
    async with world.bob() as bob:
        await world.know(record_of(world.key, world.home, seq=1))
        sent = await world.terminal.run("send", bob.did, "over there", "--json")
        assert sent.code == Exit.OK, sent.err
        assert (sent.json["relay"], sent.json["custody"]) == (world.home.did, "inbox")
        waits = await world.terminal.run("status", bob.did, sent.json["id"])
        assert (waits.code, waits.out) == (Exit.WAITING, "stored\n"), waits.err
        assert await take(bob) == "over there"
        done = await world.terminal.run("status", bob.did, sent.json["id"])
        assert (done.code, done.out) == (Exit.OK, "acked\n")


async def test_a_handle_is_enough_and_the_ack_is_waited_for_at_the_recipients_home(world: World):
    async with world.bob() as bob:
        await bob.publish(handles=[world.handle])
        sending = asyncio.create_task(
            world.terminal.run(
                "send", world.handle, "hi", "--wait", "acked", "--timeout", "20", "--json"
            )
        )
        assert await take(bob) == "hi"
        sent = await sending
        assert (sent.code, sent.json["state"]) == (Exit.OK, "acked"), sent.err
        assert (sent.json["to"], sent.json["relay"]) == (bob.did, world.home.did)
        again = await world.terminal.run("status", world.handle, sent.json["id"])
        assert again.out == "acked\n", "a handle names the same agent"


async def test_a_handle_that_leads_to_somebody_else_than_it_did_gets_nothing(world: World):
    did = Did((await world.terminal.run("id", "show")).out.strip())
    before = new_key().did
    state = world.terminal.home / ".config" / "did-relay" / "agent.key.state"
    journal = Journal.open(state, did)
    await journal.peers.pin_handle(world.handle, before)
    journal.close()
    async with world.bob() as bob:
        await bob.publish(handles=[world.handle])
        refused = await world.terminal.run("send", world.handle, "secret", "--json")
        assert (refused.code, refused.out) == (Exit.REFUSED, "")
        [said] = lines(refused.err)
        assert (said["error"], said["stored"]) == ("stale_record", "no")
        assert f"was {before}, and now leads to {bob.did}" in str(said["detail"])
    # the control: without the pin it goes there
    journal = Journal.open(state, did)
    await asyncio.wrap_future(journal._database.run(lambda db: db.execute("DELETE FROM handles")))
    journal.close()
    assert (await world.terminal.run("send", world.handle, "hello")).code == Exit.OK


async def test_a_pinned_handle_whose_source_is_silent_is_sent_to_within_the_deadline(
    world: World,
):
    did = Did((await world.terminal.run("inbox", "--json")).json["did"])
    state = world.terminal.home / ".config" / "did-relay" / "agent.key.state"
    async with stalling() as silent:
        handle = f"me@{silent.url.removeprefix('http://')}"
        journal = Journal.open(state, did)
        await journal.peers.pin_handle(handle, did)
        journal.close()
        sent = await world.terminal.run("send", handle, "hi", "--timeout", "3", "--json")
        assert (sent.code, sent.json["to"]) == (Exit.OK, did), sent.err


async def test_the_look_up_of_a_handle_is_part_of_the_deadline_of_the_command(world: World):
    did = Did((await world.terminal.run("id", "show")).out.strip())
    state = world.terminal.home / ".config" / "did-relay" / "agent.key.state"
    async with stalling() as source, stalling() as quiet:
        handle = f"me@{source.url.removeprefix('http://')}"
        journal = Journal.open(state, did)
        await journal.peers.pin_handle(handle, did)
        journal.close()
        words = ("send", handle, "hi", "--timeout", "5", "--relay", quiet.url, "--json")
        async with world.terminal.running(*words) as sending:
            await source.was_asked()
            began = time.monotonic()
            assert await sending.wait() == Exit.UNKNOWN
        # half of the time for the look-up, the other half for what is sent
        assert time.monotonic() - began < 5 + 2
        await quiet.was_asked()


async def test_what_is_no_recipient_or_leads_nowhere_is_said_to_be_that(world: World):
    wrong = await world.terminal.run("send", "not a@handle", "x")
    assert (wrong.code, "not a handle" in wrong.err) == (Exit.USAGE, True)
    nobody = await world.terminal.run("send", world.handle, "x", "--json")
    assert (nobody.code, lines(nobody.err)[0]["error"]) == (Exit.REFUSED, "unknown_inbox")
    away = await world.terminal.run("send", "bob@127.0.0.1:1", "x", "--json")
    assert (away.code, lines(away.err)[0]["stored"]) == (Exit.UNAVAILABLE, "no")


def at(quiet: Stalling) -> Place:
    """A home that takes requests and never answers."""
    return Place(new_key(), int(quiet.url.rpartition(":")[2]))


async def test_killed_while_a_home_does_not_answer_the_same_bytes_go_on_with_the_next_send(
    world: World,
):
    async with stalling() as quiet:
        await world.know(record_of(world.key, at(quiet)))
        async with world.terminal.running("send", world.key.did, "survives") as sending:
            await quiet.was_asked()
            sending.kill()
            await sending.wait()
    [kept] = (await world.terminal.run("status", "--json")).json["unanswered"]
    async with world.bob() as bob:
        await world.know(record_of(world.key, world.home, seq=5))
        second = await world.terminal.run("send", bob.did, "second", "--json")
        assert second.code == Exit.OK, second.err
        earlier, sent = lines(second.out)
        assert (earlier["kind"], earlier["id"], earlier["stored"]) == ("earlier", kept["id"], "yes")
        assert sent["relay"] == world.home.did
        assert [await take(bob), await take(bob)] == ["survives", "second"]
        assert (await world.terminal.run("status", "--json")).json["unanswered"] == []


async def test_a_deadline_while_a_home_does_not_answer_keeps_it_for_the_next_listen(world: World):
    async with stalling() as quiet:
        await world.know(record_of(world.key, at(quiet)))
        unknown = await world.terminal.run(
            "send", world.key.did, "later", "--timeout", "2", "--json"
        )
        assert (unknown.code, unknown.out) == (Exit.UNKNOWN, "")
        failed, kept = lines(unknown.err)
        assert (failed["stored"], kept["kind"]) == ("unknown", "kept")
    async with world.bob() as bob:
        await world.know(record_of(world.key, world.home, seq=5))
        async with world.terminal.running("listen"):
            assert await take(bob) == "later"


async def test_the_receipt_of_another_relay_than_the_record_names_is_not_believed(world: World):
    async with world.bob() as bob:
        liar = Place(new_key(), world.home.port)
        await world.know(record_of(world.key, liar, seq=5))
        sent = await world.terminal.run("send", bob.did, "x", "--timeout", "2", "--json")
        assert (sent.code, sent.out) == (Exit.UNKNOWN, "")
        assert lines(sent.err)[-1]["kind"] == "kept"


async def test_a_home_that_is_away_and_no_home_at_all_are_a_definite_no(world: World):
    [nobody] = places(1)
    await world.know(record_of(world.key, nobody))
    away = await world.terminal.run("send", world.key.did, "x", "--timeout", "2", "--json")
    assert lines(away.err)[-1]["stored"] == "no"
    assert away.code in {Exit.UNAVAILABLE, Exit.REFUSED}
    unknown = await world.terminal.run("send", new_key().did, "x", "--json")
    assert (unknown.code, lines(unknown.err)[-1]["error"]) == (Exit.REFUSED, "unknown_inbox")
    assert (await world.terminal.run("status", "--json")).json["unanswered"] == []


async def test_with_the_own_relay_away_what_is_known_of_the_recipient_is_enough(world: World):
    async with world.bob() as bob:
        await bob.publish(handles=[world.handle])
        assert (await world.terminal.run("send", world.handle, "first")).code == Exit.OK
        gone = ("--relay", "http://127.0.0.1:1")
        sent = await world.terminal.run("send", bob.did, "second", *gone, "--json")
        assert sent.code == Exit.OK, sent.err
        assert (sent.code, sent.json["relay"]) == (Exit.OK, world.home.did), sent.err
        assert [await take(bob), await take(bob)] == ["first", "second"]


async def test_between_peers_the_record_that_comes_with_the_refusal_leads_there(tmp_path: Path):
    a, c = places(2)
    carol = new_key()
    async with relay_at(a, [c]) as at_a, relay_at(c, [a]), Agent.open(carol, c.url) as receiver:
        record = receiver._parts.own_record.newest
        assert record is not None
        await until_held(at_a, carol, record.jws.compact)
        sent = await Terminal(tmp_path, a.url).run("send", carol.did, "posted", "--json")
        assert (sent.code, sent.json["relay"]) == (Exit.OK, c.did), sent.err
        assert await take(receiver) == "posted"
