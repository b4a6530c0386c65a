"""``relay send``: what it left unanswered is not lost; ``--wait acked`` tells how it ended."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sqlite3
import sys

import pytest

from relay.cli.exit_codes import Exit
from relay.client import Agent
from relay.client.errors import make_error
from relay.client.state.journal import Journal
from relay.protocol.errors import ErrorCode
from tests.cli.terminal import Terminal, line_with, stalling
from tests.client.scripted_relay import envelope_of, new_key
from tests.support.nodes import running_node
from tests.support.patience import wait_until

pytestmark = pytest.mark.timeout(60)

NO = {"ref": "http", "i": 0, "error": "unknown_inbox", "stored": "no", "detail": "no inbox"}
REFUSAL = json.dumps({"receipt": None, "rejected": [NO]}).encode()


@pytest.fixture
async def terminal(tmp_path):
    async with running_node() as node:
        yield Terminal(tmp_path, node.url)


def lines(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


async def own_did(terminal: Terminal) -> str:
    """Our DID; the inbox is there afterwards."""
    return (await terminal.run("inbox", "--json")).json["did"]


async def test_what_was_not_answered_is_kept_and_goes_first_the_next_time(terminal):
    did = await own_did(terminal)
    async with stalling() as quiet:
        unknown = await terminal.run(
            "send", did, "first", "--relay", quiet.url, "--timeout", "0.5", "--json"
        )
    assert (unknown.code, unknown.out) == (Exit.UNKNOWN, "")
    failed, kept = lines(unknown.err)
    assert (failed["stored"], kept["kind"], kept["to"]) == ("unknown", "kept", did)
    sent = await terminal.run("send", did, "second", "--json")
    assert sent.code == 0
    earlier, second = lines(sent.out)
    assert (earlier["kind"], earlier["id"], earlier["stored"]) == ("earlier", kept["id"], "yes")
    assert (second["kind"], second["state"]) == ("sent", "stored")
    got = lines((await terminal.run("listen", "--count", "2", "--json")).out)
    assert [(item["text"], item["eid"]) for item in got] == [
        ("first", kept["eid"]),
        ("second", second["eid"]),
    ]
    assert '"earlier"' not in (await terminal.run("send", did, "third", "--json")).out


async def test_a_send_that_is_killed_in_mid_air_is_finished_by_the_next_listen(terminal):
    did = await own_did(terminal)
    async with (
        stalling() as quiet,
        terminal.running("send", did, "survives", "--relay", quiet.url) as sending,
    ):
        await quiet.was_asked()
        sending.kill()
        await sending.wait()
    got = await terminal.run("listen", "--once")
    assert got.out == "survives\n"


async def test_what_a_listener_found_out_is_told_once(terminal):
    did = await own_did(terminal)
    async with stalling() as quiet:
        lost = await terminal.run(
            "send", did, "left", "--relay", quiet.url, "--timeout", "0.5", "--json"
        )
    kept = lines(lost.err)[-1]
    # a look at the inbox submits it, and has no place to say so
    assert (await terminal.run("inbox")).code == 0
    status = (await terminal.run("status", "--json")).json
    assert len(status["unanswered"]) + status["outcomes"] == 1
    async with terminal.running("listen", "--json") as listening:
        earlier = json.loads(await line_with(listening.stdout, '"earlier"'))

        async def is_noted() -> bool:
            return (await terminal.run("status", "--json")).json["outcomes"] == 0

        await wait_until(is_noted, 20, "that it was told is noted")
    assert (earlier["id"], earlier["stored"], earlier["error"]) == (kept["id"], "yes", None)
    assert '"earlier"' not in (await terminal.run("send", did, "x", "--json")).out


async def test_an_outcome_that_nobody_was_told_is_told_by_the_next_send(terminal, tmp_path):
    did = await own_did(terminal)
    state = tmp_path / ".config" / "did-relay" / "agent.key.state"
    left = envelope_of(new_key(), did)
    journal = Journal.open(state, did)
    await journal.save_outcome(left, make_error(ErrorCode.EXPIRED, "late", stored="unknown"))
    journal.close()
    assert "1 answered meanwhile" in (await terminal.run("status")).out
    told = await terminal.run("send", did, "x")
    assert f"{left.id} to {did}: expired; it may have been stored" in told.err
    assert "answered then" not in (await terminal.run("send", did, "x")).err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_an_interrupted_send_says_that_it_is_kept(terminal, number):
    did = await own_did(terminal)
    async with (
        stalling() as quiet,
        terminal.running("send", did, "kept", "--relay", quiet.url) as sending,
    ):
        await quiet.was_asked()
        sending.send_signal(number)
        await line_with(sending.stderr, "It is kept")
        quiet.go.set()
        assert await sending.wait() == Exit.INTERRUPTED
    told = await terminal.run("send", did, "next")
    assert "Sent before and not answered then" in told.err


async def test_a_definite_no_and_what_was_never_sent_are_not_kept(terminal):
    stranger = (await terminal.run("id", "new", "--key", "stranger.key")).out.strip()
    refused = await terminal.run("send", stranger, "x")
    assert (refused.code, "kept" in refused.err) == (Exit.REFUSED, False)
    did = await own_did(terminal)
    nobody = await terminal.run(
        "send", did, "x", "--relay", "http://127.0.0.1:1", "--timeout", "0.3"
    )
    assert (nobody.code, "kept" in nobody.err) == (Exit.UNAVAILABLE, False)
    sent = await terminal.run("send", did, "x", "--json")
    assert [line["kind"] for line in lines(sent.out)] == ["sent"]


async def test_what_another_send_has_under_way_is_left_to_it(terminal):
    did = await own_did(terminal)
    async with (
        stalling(REFUSAL) as slow,
        terminal.running("send", did, "refused", "--relay", slow.url) as first,
    ):
        await slow.was_asked()
        second = await terminal.run("send", did, "second", "--json")
        assert [line["kind"] for line in lines(second.out)] == ["sent"]
        slow.go.set()
        _, err = await first.communicate()
    assert (first.returncode, b"unknown_inbox" in err) == (Exit.REFUSED, True)
    assert (await terminal.run("listen", "--once")).out == "second\n"
    assert (await terminal.run("inbox", "--json")).json["pending"] == 0


async def test_a_no_is_not_told_as_definite_where_a_listener_has_taken_the_envelope_up(terminal):
    did = await own_did(terminal)
    async with (
        stalling(REFUSAL) as slow,
        terminal.running("send", did, "both", "--relay", slow.url, "--json") as sending,
    ):
        await slow.was_asked()
        async with terminal.running("listen") as listening:
            await line_with(listening.stdout, "both")
            slow.go.set()
            _, err = await sending.communicate()
    assert sending.returncode == Exit.UNKNOWN
    assert lines(err.decode())[0]["stored"] == "unknown"


async def test_wait_acked_tells_when_the_recipient_has_processed_it(terminal):
    bob = (await terminal.run("inbox", "--json", "--key", "bob.key")).code
    assert bob == Exit.FAILED
    await terminal.run("id", "new", "--key", "bob.key")
    did = (await terminal.run("inbox", "--json", "--key", "bob.key")).json["did"]
    async with terminal.running("send", did, "read me", "--wait", "acked") as sending:
        await line_with(sending.stderr, f"It waits for {did}")
        assert (await terminal.run("listen", "--once", "--key", "bob.key")).code == 0
        await line_with(sending.stderr, "The recipient has processed it")
        assert await sending.wait() == Exit.OK
    waiting = await terminal.run(
        "send", did, "later", "--wait", "acked", "--timeout", "0.5", "--json"
    )
    assert (waiting.code, waiting.json["state"], waiting.err) == (Exit.WAITING, "stored", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_who_interrupts_the_wait_for_an_ack_is_told_that_it_is_stored(
    terminal, tmp_path, number
):
    did = (await terminal.run("id", "new", "--key", "bob.key")).out.strip()
    async with (
        Agent.open(tmp_path / "bob.key", terminal.url) as bob,
        terminal.running("send", did, "x", "--wait", "acked", "--json") as sending,
    ):
        message = await anext(bob.inbox())
        state = tmp_path / ".config" / "did-relay" / "agent.key.state"
        with contextlib.closing(sqlite3.connect(state)) as kept:

            def is_answered() -> bool:
                return kept.execute("SELECT count(*) FROM outbox").fetchone() == (0,)

            await wait_until(is_answered, 10, "that it has left the outbox")
        sending.send_signal(number)
        out, _ = await sending.communicate()
    assert sending.returncode == Exit.INTERRUPTED
    # in the moment between the answer and the wait, the next command tells it
    told = lines(out.decode()) or lines((await terminal.run("send", did, "y", "--json")).out)
    assert told[0]["id"] == message.id
    assert {told[0].get("state"), told[0].get("stored")} <= {"stored", "yes", None}


async def test_wait_acked_tells_a_refusal(terminal, tmp_path):
    did = (await terminal.run("id", "new", "--key", "bob.key")).out.strip()
    async with (
        Agent.open(tmp_path / "bob.key", terminal.url) as bob,
        terminal.running("send", did, "x", "--wait", "acked", "--json") as sending,
    ):
        await (await anext(bob.inbox())).refuse("unsupported")
        out, _ = await sending.communicate()
    assert sending.returncode == Exit.REFUSED
    assert json.loads(out)["state"] == "refused"


async def test_wait_acked_leaves_the_inbox_to_a_listener_unless_told_to_take_it(terminal):
    async with terminal.running("listen") as listening:
        did = (await line_with(listening.stderr, "Listening as")).split()[2]
        left = await terminal.run("send", did, "x", "--wait", "acked")
        assert (left.code, "--take" in left.err) == (Exit.REFUSED, True)
        taken = await terminal.run("send", did, "y", "--wait", "acked", "--take", "--timeout", "9")
        # it was acked by the listener first, or waits since the listener was ended
        assert taken.code in {Exit.OK, Exit.WAITING}
        out, _ = await listening.communicate()
    assert listening.returncode == Exit.SUPERSEDED
    assert b"x\n" not in out


async def test_on_a_terminal_progress_is_one_line_that_changes(terminal):
    did = await own_did(terminal)
    ours, theirs = os.openpty()
    try:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "relay", "send", did, "x", "--wait", "acked"),
            *("--timeout", "1.5"),
            cwd=terminal.home,
            env=terminal.environment(),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=theirs,
        )
        assert await process.wait() == Exit.WAITING
        os.set_blocking(ours, False)
        said = b""
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(ours, 65536):
                said += chunk
    finally:
        os.close(ours)
        os.close(theirs)
    assert said.count(b"\r\x1b[KIt waits for") > 1
    assert said.replace(b"\r\n", b"\n").endswith(b"not acked yet.\n")


async def test_what_never_ends_is_too_large_and_not_read_to_the_end(tmp_path):
    nowhere = Terminal(tmp_path)
    did = (await nowhere.run("id", "new")).out.strip()
    endless = await nowhere.run("send", did, "--file", "/dev/zero", "--json")
    assert (endless.code, json.loads(endless.err)["error"]) == (Exit.REFUSED, "too_large")
    long = await nowhere.run("send", did, "-", "--json", text=b"x" * 3_000_000)
    assert (long.code, json.loads(long.err)["error"]) == (Exit.REFUSED, "too_large")
