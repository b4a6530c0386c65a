"""How commands fail: one sentence or one JSON object, the reason in it, and the right exit code."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from relay import clock
from relay.cli.exit_codes import Exit
from relay.client import Agent
from relay.client.identity import key_file
from relay.client.state import agent_state as states
from relay.protocol import endpoint_record
from relay.protocol.endpoint_record import Home
from relay.protocol.ids import Timestamp
from tests.cli.terminal import ROOT, Terminal
from tests.support.nodes import RunningNode, new_key, running_node
from tests.support.ports import free_port

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
async def node() -> AsyncIterator[RunningNode]:
    async with running_node() as node:
        yield node


@pytest.fixture
def terminal(node: RunningNode, tmp_path: Path) -> Terminal:
    return Terminal(tmp_path, node.url)


async def recipient(url: str) -> str:
    """An agent that has an inbox there."""
    async with Agent.open(new_key(), url) as agent:
        return agent.did


def shim(directory: Path, code: str) -> dict[str, str]:
    """Variables with which a command runs ``code`` before anything else."""
    made = directory / "shim"
    made.mkdir(exist_ok=True)
    (made / "sitecustomize.py").write_text(code)
    return {"PYTHONPATH": f"{made}{os.pathsep}{ROOT}"}


# ---------------------------------------------------------------- something here


@pytest.mark.parametrize(
    ("words", "code", "detail"),
    [
        ("frobnicate", Exit.USAGE, "No such command"),
        ("peers list --admin nonsense", Exit.USAGE, "is not https://host"),
        ("send did:key:z6MkhaXgBZDvotDkL5257faiztiGiC2QtKLGpbnnEGta2doK --file none",
         Exit.FAILED, "none: No such file or directory"),
        ("config show", Exit.FAILED, "setting window_count"),
    ],
    ids=lambda value: value.split()[0] if isinstance(value, str) else "",
)  # fmt: skip
async def test_what_is_wrong_here_is_one_json_object_where_that_was_asked_for(
    tmp_path: Path, words: str, code: Exit, detail: str
):
    done = await Terminal(tmp_path).run(*words.split(), "--json", RELAY_WINDOW_COUNT="many")
    assert (done.code, done.out) == (code, "")
    said = json.loads(done.err)
    assert (said["error"], detail in said["detail"]) == ("wrong_state", True)


async def test_a_bug_is_one_sentence_that_says_where_and_in_development_a_traceback(
    tmp_path: Path,
):
    here = Terminal(tmp_path)
    code = "import relay.cli.node.serve as node\nnode.show_config = lambda *_, **__: 1 / 0\n"
    broken = shim(tmp_path, code)
    done = await here.run("config", "show", **broken)
    assert done.code == Exit.FAILED
    assert done.err.startswith(
        "relay: internal: this is a bug: ZeroDivisionError: division by zero"
    )
    assert done.err.count("\n") == 1
    said = json.loads((await here.run("config", "show", "--json", **broken)).err)
    assert (said["error"], "sitecustomize.py, line 2" in said["detail"]) == ("internal", True)
    process = await here.start("config", "show", PYTHONDEVMODE="1", **broken)
    _, err = await process.communicate()
    assert (process.returncode, b"Traceback" in err) == (Exit.FAILED, True)


async def test_without_a_home_directory_a_command_asks_for_a_key_file(tmp_path: Path):
    nobody = "import pwd\ndef nobody(_):\n    raise KeyError\npwd.getpwuid = nobody\n"
    code = f"import os\nos.environ.pop('HOME', None)\n{nobody}"
    done = await Terminal(tmp_path).run("inbox", **shim(tmp_path, code))
    assert (done.code, "--key FILE or RELAY_AGENT_KEY" in done.err) == (Exit.FAILED, True)


async def test_a_state_file_that_cannot_be_read_is_no_relays_no(terminal: Terminal):
    await terminal.run("id", "new", "--key", "agent.key")
    (terminal.home / "agent.key.state").write_bytes(b"no database" * 1_000)
    done = await terminal.run("publish", "--key", "agent.key")
    assert (done.code, "move it away" in done.err) == (Exit.FAILED, True)


async def test_settings_that_are_wrong_are_nobodys_no(tmp_path: Path):
    done = await Terminal(tmp_path).run("serve", RELAY_WINDOW_COUNT="many")
    assert (done.code, done.err.startswith("relay: setting window_count")) == (Exit.FAILED, True)


# ---------------------------------------------------------------- the reason


@pytest.mark.parametrize(
    ("off_s", "said"), [(600, "not_yet_valid"), (-30 * 86_400, "expired")], ids=["fast", "slow"]
)
async def test_a_refusal_for_a_wrong_clock_names_the_clocks(
    node: RunningNode, terminal: Terminal, off_s: int, said: str
):
    code = f"import time\nreal = time.time\ntime.time = lambda: real() + {off_s}\n"
    wrong = shim(terminal.home, code)
    to = await recipient(node.url)
    done = await terminal.run("send", to, "hello", **wrong)
    assert (done.code, said in done.err) == (Exit.REFUSED, True)
    assert "check both clocks" in done.err


async def test_an_address_that_speaks_no_tls_is_named_as_the_reason(
    node: RunningNode, tmp_path: Path
):
    plain = Terminal(tmp_path, node.url.replace("http", "https"))
    to = await recipient(node.url)
    done = await plain.run("send", to, "hello", "--timeout", "0.8")
    assert (done.code, "TLS" in done.err) == (Exit.UNAVAILABLE, True)


async def test_a_relay_that_does_not_greet_has_surely_stored_nothing(tmp_path: Path):
    """It takes the connection, and no TLS comes of it: nothing can have been sent."""
    silent = await asyncio.start_server(hold, "127.0.0.1", 0)
    async with silent:
        url = f"https://127.0.0.1:{silent.sockets[0].getsockname()[1]}"
        terminal = Terminal(tmp_path, url)
        done = await terminal.run("send", new_key().did, "hello", "--timeout", "0.8")
    assert (done.code, "no answer in time" in done.err) == (Exit.UNAVAILABLE, True)


async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Read, say nothing, and leave when the other one does."""
    with contextlib.closing(writer):
        while await reader.read(4096):
            pass


async def test_the_reason_is_told_though_the_outcome_is_not_known(tmp_path: Path):
    """The first answer is lost on the way, and then nobody is there."""
    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    async with server:
        terminal = Terminal(tmp_path, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        done = await terminal.run("send", new_key().did, "hello", "--timeout", "0.8")
    assert (done.code, "may be stored" in done.err) == (Exit.UNKNOWN, True)
    assert "the connection ended before the answer did" in done.err


async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.closing(writer):
        await reader.read(1)


@pytest.mark.parametrize(("limit", "size"), [(1_048_576, 500_000), (2_048, 2_000)])
async def test_the_limit_of_a_body_is_the_relays_own(tmp_path: Path, limit: int, size: int):
    async with running_node(max_body_bytes=limit) as node:
        (tmp_path / "body").write_bytes(b"x" * size)
        terminal = Terminal(tmp_path, node.url)
        to = await recipient(node.url)
        sent = await terminal.run("send", to, "--file", "body")
        plain = await terminal.run("send", to, "--file", "body", "--plain")
    fits = size * 4 // 3 < limit
    assert (sent.code, plain.code) == (Exit.OK if fits else Exit.REFUSED, Exit.OK)
    if not fits:
        assert f"at most {limit} bytes" in sent.err
        assert "sealing makes a body a third larger" in sent.err


async def test_what_no_relay_takes_is_not_sent(terminal: Terminal):
    (terminal.home / "body").write_bytes(b"x" * 1_100_000)
    done = await terminal.run("send", new_key().did, "--file", "body", "--json")
    said = json.loads(done.err.splitlines()[-1])
    assert (done.code, said["error"], said["stored"]) == (Exit.REFUSED, "too_large", "no")
    assert "no relay takes" in said["detail"]


# ---------------------------------------------------------------- looking at the inbox


async def test_an_inbox_that_shows_less_than_was_asked_for_says_so(tmp_path: Path):
    async with running_node(window_count=2) as node:
        key = new_key()
        key_file.save_new(tmp_path / "agent.key", key, None)
        async with Agent.open(key, node.url) as me:
            for text in ("one", "two", "three"):
                await me.send(me.did, text)
        terminal = Terminal(tmp_path, node.url)
        shown = await terminal.run("inbox", "--key", "agent.key", "--limit", "200")
        asked = await terminal.run("inbox", "--key", "agent.key", "--limit", "1")
    assert (shown.code, len(shown.out.splitlines())) == (0, 2)
    assert "2 are shown" in shown.err
    assert (asked.code, "are shown" in asked.err) == (0, False)


@pytest.mark.parametrize("texts", [["after it"], []], ids=["one waits", "empty"])
async def test_an_inbox_that_was_lost_is_shown_with_a_warning_and_without_once_that_is_known(
    tmp_path: Path, texts: list[str]
):
    key, relay = new_key(), new_key()
    listen = f"127.0.0.1:{free_port()}"
    key_file.save_new(tmp_path / "agent.key", key, None)
    look = ("inbox", "--key", "agent.key")
    async with running_node(key=relay, listen=listen) as node:
        terminal = Terminal(tmp_path, node.url)
        assert (await terminal.run(*look)).code == 0
    # the same relay with an empty store
    async with running_node(key=relay, listen=listen) as node:
        async with Agent.open(key, node.url) as me:
            for text in texts:
                await me.send(me.did, text)
        first = await terminal.run(*look)
        second = await terminal.run(*look, "--json")
    assert (first.code, "inbox_reset" in first.err) == (0, True)
    assert [line.rpartition("  ")[2] for line in first.out.splitlines()] == texts
    assert (second.code, second.json["reset"]) == (0, False)


# ---------------------------------------------------------------- a clock that was set back


async def test_a_record_can_be_published_after_the_clock_was_set_back(terminal: Terminal):
    key = new_key()
    key_file.save_new(terminal.home / "agent.key", key, None)
    ahead_s = endpoint_record.SEQ_SLACK_S + 200
    with states.opened(terminal.home / "agent.key.state", key.did) as state:
        here = json.loads((await terminal.run("check", terminal.url, "--no-send", "--json")).out)
        then = Timestamp(clock.now() + ahead_s)
        state.keep_record(endpoint_record.sign(key, [Home(here["relay"], terminal.url)], now=then))
        await state.flush_record()
    done = await terminal.run("handle", "set", "alice", "--key", "agent.key", "--json")
    assert done.code == 0, done.err
    assert done.json["seq"] > then * 1000 - 1
