"""Whatever the disk, SQLite or a key file does, the SDK raises what it documents."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import resource
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from relay.client import Agent, Message, Outcome, sync
from relay.client.errors import make_error
from relay.client.identity import key_file
from relay.client.identity.key_format import KdfParams
from relay.client.state import agent_state as states
from relay.client.state.journal import Journal
from relay.protocol import endpoint_record, frames
from relay.protocol.endpoint_record import Home
from relay.protocol.errors import ErrorCode
from relay.protocol.frames import Publish, Published, Resolve, Resolved, Submit
from tests.client.documented_errors import LONGEST_S, complaint, complaints_of_agent, wrong
from tests.client.scripted_relay import Talk, deliver, envelope_of, lying_relay, new_key
from tests.client.test_boundary_open import CALLS, awaited, nothing

pytestmark = pytest.mark.timeout(40)

SHORT_S = 0.3
QUICK = KdfParams(1, 8192)
ME = new_key()


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.client.state.database.BUSY_TIMEOUT_S", 0.05)
    for name in (
        "session.channel.REQUEST_TIMEOUT_S",
        "session.router.REQUEST_TIMEOUT_S",
        "http.transport.REQUEST_TIMEOUT_S",
    ):
        monkeypatch.setattr(f"relay.client.{name}", SHORT_S)


# ---------------------------------------------------------------- how a disk fails


@contextmanager
def no_room() -> Iterator[None]:
    """No file can grow."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Another program is in the midst of writing."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        yield


def made(path: Path, *statements: str) -> None:
    """A journal that holds something, and then these statements."""
    journal = Journal.open(path, ME.did)
    journal.save_record(
        endpoint_record.sign(ME, [Home(new_key().did, "https://r.test")], now=1.8e9)
    )
    journal.close()
    with closing(sqlite3.connect(path)) as database:
        for statement in statements:
            database.execute(statement)
        database.commit()


def scribbled(path: Path, start: int) -> None:
    made(path)
    with path.open("r+b") as file:
        file.seek(start)
        file.write(os.urandom(8192))


def text(path: Path, said: str) -> None:
    path.write_text(said)


def beside(path: Path, suffix: str) -> None:
    made(path)
    path.with_name(path.name + suffix).mkdir()


def as_it_is(_: Path) -> None:
    return


Prepare = Callable[[Path], None]
FILES: dict[str, Prepare] = {
    "a directory": Path.mkdir,
    "no database": partial(text, said="hello, this is a text"),
    "one byte": partial(text, said="x"),
    "half a JSON object": partial(text, said='{"v":1,"relays":'),
    "another database": lambda path: made(path, "DROP TABLE facts", "CREATE TABLE facts (x)"),
    "a newer version": lambda path: made(path, "UPDATE facts SET value = '99' WHERE name = 'v'"),
    "somebody else's": lambda path: made(path, "UPDATE facts SET value = 'x' WHERE name = 'did'"),
    "a record that is none": lambda path: made(path, "REPLACE INTO facts VALUES ('record', 'x')"),
    "numbers for words": lambda path: made(path, "REPLACE INTO facts VALUES ('record', x'00ff')"),
    "moves that are none": lambda path: made(path, "REPLACE INTO facts VALUES ('move', 'x')"),
    "a damaged head": partial(scribbled, start=20),
    "damaged pages": partial(scribbled, start=4096),
    "a log that is a directory": partial(beside, suffix="-wal"),
    "a link to itself": lambda path: path.symlink_to(path),
    "below a file": lambda path: text(path.parent, "in the way"),
}


@pytest.mark.parametrize("what", FILES)
async def test_a_state_file_that_cannot_be_opened_is_a_documented_error(tmp_path, what):
    path = tmp_path / "below" / "state"
    if what != "below a file":
        path.parent.mkdir()
    FILES[what](path)
    await opens_or_says_why(path)


@pytest.mark.parametrize("path", ["/proc/nowhere/state", f"/{'x' * 300}/below"])
async def test_a_place_where_no_file_can_be_is_a_documented_error(path):
    await opens_or_says_why(Path(path))


async def test_a_state_file_that_another_program_holds_is_a_documented_error(tmp_path):
    made(tmp_path / "state")
    with locked(tmp_path / "state"):
        await opens_or_says_why(tmp_path / "state")


async def test_a_full_disk_at_the_beginning_is_a_documented_error(tmp_path):
    with no_room():
        await opens_or_says_why(tmp_path / "state")


async def opens_or_says_why(path: Path) -> None:
    """Neither way of opening a state file raises anything that is not documented."""

    def load() -> None:
        states.load(path, ME.did).close()

    def open_sync() -> None:
        with sync.Agent.open(ME, "http://127.0.0.1:9", state=path, open_timeout_s=0.1):
            raise AssertionError("it opened")

    async def open_it() -> None:
        async with Agent.open(ME, "http://127.0.0.1:9", state=path, open_timeout_s=0.1):
            raise AssertionError("it opened")

    assert await complaint(asyncio.to_thread(load)) is None
    assert await complaint(open_it()) is None
    assert await complaint(asyncio.to_thread(open_sync)) is None


# ---------------------------------------------------------------- in the midst of it


@contextmanager
def statement(me: Agent, _: Path, said: str) -> Iterator[None]:
    disk = me._parts.state.journal._database
    disk.run(lambda database: database.execute(said)).result()
    yield


@contextmanager
def scribbles(_: Agent, path: Path) -> Iterator[None]:
    for suffix in ("", "-wal"):
        file = path.with_name(path.name + suffix)
        file.write_bytes(os.urandom(file.stat().st_size))
    yield


@contextmanager
def removes(_: Agent, path: Path) -> Iterator[None]:
    shutil.rmtree(path.parent)
    yield


@contextmanager
def locks(_: Agent, path: Path) -> Iterator[None]:
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield


@contextmanager
def fills(_: Agent, __: Path) -> Iterator[None]:
    with no_room():
        yield


@contextmanager
def closes(me: Agent, _: Path) -> Iterator[None]:
    me._parts.state.journal._database._connection.close()
    yield


Break = Callable[[Agent, Path], AbstractContextManager[None]]
BROKEN: dict[str, Break] = {
    "read-only": partial(statement, said="PRAGMA query_only = 1"),
    "full, says SQLite": partial(statement, said="PRAGMA max_page_count = 1"),
    "full, says the system": fills,
    "damaged": scribbles,
    "gone": removes,
    "locked by another": locks,
    "closed below us": closes,
}


async def be_honest(talk: Talk) -> None:
    await talk.log_in()
    wires = [envelope_of(new_key(), ME.did).wire for _ in range(3)]
    await talk.say(deliver(*enumerate(wires, 1)))
    while True:
        match frames.parse(await talk.socket.recv(decode=False), "agent"):
            case Resolve() as frame:
                await talk.say(Resolved(frame.ref, "absent"))
            case Publish() as frame:
                await talk.say(Published(frame.ref, stored=True, kv=1, seq=1))
            case Submit() | _:
                continue


@pytest.mark.parametrize("what", BROKEN)
async def test_a_disk_that_fails_later_is_a_documented_error(tmp_path, what):
    path = tmp_path / "below" / "state"
    async with lying_relay(be_honest) as relay:
        assert await complaint(use(path, relay.url, BROKEN[what])) is None


async def use(path: Path, url: str, broken: Break) -> None:
    async with Agent.open(ME, url, state=path) as me:
        inbox = me.inbox()
        one, two, three = [await anext(inbox) for _ in range(3)]
        outcome = await left_behind(me)
        with broken(me, path):
            calls: dict[str, Any] = {name: awaited(call, me) for name, call in CALLS.items()}
            calls["done"] = outcome.done()
            endless: dict[str, Any] = {
                "ack": one.ack(),
                "refuse": two.refuse(),
                "fail": fails(three),
                "inbox": anext(inbox),
                "serve": me.serve(nothing),
                "outcomes": all_of(me),
            }
            assert await complaints_of_agent(calls, endless) == {}


async def left_behind(me: Agent) -> Outcome:
    """An outcome that an earlier life of this agent has left."""
    journal = me._parts.state.journal
    await journal.save_outcome(envelope_of(ME, ME.did), make_error(ErrorCode.INBOX_FULL, "no"))
    me._parts.outcomes._changed.notify()
    return await anext(me.outcomes())


async def fails(message: Message) -> None:
    with contextlib.suppress(ZeroDivisionError):
        async with message:
            raise ZeroDivisionError


async def all_of(me: Agent) -> None:
    async for _ in me.outcomes():
        pass


# ---------------------------------------------------------------- key files

KEY = new_key()
ON_KEYS: dict[str, Callable[[Path], object]] = {
    "generate": lambda path: key_file.generate(path, "secret", kdf=QUICK),
    "save_new": lambda path: key_file.save_new(path, KEY),
    "read": key_file.read,
    "load": lambda path: key_file.load(path, "secret"),
    "replace": lambda path: key_file.replace(path, KEY, None),
    "write_new": lambda path: key_file.write_new(path, b"x"),
}
KEYS: dict[str, Prepare] = {
    "nothing": as_it_is,
    "a directory": Path.mkdir,
    "a pipe": os.mkfifo,
    "no key": partial(text, said="hello"),
    "an empty file": partial(text, said=""),
    "a long file": partial(text, said="x" * 100_000),
    "binary": lambda path: path.write_bytes(bytes(range(256))),
    "open to others": lambda path: (key_file.save_new(path, KEY), path.chmod(0o644)),
    "a key": lambda path: key_file.save_new(path, KEY),
    "an encrypted key": lambda path: key_file.save_new(path, KEY, "another", kdf=QUICK),
    "a link to itself": lambda path: path.symlink_to(path),
    "a link to nothing": lambda path: path.symlink_to("nowhere"),
    "below a file": lambda path: text(path.parent, "in the way"),
}


def test_every_call_on_key_files_has_a_case():
    found = inspect.getmembers(key_file, inspect.isfunction)
    own = {name for name, one in found if one.__module__ == key_file.__name__}
    assert set(ON_KEYS) == {name for name in own if not name.startswith("_")}


@pytest.mark.parametrize("has_room", [True, False], ids=["", "without room"])
@pytest.mark.parametrize("call", ON_KEYS)
@pytest.mark.parametrize("what", KEYS)
def test_a_key_file_that_cannot_be_used_is_a_documented_error(tmp_path, what, call, has_room):
    path = tmp_path / "below" / "key"
    if what != "below a file":
        path.parent.mkdir()
    KEYS[what](path)
    assert judged(partial(ON_KEYS[call], path), has_room=has_room) is None


@pytest.mark.parametrize("path", ["/proc/nowhere/key", f"/{'x' * 300}/below", "/dev/null"])
@pytest.mark.parametrize("call", ON_KEYS)
def test_a_place_where_no_key_can_be_is_a_documented_error(path, call):
    assert judged(partial(ON_KEYS[call], Path(path))) is None


def judged(call: Callable[[], object], *, has_room: bool = True) -> str | None:
    try:
        with contextlib.nullcontext() if has_room else no_room():
            call()
    except Exception as exc:  # noqa: BLE001  whatever it is, it is judged
        return wrong(exc)
    return None


# ---------------------------------------------------------------- the judge itself


async def escapes() -> None:
    raise OSError("from below")


async def escapes_in_a_group() -> None:
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(escapes())


async def is_cancelled_by_nobody() -> None:
    raise asyncio.CancelledError


async def never_ends() -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize("call", [escapes, escapes_in_a_group, is_cancelled_by_nobody])
async def test_what_is_not_documented_is_found(call):
    assert await complaint(call()) is not None
    assert set(await complaints_of_agent({"a": call()}, {"b": call()})) == {"a", "b"}


async def test_what_does_not_end_is_found():
    assert await complaint(never_ends(), 0.01) == "it does not end"
    assert LONGEST_S > SHORT_S
    assert await complaints_of_agent({}, {"b": never_ends()}) == {}
