"""Every command, whatever fails: a documented exit code and a sentence, never a traceback.

The commands are listed here, by introspection: one that is new fails until it has a case. They run
in this process, since a process for each would take minutes; ``test_cli.py`` runs real ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
import typer

from relay.cli import main
from relay.cli.agent import listen
from relay.cli.app import app
from relay.cli.exit_codes import Exit
from relay.cli.node import check, peers
from relay.client.http import transport
from relay.client.identity import key_file
from relay.client.session import connection
from tests.client.network_failures import FAILURES, World
from tests.client.scripted_relay import new_key
from tests.client.test_boundary_disk import FILES, no_room

pytestmark = pytest.mark.timeout(60)

SHORT_S = 0.1
ID = "01a2075f-685f-7a93-b7ef-4e61fc67d08d"
DID = new_key().did
ENDS_BADLY = {Exit.FAILED, Exit.REFUSED, Exit.UNAVAILABLE, Exit.UNKNOWN}

OF_AN_AGENT: dict[str, str] = {
    "listen": "",
    "inbox": "",
    "send": f"{DID} hello --timeout {SHORT_S}",
    "status": f"{DID} {ID}",
    "rules": "",
    "publish": "",
    "migrate": f"--to http://127.0.0.1:9 --timeout {SHORT_S}",
    "accept": f"http://127.0.0.1:9 {DID}",
    "handle set": "name",
    "handle remove": "name",
}
"""With a key, a state file and a relay."""
OF_A_RELAY: dict[str, str] = {"resolve": DID, "handle check": "name@relay.test"}
OF_AN_OPERATOR: dict[str, str] = {
    "peers list": "",
    "peers show": DID,
    "peers add": "http://127.0.0.1:9",
    "peers remove": DID,
    "peers block": DID,
    "peers unblock": DID,
    "join": "http://127.0.0.1:9",
}
OF_A_KEY: dict[str, str] = {
    "id new": "",
    "id show": "",
    "id export": "BLOCK --plain --yes",
    "id import": "BLOCK",
    "id passwd": "--remove",
}
OF_ITS_OWN = {"version", "check", "bench", "demo", "serve", "config show"}
"""``check`` is below; the others speak to no relay, or start one."""

NETWORK = (
    "refused", "silent", "reset at once", "another protocol", "a web page", "an unknown code",
    "TLS to a plain port", "a proxy that wants a login", "SOCKS without its package",
    "a proxy of another kind", "no such name",
)  # fmt: skip
STATES = ("a directory", "no database", "a newer version", "somebody else's", "damaged pages")


@pytest.fixture(autouse=True)
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> World:
    for module, names in {
        transport: ("REQUEST_TIMEOUT_S", "MIN_TIMEOUT_S"),
        connection: ("CONNECT_S", "LOGIN_S", "CLOSE_S"),
        listen: ("OPEN_S", "LOOK_S", "PATIENCE_S"),
        check: ("STEP_S",),
        peers: ("ASK_S",),
    }.items():
        for name in names:
            monkeypatch.setattr(module, name, SHORT_S)
    for name in ("HTTP", "HTTPS", "SOCKS", "ALL", "NO"):
        monkeypatch.delenv(f"{name}_PROXY", raising=False)
        monkeypatch.delenv(f"{name}_proxy".lower(), raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("relay.client.state.agent_state._pinned", {})
    monkeypatch.setattr("relay.client.state.database.BUSY_TIMEOUT_S", 0.05)
    return World(monkeypatch, tmp_path)


@contextlib.contextmanager
def elsewhere(failing: AbstractAsyncContextManager[str]) -> Iterator[str]:
    """What fails runs in a thread of its own: a command has the loop of this one."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def do(work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result(20)

    try:
        url = do(failing.__aenter__())
        try:
            yield url
        finally:
            do(failing.__aexit__(None, None, None))
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def complaint(words: str, capture: pytest.CaptureFixture[str]) -> str | None:
    """Run a command that cannot succeed; gives what is wrong with how it ends."""
    try:
        code = main(words.split())
    except BaseException as exc:  # noqa: BLE001  whatever it is, it is judged
        return f"{words}: {exc!r}"
    out, err = capture.readouterr()
    said = out + err
    if "Traceback" in said or "Error(" in said or "ExceptionGroup" in said:
        return f"{words}: {said}"
    if code not in ENDS_BADLY:
        return f"{words}: it ended with {code}: {said}"
    return None if said.strip() else f"{words}: it said nothing"


def commands(group: Any, path: str = "") -> Iterator[str]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{name} ")
        else:
            yield f"{path}{name}"


def test_every_command_has_a_case():
    listed = [*OF_AN_AGENT, *OF_A_RELAY, *OF_AN_OPERATOR, *OF_A_KEY, *OF_ITS_OWN]
    assert sorted(listed) == sorted(commands(typer.main.get_command(app)))


@pytest.mark.parametrize("failure", NETWORK)
def test_a_command_whose_relay_cannot_be_reached_ends_with_a_sentence(world, failure, capsys):
    key_file.save_new(Path("key"), new_key())
    with elsewhere(FAILURES[failure](world)) as url:
        lines = [f"{name} {rest} --key key --relay {url}" for name, rest in OF_AN_AGENT.items()]
        lines += [f"{name} {rest} --relay {url}" for name, rest in OF_A_RELAY.items()]
        lines += [f"{name} {rest} --admin {url}" for name, rest in OF_AN_OPERATOR.items()]
        lines.append(f"check {url}")
        assert [said for line in lines if (said := complaint(line, capsys))] == []


@pytest.mark.parametrize("what", STATES)
def test_a_command_whose_state_file_cannot_be_used_ends_with_a_sentence(what, capsys):
    key_file.save_new(Path("key"), new_key())
    FILES[what](Path("key.state"))
    lines = [
        f"{name} {rest} --key key --relay http://127.0.0.1:9" for name, rest in OF_AN_AGENT.items()
    ]
    assert [said for line in lines if (said := complaint(line, capsys))] == []


def test_a_command_on_a_full_disk_ends_with_a_sentence(capsys):
    key_file.save_new(Path("key"), new_key())
    lines = [
        f"{name} {rest} --key key --relay http://127.0.0.1:9" for name, rest in OF_AN_AGENT.items()
    ]
    lines += ["id new --key new", "id export new --plain --yes --key key"]
    with no_room():
        assert [said for line in lines if (said := complaint(line, capsys))] == []


Make = Callable[[Path], object]
KEYS: dict[str, Make] = {
    "no key": lambda path: path.write_text("hello"),
    "a directory": Path.mkdir,
    "binary": lambda path: path.write_bytes(bytes(range(256))),
    "a link to itself": lambda path: path.symlink_to(path),
}


@pytest.mark.parametrize("what", KEYS)
def test_a_command_whose_key_cannot_be_used_ends_with_a_sentence(what, capsys):
    KEYS[what](Path("key"))
    KEYS[what](Path("BLOCK"))
    both = OF_A_KEY | OF_AN_AGENT
    lines = [f"{name} {rest} --key key" for name, rest in both.items()]
    assert [said for line in lines if (said := complaint(line, capsys))] == []
