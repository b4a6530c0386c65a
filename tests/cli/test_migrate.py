"""``relay migrate`` between real relays: progress, report, drill, and going on after a cut."""

from __future__ import annotations

import json
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from relay.cli.exit_codes import Exit
from relay.cli.output import Progress
from relay.client import Agent
from relay.client.identity import key_file as keystore
from relay.client.state import agent_state as states
from relay.protocol import migration_statement
from relay.protocol.ids import Did
from tests.cli.terminal import Terminal, line_with, stalling
from tests.client.scripted_relay import new_key
from tests.federation.linked_nodes import places, relay_at
from tests.support.nodes import RunningNode
from tests.support.patience import within

pytestmark = pytest.mark.timeout(60)


@dataclass
class House:
    """Somebody at one of two relays that know each other."""

    terminal: Terminal
    one: RunningNode
    two: RunningNode
    did: Did

    @property
    def key_file(self) -> Path:
        return self.terminal.home / ".config" / "did-relay" / "agent.key"

    async def gets(self, *texts: str) -> None:
        async with Agent.open(new_key(), self.one.url) as alice:
            for text in texts:
                await alice.send(self.did, text)

    async def reads(self, count: int) -> list[str]:
        """What the new relay delivers."""
        done = await self.terminal.run(
            *("listen", "--count", str(count), "--json", "--relay", self.two.url)
        )
        return [json.loads(line)["text"] for line in done.out.splitlines()]

    async def homes(self) -> list[str]:
        found = await self.terminal.run("resolve", self.did, "--json")
        return [home["url"] for home in found.json["homes"]]


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    here, there = places(2)
    async with relay_at(here, [there]) as one, relay_at(there, [here]) as two:
        terminal = Terminal(tmp_path, one.url)
        did = (await terminal.run("inbox", "--json")).json["did"]
        yield House(terminal, one, two, Did(did))


async def test_what_waits_moves_and_the_report_adds_up(house: House):
    await house.gets("a", "b", "c")
    done = await house.terminal.run("migrate", "--to", house.two.url, "--json")
    assert (done.code, done.err) == (0, "")
    report = done.json
    assert (report["complete"], report["was"], report["moved"], report["waiting"]) == (
        True,
        3,
        3,
        0,
    )
    for name, node in (("source", house.one), ("target", house.two)):
        relay = node.parts.key.did
        assert report[name]["did"] == relay
        said = migration_statement.verify(report[f"{name}_said"], relay)
        assert (said.did, said.counters.is_balanced or name == "target") == (house.did, True)
    assert await house.reads(3) == ["a", "b", "c"]
    assert await house.homes() == [house.two.url]
    again = await house.terminal.run("migrate", "--to", house.two.url, "--json")
    assert (again.code, again.json["id"]) == (0, report["id"])
    # the default relay is the old one yet: the commands find the new home by the record
    back = await house.terminal.run("migrate", "--to", house.one.url)
    assert back.code == 0
    assert "and all that was there is there or has ended" in back.err
    assert await house.homes() == [house.one.url]


async def test_each_step_is_a_line_where_nobody_watches(house: House):
    await house.gets(*(str(n) for n in range(20)))
    done = await house.terminal.run("migrate", "--to", house.two.url)
    assert done.code == 0
    assert done.out.strip() == house.two.url
    said = done.err.splitlines()
    steps = ["Asking the new relay", "Asking the old relay", "The old relay tells", "Publishing"]
    found = [next(i for i, line in enumerate(said) if line.startswith(step)) for step in steps]
    assert found == sorted(found)
    assert any(line.startswith("was there") and "20, and 0" in line for line in said)


def test_at_a_terminal_there_is_a_bar_and_elsewhere_the_words_once(capsys):
    bar = Progress(quiet=False, _on_terminal=True)
    bar.count("What waits follows", 0, 2000)
    bar.count("What waits follows", 1500, 2000)
    bar.end()
    shown = capsys.readouterr().err
    assert "[........................] 0 of 2,000" in shown
    assert "[##################......] 1,500 of 2,000" in shown
    assert shown.endswith("\r\x1b[K")
    plain = Progress(quiet=False, _on_terminal=False)
    plain.count("What waits follows", 0, 2000)
    plain.count("What waits follows", 1500, 2000)
    plain.end()
    assert capsys.readouterr().err == "What waits follows.\n"


async def test_the_drill_says_what_would_be_lost_and_moves_nothing(house: House):
    await house.gets("a", "b")
    drilled = await house.terminal.run("migrate", "--to", house.two.url, "--dry-run", "--json")
    assert drilled.code == 0
    assert (drilled.json["safe"], drilled.json["waiting"], drilled.json["lost"]) == (True, 2, [])
    assert len(drilled.json["lost_if_source_vanished"]) == 2
    plain = await house.terminal.run("migrate", "--to", house.two.url, "--dry-run")
    assert (plain.code, plain.out) == (0, "0\n")
    assert await house.homes() == [house.one.url]
    assert (await house.terminal.run("migrate", "--to", house.two.url)).code == 0


async def test_the_drill_where_a_move_would_lose_something_does_not_end_with_0(tmp_path: Path):
    here, there = places(2)
    async with relay_at(here, [there]) as one:
        terminal = Terminal(tmp_path, one.url)
        did = Did((await terminal.run("inbox", "--json")).json["did"])
        async with relay_at(there, [here], max_body_bytes=2000) as small:
            async with Agent.open(new_key(), one.url) as alice:
                await alice.send(did, "small")
                large = await alice.send(did, "x" * 60_000)
            drilled = await terminal.run("migrate", "--to", small.url, "--dry-run", "--json")
            lost = drilled.json["lost"]
            assert (drilled.code, drilled.json["safe"]) == (Exit.REFUSED, False)
            assert [one["eid"] for one in lost] == [large.eid]
            no = await terminal.run("migrate", "--to", small.url, "--json")
            assert no.code == Exit.REFUSED
            assert json.loads(no.err.splitlines()[-1])["error"] == "too_large"
            assert [
                h["url"] for h in (await terminal.run("resolve", did, "--json")).json["homes"]
            ] == [one.url]
        drilled = await terminal.run("migrate", "--to", small.url, "--dry-run", "--json")
        assert drilled.code == Exit.UNAVAILABLE


async def test_a_source_that_is_gone_is_said_to_hold_what_nobody_knows(tmp_path: Path):
    here, there = places(2)
    async with relay_at(there, [here]) as two:
        async with relay_at(here, [there]) as one:
            terminal = Terminal(tmp_path, one.url)
            await terminal.run("inbox", "--json")
        drilled = await terminal.run("migrate", "--to", two.url, "--dry-run")
        assert (drilled.code, drilled.out) == (Exit.UNAVAILABLE, "unknown\n")
        done = await terminal.run("migrate", "--to", two.url, "--dead-source", "--json")
        assert done.code == Exit.WAITING
        assert (done.json["waiting"], done.json["complete"]) == (None, False)
        looked = await terminal.run("inbox", "--json", "--relay", two.url)
        assert looked.code == 0


async def test_it_is_cut_off_by_ctrl_c_or_kill_and_the_same_command_goes_on(house: House):
    await house.gets("a", "b")
    pinned = house.two.parts.key.did
    # a target that answers nothing: there is time to interrupt
    async with (
        stalling() as quiet,
        house.terminal.running("migrate", "--to", quiet.url) as process,
    ):
        await quiet.was_asked()
        process.send_signal(signal.SIGINT)
        await line_with(process.stderr, "goes on where it was")
        assert await process.wait() == Exit.INTERRUPTED
    for _ in range(3):
        async with house.terminal.running("migrate", "--to", house.two.url) as process:
            await line_with(process.stderr, "Asking the old relay")
            process.kill()
    with states.opened(house.key_file.with_name("agent.key.state"), house.did) as state:
        assert state.migration.state is not None
    done = await house.terminal.run("migrate", "--to", house.two.url, "--json")
    assert (done.code, done.json["complete"]) == (0, True)
    assert done.json["target"]["did"] == pinned
    assert await house.reads(2) == ["a", "b"]


async def test_a_command_that_reads_meanwhile_says_that_the_agent_moves(tmp_path: Path):
    here, there = places(2)
    # this source may not dial where its target is, so nothing goes on
    async with relay_at(here, dial_networks=()) as one, relay_at(there) as two:
        terminal = Terminal(tmp_path, one.url)
        await terminal.run("inbox", "--json")
        stuck = await terminal.run("migrate", "--to", two.url, "--timeout", "1", "--json")
        assert stuck.code == Exit.UNAVAILABLE
        looked = await terminal.run("inbox", "--json")
        assert looked.code == Exit.UNAVAILABLE
        assert json.loads(looked.err.splitlines()[-1])["error"] == "migrating"
        async with terminal.running("listen") as process:
            await line_with(process.stderr, "Nothing comes yet: this agent changes relays")
            process.kill()


async def test_relay_listen_goes_on_where_another_command_takes_the_agent_elsewhere(house: House):
    texts = [f"text {n}" for n in range(400)]
    await house.gets(*texts)
    async with house.terminal.running("listen", "--json") as process:
        assert process.stdout is not None
        read = [await process.stdout.readline()]
        moved = await house.terminal.run("migrate", "--to", house.two.url, "--take", "--json")
        assert (moved.code, moved.json["complete"]) == (0, True)
        await house.gets("after")
        async with within(30):
            while json.loads(read[-1])["text"] != "after":
                read.append(await process.stdout.readline())
                assert read[-1], "it has ended"
        process.kill()
    shown = [json.loads(line) for line in read]
    assert {one["text"] for one in shown} == {*texts, "after"}
    unmarked = [one["text"] for one in shown if not one["redelivered"]]
    assert len(unmarked) == len(set(unmarked))


async def test_the_drill_to_where_the_agent_lives_says_so(house: House):
    drilled = await house.terminal.run("migrate", "--to", house.one.url, "--dry-run", "--json")
    assert drilled.code == Exit.REFUSED
    said = json.loads(drilled.err.splitlines()[-1])
    assert said["error"] == "wrong_state"
    assert "lives at" in said["detail"]


async def test_it_is_taken_back_while_that_can_be_done(house: House):
    nothing = await house.terminal.run("migrate", "--cancel", "--json")
    assert nothing.code == Exit.REFUSED
    async with house.terminal.running("migrate", "--to", house.two.url) as process:
        await line_with(process.stderr, "Asking the new relay")
        process.kill()
    stands = await house.terminal.run("status", "--json")
    assert stands.json["moving_to"] == house.two.url
    back = await house.terminal.run("migrate", "--cancel", "--json")
    assert (back.code, back.json["home"]) == (0, house.one.url)
    assert await house.homes() == [house.one.url]
    await house.gets("still here")
    listened = await house.terminal.run("listen", "--once", "--json")
    assert listened.json["text"] == "still here"


async def test_a_program_that_has_the_agent_is_left_alone(house: House):
    key = keystore.load(house.key_file)
    state = house.key_file.with_name("agent.key.state")
    async with Agent.open(key, house.one.url, state=state) as me:
        no = await house.terminal.run("migrate", "--to", house.two.url)
        assert no.code == Exit.REFUSED
        assert "--take" in no.err
        assert me.is_connected
        taken = await house.terminal.run("migrate", "--to", house.two.url, "--take", "--json")
        assert (taken.code, taken.json["complete"]) == (0, True)
        # the program finds out by itself where it lives now
        await house.gets("found you")
        async with within(20):
            message = await anext(me.inbox())
            assert message.text() == "found you"
            await message.ack()


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--to", "ftp://x"),
        ("--to", "http://127.0.0.1:1", "--cancel"),
        ("--cancel", "--dry-run"),
    ],
)
async def test_wrong_words_are_refused_before_anything_is_done(
    tmp_path: Path, words: tuple[str, ...]
):
    done = await Terminal(tmp_path).run("migrate", *words)
    assert done.code == Exit.USAGE
    assert not (tmp_path / ".config").exists()
