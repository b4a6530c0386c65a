"""State and origins: what the SDK reads from files and from people."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from relay import client
from relay.client import (
    CorruptError,
    StateError,
    errors,
)
from relay.client.errors import AgentError, ProtocolError
from relay.client.http import origin
from relay.client.state import agent_state
from relay.protocol.endpoint_record import (
    Home,
    parse,
    sign,
)
from relay.protocol.errors import (
    ERROR_CLASS,
    ErrorCode,
)
from relay.protocol.ids import (
    Epoch,
    Timestamp,
)
from relay.protocol.jws import dumps
from relay.ws.errors import CLOSE_CODE
from tests.client.scripted_relay import new_key

NOW = Timestamp(1_800_000_000)


def names(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]


def test_state_is_what_it_was_after_a_restart(tmp_path):
    path, me, relay = tmp_path / "deep" / "state", new_key(), new_key().did
    record = sign(me, [Home(relay, "https://r.example")], now=NOW)
    with agent_state.opened(path, me.did) as kept:
        kept.pin("https://r.example", relay)
        kept.keep_record(record)
        assert kept.see_epoch(relay, Epoch("a")) is None
    with agent_state.opened(path, me.did) as again:
        assert again.relay_at("https://r.example") == relay
        assert (again.record, again.record_seq) == (record, parse(record).seq)
        assert again.see_epoch(relay, Epoch("a")) is None
        assert again.see_epoch(relay, Epoch("b")) == "a"
        modes = {stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
        assert modes == {0o600}
    assert names(path.parent) == ["state"]


def test_the_state_of_another_agent_is_refused(tmp_path):
    path = tmp_path / "state"
    with agent_state.opened(path, new_key().did):
        pass
    with pytest.raises(StateError, match="belongs to"):
        agent_state.load(path, new_key().did)


def test_an_older_record_never_replaces_a_newer_one():
    me, kept = new_key(), agent_state.State()
    homes = [Home(new_key().did, "https://r.example")]
    newer = sign(me, homes, now=NOW, newest_seq=int(NOW * 1000) + 5)
    kept.keep_record(newer)
    kept.keep_record(sign(me, homes, now=NOW))
    assert kept.record == newer


OLD_FORM = b'{"v":1,"relays":{},"epochs":{},"record":null}'


@pytest.mark.parametrize(
    "content",
    [
        *("{", "[]", '{"v":1,"relays":{},"epochs":{}}' * 40, '{"v":2,"relays":{},"epochs":{}}'),
        '{"v":1,"relays":{"https://r.example":7},"epochs":{}}',
        '{"v":1,"relays":{},"epochs":{},"record":"x"}',
    ],
)
def test_a_state_file_that_cannot_be_read_is_not_thrown_away(tmp_path, content):
    path = tmp_path / "state"
    path.write_text(content)
    with pytest.raises(StateError, match="move it away"):
        agent_state.load(path)
    assert path.read_text() == content
    assert names(tmp_path) == ["state"]


def old_form(me, relay) -> tuple[bytes, str]:
    record = sign(me, [Home(relay, "https://r.example")], now=NOW)
    members = {"v": 1, "relays": {"https://r.example": relay}, "epochs": {relay: "a"}}
    return dumps({**members, "record": record}), record


def test_a_state_file_of_the_first_form_is_taken_over_and_kept(tmp_path):
    path, me, relay = tmp_path / "state", new_key(), new_key().did
    content, record = old_form(me, relay)
    path.write_bytes(content)
    for _ in range(2):
        with agent_state.opened(path, me.did) as kept:
            assert kept.relay_at("https://r.example") == relay
            assert (kept.record, kept.epochs) == (record, {relay: "a"})
    assert (tmp_path / "state.old").read_bytes() == content
    assert sorted(names(tmp_path)) == ["state", "state.old"]
    assert {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()} == {0o600}


def test_two_that_take_over_at_once_share_one_journal(tmp_path):
    path, me, relay = tmp_path / "state", new_key(), new_key().did
    path.write_bytes(old_form(me, relay)[0])
    with ThreadPoolExecutor(4) as threads:
        kept = list(threads.map(lambda _: agent_state.load(path, me.did), range(4)))
    for number, one in enumerate(kept):
        one.pin(f"https://{number}.example", relay)
        one.close()
    with agent_state.opened(path, me.did) as again:
        assert len(again.relays) == 5


def test_the_first_form_of_another_agent_is_refused_and_untouched(tmp_path):
    path = tmp_path / "state"
    content, _ = old_form(new_key(), new_key().did)
    path.write_bytes(content)
    with pytest.raises(CorruptError, match="belongs to"):
        agent_state.load(path, new_key().did)
    assert path.read_bytes() == content
    assert names(tmp_path) == ["state"]


def test_a_kept_file_is_never_overwritten_and_a_foreign_log_is_never_read(tmp_path):
    path, old, log = (tmp_path / name for name in ("state", "state.old", "state-wal"))
    path.write_bytes(OLD_FORM)
    old.write_bytes(b"mine")
    with pytest.raises(AgentError, match="in the way"):
        agent_state.load(path)
    assert (path.read_bytes(), old.read_bytes()) == (OLD_FORM, b"mine")
    old.unlink()
    log.write_bytes(b"log")
    with pytest.raises(CorruptError):
        agent_state.load(path)
    assert path.read_bytes() == OLD_FORM


@pytest.mark.timeout(60)
@pytest.mark.parametrize("step", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_no_line_of_the_takeover_is_a_bad_one_to_be_killed_at(tmp_path, step):
    me, relay = new_key(), new_key().did
    content, _ = old_form(me, relay)
    program = Path(__file__).with_name("kill_at_each_line.py")
    done = subprocess.run(  # noqa: S603
        [sys.executable, program, "takeover", str(step), tmp_path, me.did, content.decode()],
        env={**os.environ, "PYTHONPATH": str(program.parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) * step > 150


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("ws://127.0.0.1:8080/v1/ws", "http://127.0.0.1:8080"),
        ("http://localhost:80/", "http://localhost"),
        ("https://Relay.Example", "https://relay.example"),
        ("wss://relay.example:443", "https://relay.example"),
        ("https://relay.example:8443", "https://relay.example:8443"),
        ("http://[::1]:9", "http://[::1]:9"),
    ],
)
def test_an_origin_is_read_as_the_relay_says_it(written, meant):
    assert str(origin.parse(written)) == meant


@pytest.mark.parametrize(
    "written",
    ["", "relay.example", "ftp://x", "https://u:p@x", "https://x/path", "https://x?q", "https://"],
)
def test_what_is_no_origin_is_an_error_of_the_program(written):
    with pytest.raises(ValueError, match=r"origin|https"):
        origin.parse(written)


@pytest.mark.parametrize(
    "url", ["http://10.0.0.1", "ws://relay.example", "http://192.168.1.1:8080", "http://[fe80::1]"]
)
def test_plain_text_is_refused_beyond_loopback(url):
    with pytest.raises(ProtocolError, match="TLS"):
        origin.parse(url)


def test_a_plain_network_is_dialled_only_if_it_was_named():
    assert origin.parse("http://10.1.2.3", insecure_networks=["10.0.0.0/8"]).is_insecure
    with pytest.raises(ProtocolError):
        origin.parse("http://11.1.2.3", insecure_networks=["10.0.0.0/8"])
    with pytest.raises(ProtocolError):
        origin.parse("http://relay.lan", insecure_networks=["0.0.0.0/0"])


def test_every_code_has_a_class_of_its_own_family():
    assert set(errors.CLASS_OF) == set(ErrorCode)
    for code, kind in errors.CLASS_OF.items():
        assert issubclass(kind, ERROR_CLASS[code])
        assert issubclass(kind, AgentError)
        assert errors.typed(code).code is code


def test_every_code_has_a_class_that_no_other_code_has_and_programs_can_import():
    assert len(set(errors.CLASS_OF.values())) == len(ErrorCode)
    assert all(getattr(client, kind.__name__) is kind for kind in errors.CLASS_OF.values())


def test_close_codes_mean_what_the_relay_means():
    assert {number: code for code, number in CLOSE_CODE.items() if number} == errors.CLOSE_CODES


def test_a_state_file_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(AgentError, match="cannot open"):
        agent_state.load(tmp_path / "file" / "state")
