"""What a command writes arrives whole, or the command says that it did not; acked only after.

With Python's own buffering on and off: images of programs often set ``PYTHONUNBUFFERED``.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import select
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from relay.cli.exit_codes import Exit
from relay.cli.output import printable
from relay.client import Agent, Bounce, Message, SigningKey
from relay.client.identity import key_file
from tests.cli.terminal import ROOT, Done, Terminal, stalling
from tests.support.nodes import new_key, running_node
from tests.support.patience import wait_until, within

pytestmark = pytest.mark.timeout(60)
either_way = pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])

TEXTS = [f"number {n:02} {'x' * 9_000} end" for n in range(8)]
LIMIT = 1024 * 1024
"""Of a file, in bytes: the state file stays below it."""


@dataclass(frozen=True)
class Home(Terminal):
    """A terminal whose person has an inbox."""

    key: SigningKey = field(default_factory=new_key)

    async def settle(self) -> None:
        """Make the key file and the inbox."""
        key_file.save_new(self.home / ".config" / "did-relay" / "agent.key", self.key, None)
        async with Agent.open(self.key, self.url):
            pass

    async def gets(self, *texts: str) -> None:
        async with Agent.open(new_key(), self.url) as friend:
            for text in texts:
                await friend.send(self.key.did, text)

    async def waiting(self) -> list[Message]:
        """What is not acked."""
        async with Agent.open(self.key, self.url) as me:
            assert me.welcome is not None
            async with within(10):
                return [await anext(me.inbox()) for _ in range(me.welcome.pending.count)]

    async def texts(self) -> list[str]:
        return [message.text() for message in await self.waiting()]


@pytest.fixture
async def terminal(tmp_path: Path) -> AsyncIterator[Home]:
    async with running_node() as node:
        home = Home(tmp_path, node.url)
        await home.settle()
        yield home


async def spawn(
    terminal: Terminal, *words: str, out: int, err: int = asyncio.subprocess.PIPE, **more: str
) -> asyncio.subprocess.Process:
    """Start a command whose stdout, and perhaps stderr, is a descriptor."""
    return await spawn_any(
        terminal, sys.executable, "-m", "relay", *words, out=out, err=err, **more
    )


async def spawn_any(
    terminal: Terminal, *words: str, out: int, err: int = asyncio.subprocess.PIPE, **more: str
) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *words,
        cwd=terminal.home,
        env=terminal.environment(**more),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=out,
        stderr=err,
    )


async def in_shell(terminal: Terminal, words: str, **more: str) -> Done:
    """Run a command with redirections."""
    command = f"exec {sys.executable} -m relay {words}"
    nowhere = asyncio.subprocess.DEVNULL
    return await ended(await spawn_any(terminal, "sh", "-c", command, out=nowhere, **more))


async def ended(process: asyncio.subprocess.Process) -> Done:
    try:
        async with within(25):
            _, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    said = (err or b"").decode()
    assert "Traceback" not in said, said
    assert "ignored" not in said, said
    return Done(process.returncode or 0, "", said)


@contextlib.contextmanager
def narrow_pipe() -> Iterator[tuple[int, int]]:
    """Both ends of a pipe, which holds a page where that can be chosen."""
    reading, writing = os.pipe()
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, reading)
        yield reading, writing
        with contextlib.suppress(OSError):
            os.close(writing)


def is_full(writing: int) -> bool:
    return not select.select([], [writing], [], 0)[1]


def read_all(reading: int) -> bytes:
    found = b""
    while part := os.read(reading, 65_536):
        found += part
    return found


@contextlib.contextmanager
def opened(path: str | Path) -> Iterator[int]:
    """A file that is appended to."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


# ---------------------------------------------------------------- the last metre


@pytest.mark.parametrize(
    ("unbuffered", "form"),
    [("", []), ("1", []), ("1", ["--json"])],
    ids=["buffered", "unbuffered", "unbuffered json"],
)
async def test_a_file_that_cannot_grow_gets_whole_lines_and_the_rest_stays_in_the_inbox(
    terminal: Home, tmp_path: Path, unbuffered: str, form: list[str]
):
    await terminal.gets(*TEXTS)
    path = tmp_path / "out"
    path.write_bytes(b"." * (LIMIT - 30_001) + b"\n")
    listen = ("listen", "--count", str(len(TEXTS)), *form)
    # blocks of 512 bytes
    limited = f"trap '' XFSZ; ulimit -f {LIMIT // 512}; exec {sys.executable} -m relay "
    with opened(path) as out:
        command = limited + " ".join(listen)
        process = await spawn_any(
            terminal, "sh", "-c", command, out=out, PYTHONUNBUFFERED=unbuffered
        )
        cut = await ended(process)
    assert cut.code == Exit.FAILED
    assert "stdout: File too large" in cut.err
    assert path.stat().st_size == LIMIT
    assert [text for text in TEXTS if text in path.read_text()] == TEXTS[:3]
    assert await terminal.texts() == TEXTS[3:]
    # the next one begins a line of its own, and what was cut off comes again
    with opened(path) as out:
        words = ("listen", "--count", "5", *form)
        again = await ended(await spawn(terminal, *words, out=out, PYTHONUNBUFFERED=unbuffered))
    assert again.code == 0
    lines = path.read_text().splitlines()[-5:]
    assert [json.loads(line)["text"] if form else line for line in lines] == TEXTS[3:]
    assert await terminal.waiting() == []


@either_way
async def test_a_full_pipe_that_does_not_block_is_waited_for(terminal: Home, unbuffered: str):
    await terminal.gets(*TEXTS)
    with narrow_pipe() as (reading, writing):
        os.set_blocking(writing, False)
        words = ("listen", "--count", str(len(TEXTS)))
        listening = await spawn(terminal, *words, out=writing, PYTHONUNBUFFERED=unbuffered)
        await wait_until(lambda: is_full(writing), 15, "the pipe is full")
        os.close(writing)
        got = await asyncio.to_thread(read_all, reading)
        done = await ended(listening)
    assert done.code == 0
    assert got.decode().splitlines() == TEXTS
    assert await terminal.waiting() == []


async def test_a_listener_that_waits_for_its_reader_can_be_ended(terminal: Home):
    await terminal.gets(*TEXTS)
    with narrow_pipe() as (reading, writing):
        listening = await spawn(terminal, "listen", out=writing)
        await wait_until(lambda: is_full(writing), 15, "the pipe is full")
        listening.send_signal(signal.SIGTERM)
        done = await ended(listening)
        os.close(writing)
        got = read_all(reading).decode()
    assert done.code == Exit.INTERRUPTED
    assert all(text not in got for text in TEXTS)
    assert await terminal.texts() == TEXTS


async def test_what_the_disk_did_not_take_is_not_acked(terminal: Home, tmp_path: Path):
    """Written, and not on the disk: a sync that fails is the last step before the ack."""
    await terminal.gets("on no disk")
    shim = tmp_path / "shim"
    shim.mkdir()
    (shim / "sitecustomize.py").write_text(
        "import os\n"
        "real = os.fsync\n"
        "def fsync(file):\n"
        "    if file == 1:\n"
        "        raise OSError(5, 'Input/output error')\n"
        "    real(file)\n"
        "os.fsync = fsync\n"
    )
    path = f"{shim}{os.pathsep}{ROOT}"
    with opened(tmp_path / "out") as out:
        done = await ended(await spawn(terminal, "listen", "--once", out=out, PYTHONPATH=path))
    assert (done.code, "stdout: Input/output error" in done.err) == (Exit.FAILED, True)
    assert await terminal.texts() == ["on no disk"]


async def test_a_bounce_that_nobody_could_read_comes_again(terminal: Home):
    async with (
        Agent.open(new_key(), terminal.url) as friend,
        Agent.open(terminal.key, terminal.url) as me,
        within(10),
    ):
        await me.send(friend.did, "no")
        await (await anext(friend.inbox())).refuse("busy")
        # it has come; it is not acked here
        assert isinstance(await anext(me.inbox()), Bounce)
    with opened("/dev/full") as full:
        nowhere = asyncio.subprocess.DEVNULL
        unread = await spawn(terminal, "listen", "--once", out=nowhere, err=full)
        assert (await ended(unread)).code == Exit.FAILED
    read = await terminal.run("listen", "--once")
    assert (read.code, "ended: busy" in read.err) == (0, True)


async def test_what_a_terminal_cannot_show_is_written_out_and_json_stays_json(terminal: Home):
    await terminal.gets("train 🚂 é", "plain")
    shown = await terminal.run("inbox", PYTHONIOENCODING="ascii")
    assert (shown.code, "train \\U0001f682 \\xe9" in shown.out) == (0, True)
    got = await terminal.run("listen", "--count", "2", "--json", PYTHONIOENCODING="ascii")
    assert [json.loads(line)["text"] for line in got.out.splitlines()] == ["train 🚂 é", "plain"]


def test_json_that_is_made_harmless_is_the_same_json():
    text = "a\x9b\u202e\U000e0041é"
    assert printable(text) == "a\\u009b\\u202e\\udb40\\udc41é"
    assert json.loads(printable(json.dumps(text, ensure_ascii=False))) == text


# ---------------------------------------------------------------- every other output


@pytest.mark.parametrize(
    ("words", "unbuffered"),
    [
        ("--version >/dev/full", ""),
        ("--help >/dev/full", "1"),
        ("version --json >&-", ""),
        ("config show >/dev/full", "1"),
        ("id new >&-", "1"),
        ("status >/dev/full", ""),
    ],
    ids=lambda value: value or "buffered",
)
async def test_a_command_whose_output_cannot_be_written_says_so(
    tmp_path: Path, words: str, unbuffered: str
):
    done = await in_shell(Terminal(tmp_path), words, PYTHONUNBUFFERED=unbuffered)
    assert done.code == Exit.FAILED
    assert "stdout: " in done.err.splitlines()[-1]


@pytest.mark.parametrize("where", ["2>/dev/full", "2>&-"])
async def test_words_that_nobody_can_read_stop_nothing(terminal: Home, where: str):
    assert (await in_shell(terminal, f"send {terminal.key.did} hello {where}")).code == 0
    assert await terminal.texts() == ["hello"]


async def test_an_envelope_is_said_to_be_stored_though_its_receipt_could_not_be_shown(
    terminal: Home,
):
    sent = await in_shell(terminal, f"send {terminal.key.did} hello --json >/dev/full")
    said = json.loads(sent.err.splitlines()[-1])
    [message] = await terminal.waiting()
    assert (sent.code, said["stored"]) == (Exit.FAILED, "yes")
    assert message.id in said["detail"]


async def test_what_became_of_an_earlier_envelope_is_told_until_it_could_be_written(
    terminal: Home,
):
    send = ("send", terminal.key.did)
    async with stalling() as silent:
        first = await terminal.run(*send, "first", "--relay", silent.url, "--timeout", "0.3")
    assert first.code == Exit.UNKNOWN
    untold = await in_shell(terminal, f"{' '.join(send)} second --json >/dev/full")
    assert untold.code == Exit.FAILED
    told = await terminal.run(*send, "third", "--json")
    kinds = [json.loads(line)["kind"] for line in told.out.splitlines()]
    assert (kinds[0], kinds[-1]) == ("earlier", "sent")


async def test_a_node_goes_on_without_its_log_and_not_without_its_one_line(tmp_path: Path):
    here = Terminal(tmp_path)
    serve = ("serve", "--data", "data", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0")
    unheard = await in_shell(here, f"{' '.join(serve)} >/dev/full")
    assert (unheard.code, "stdout: No space left" in unheard.err) == (Exit.FAILED, True)
    with opened("/dev/full") as full:
        serving = await spawn(here, *serve, out=asyncio.subprocess.PIPE, err=full)
    assert serving.stdout is not None
    async with within(20):
        assert json.loads(await serving.stdout.readline())["did"].startswith("did:key:")
    serving.send_signal(signal.SIGTERM)
    assert (await ended(serving)).code == 0
