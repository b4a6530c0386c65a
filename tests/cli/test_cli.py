"""The command line against a real node, as processes."""

from __future__ import annotations

import json
import signal
import stat
import subprocess
import sys

import pytest

from relay import __version__
from relay.cli.exit_codes import MEANING, Exit
from relay.cli.output import printable
from tests.cli.terminal import ROOT, Terminal, line_with, stalling
from tests.support.nodes import running_node
from tests.support.patience import within

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
async def terminal(tmp_path):
    async with running_node() as node:
        yield Terminal(tmp_path, node.url)


async def test_two_terminals_exchange_an_envelope_with_no_setup_at_all(terminal, tmp_path):
    async with terminal.running("listen", "--once") as listening:
        said = await line_with(listening.stderr, "Listening as")
        did = said.split()[2]
        sent = await terminal.run("send", did, "hello from the other terminal")
        assert (sent.code, "memory" in sent.err) == (0, True)
        out, err = await listening.communicate()
        # with one and the same default key: sending takes no session, so nobody is superseded
        assert listening.returncode == 0, err
        assert out == b"hello from the other terminal\n"
        assert f"from {did}" in err.decode()
    key = tmp_path / ".config" / "did-relay" / "agent.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600


async def test_what_waits_can_be_looked_at_and_is_not_taken(terminal):
    did = (await terminal.run("inbox", "--json")).json["did"]
    for text in ("one", "two"):
        assert (await terminal.run("send", did, text)).code == 0
    for _ in range(2):
        look = (await terminal.run("inbox", "--json")).json
        assert (look["pending"], look["cursor"], look["head"]) == (2, 0, 2)
        assert [item["text"] for item in look["items"]] == ["one", "two"]
    words = await terminal.run("inbox")
    assert "2 wait for" in words.err
    assert words.out.splitlines()[0].endswith("one")
    taken = await terminal.run("listen", "--count", "2", "--json")
    assert taken.code == 0
    assert [line.count('"redelivered":true') for line in taken.out.splitlines()] == [1, 1]
    assert "Nothing waits" in (await terminal.run("inbox")).err


async def test_bytes_from_stdin_and_files_arrive_as_they_were(terminal, tmp_path):
    did = (await terminal.run("inbox", "--json")).json["did"]
    (tmp_path / "photo").write_bytes(b"\x00\xff\x1b[2J")
    assert (await terminal.run("send", did, "-", text="grüezi".encode())).code == 0
    sent = await terminal.run(
        "send", did, "--file", "photo", "--content-type", "image/x", "--thread", "t", "--plain",
        "--json",
    )  # fmt: skip
    assert sent.json["durability"] == "memory"
    got = await terminal.run("listen", "--count", "2", "--json")
    first, second = [json.loads(line) for line in got.out.splitlines()]
    assert (first["text"], first["sealed"]) == ("grüezi", True)
    assert (second["base64url"], second["content_type"]) == ("AP8bWzJK", "image/x")
    assert (second["thid"], second["sealed"], second["eid"]) == ("t", False, sent.json["eid"])


async def test_identities_are_made_once_and_shown_without_their_secret(terminal, tmp_path):
    made = await terminal.run("id", "new", "--key", "bob.key")
    assert made.code == 0
    did = made.out.strip()
    shown = await terminal.run("id", "show", "--json", RELAY_AGENT_KEY="bob.key")
    assert shown.json == {"did": did, "file": "bob.key", "encrypted": False}
    seed = json.loads((tmp_path / "bob.key").read_text())["seed"]
    assert seed not in made.out + made.err + shown.out + shown.err
    again = await terminal.run("id", "new", "--key", "bob.key")
    assert (again.code, "never overwritten" in again.err) == (Exit.FAILED, True)
    (tmp_path / "bob.key").chmod(0o644)
    open_to_all = await terminal.run("listen", "--key", "bob.key")
    assert (open_to_all.code, "chmod 600" in open_to_all.err) == (Exit.FAILED, True)
    missing = await terminal.run("listen", "--key", "nobody.key")
    assert (missing.code, "relay id new" in missing.err) == (Exit.FAILED, True)


async def test_a_no_of_the_relay_has_its_own_exit_code_and_shape(terminal):
    stranger = (await terminal.run("id", "new", "--key", "stranger.key")).out.strip()
    refused = await terminal.run("send", stranger, "x", "--json")
    assert (refused.code, refused.out) == (Exit.REFUSED, "")
    shape = json.loads(refused.err.splitlines()[-1])
    assert shape["error"] == "unknown_inbox"
    assert shape["stored"] == "no"
    words = await terminal.run("send", stranger, "x")
    assert "unknown_inbox" in words.err
    assert "first logs in" in words.err


async def test_no_relay_is_unavailable(tmp_path):
    nowhere = Terminal(tmp_path)
    did = (await nowhere.run("id", "new")).out.strip()
    sent = await nowhere.run("send", did, "x", "--timeout", "0.3")
    assert (sent.code, "127.0.0.1:1" in sent.err) == (Exit.UNAVAILABLE, True)
    looked = await nowhere.run("inbox", "--relay", "http://relay.example")
    assert (looked.code, "https" in looked.err) == (Exit.REFUSED, True)


async def test_a_relay_that_never_answers_leaves_the_outcome_unknown(tmp_path):
    async with stalling() as quiet:
        terminal = Terminal(tmp_path, quiet.url)
        did = (await terminal.run("id", "new")).out.strip()
        sent = await terminal.run("send", did, "x", "--timeout", "0.5")
    assert (sent.code, "may be stored" in sent.err) == (Exit.UNKNOWN, True)


@pytest.mark.parametrize(
    "words",
    [
        ["send", "bob", "hi"],
        ["send"],
        ["send", "did:key:z6Mk", "a", "--file", "b"],
        ["frobnicate"],
        ["listen", "--count", "0"],
        ["listen", "--relay", "relay.example"],
        ["send", "did:key:z6Mk", "a", "--wait", "read"],
    ],
)
async def test_wrong_arguments_are_usage(tmp_path, words):
    done = await Terminal(tmp_path).run(*words)
    assert (done.code, done.out) == (Exit.USAGE, "")
    assert "Error" in done.err


async def test_another_session_ends_a_listener_with_its_own_code(terminal):
    async with terminal.running("listen") as listening:
        await line_with(listening.stderr, "Listening as")
        await terminal.run("inbox")
        _, err = await listening.communicate()
    assert (listening.returncode, b"superseded" in err) == (Exit.SUPERSEDED, True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_an_interrupted_listener_leaves_quietly(terminal, number):
    async with terminal.running("listen") as listening:
        await line_with(listening.stderr, "Listening as")
        listening.send_signal(number)
        _, err = await listening.communicate()
    assert listening.returncode == Exit.INTERRUPTED
    assert err == b""


async def test_what_a_broken_pipe_swallowed_is_not_acked(terminal):
    did = (await terminal.run("inbox", "--json")).json["did"]
    listening = await terminal.start("listen")
    assert listening.stdout is not None
    await line_with(listening.stderr, "Listening as")
    # head -0: the reader is gone before the first line
    listening.stdout._transport.close()
    await terminal.run("send", did, "nobody reads this")
    async with within(15):
        _, err = await listening.communicate()
    assert b"Traceback" not in err
    assert (await terminal.run("inbox", "--json")).json["pending"] == 1


async def test_settings_are_shown_with_their_origin_and_without_secrets(tmp_path):
    here = Terminal(tmp_path)
    shown = await here.run(
        "config", "show", "--data", "d", "--json",
        RELAY_WINDOW_COUNT="7", RELAY_REDIS_URL="redis://:hunter2@localhost/0",
    )  # fmt: skip
    rows = shown.json
    assert rows["data"] == {"value": "d", "origin": "argument"}
    assert rows["window_count"] == {"value": 7, "origin": "variable RELAY_WINDOW_COUNT"}
    assert rows["listen"]["origin"] == "default"
    assert "hunter2" not in shown.out
    table = await here.run("config", "show", RELAY_REDIS_URL="redis://:hunter2@localhost/0")
    assert "hunter2" not in table.out
    assert "RELAY_REDIS_URL" in table.out
    assert table.err == ""
    odd = await here.run("config", "show", RELAY_WEATHER="fine")
    assert (odd.code, "RELAY_WEATHER is no setting" in odd.err) == (0, True)
    wrong = await here.run("config", "show", RELAY_WINDOW_COUNT="many")
    assert (wrong.code, "window_count" in wrong.err) == (Exit.FAILED, True)


async def test_the_help_lists_every_exit_code(tmp_path):
    text = " ".join((await Terminal(tmp_path).run("--help")).out.split())
    assert set(MEANING) == set(Exit)
    for code in Exit:
        assert f"{code.value} {MEANING[code]}" in text


async def test_the_version_is_told_by_each_spelling(tmp_path):
    for words in (["--version"], ["version"]):
        assert (await Terminal(tmp_path).run(*words)).out == f"relay {__version__}\n"
    assert (await Terminal(tmp_path).run("version", "--json")).json == {"version": __version__}


def test_a_command_loads_only_what_it_needs():
    loaded = {
        "--version": {"typer", "orjson", "nacl", "websockets", "pydantic", "asyncio"},
        "--help": {"websockets", "fastapi", "relay.client"},
        "id show --key nowhere": {"fastapi", "redis", "relay.settings"},
        "config show": {"fastapi", "redis", "websockets", "relay.client"},
    }
    for words, not_needed in loaded.items():
        script = (
            "import contextlib, io, sys\n"
            "from relay.cli import main\n"
            "with contextlib.redirect_stdout(io.StringIO()):\n"
            f"    main({words.split()!r})\n"
            "print(*sys.modules)"
        )
        done = subprocess.run(  # noqa: S603  our own interpreter
            [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert set(done.stdout.split()) & not_needed == set(), words


def test_without_its_extra_a_command_says_what_to_install():
    for package, extra, words in (
        ("typer", "cli", "id"),
        ("pydantic_settings", "server", "config show"),
    ):
        script = (
            "import sys\n"
            f"sys.modules[{package!r}] = None\n"
            "from relay.cli import main\n"
            f"sys.exit(main({words.split()!r}))"
        )
        done = subprocess.run(  # noqa: S603  our own interpreter
            [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        assert (
            done.stderr == f"relay: {package} is not installed; pip install 'did-relay[{extra}]'\n"
        )


def test_a_body_cannot_repaint_the_terminal():
    assert printable("a\x1b[2Jb\n\tc\u202ed\x9b") == "a\\u001b[2Jb\n\tc\\u202ed\\u009b"
