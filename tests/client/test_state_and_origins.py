"""State and origins: what the SDK reads from files and from people."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from relay import client
from relay.client import StateError, errors
from relay.client.errors import AgentError, ProtocolError
from relay.client.http import origin
from relay.client.state import agent_state
from relay.protocol.endpoint_record import Home, parse, sign
from relay.protocol.errors import CLOSE_CODE, ERROR_CLASS, ErrorCode
from relay.protocol.ids import Epoch, Timestamp
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
    me, kept = new_key(), agent_state.AgentState()
    homes = [Home(new_key().did, "https://r.example")]
    newer = sign(me, homes, now=NOW, newest_seq=int(NOW * 1000) + 5)
    kept.keep_record(newer)
    kept.keep_record(sign(me, homes, now=NOW))
    assert kept.record == newer


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
        assert errors.make_error(code).code is code


def test_every_code_has_a_class_that_no_other_code_has_and_programs_can_import():
    assert len(set(errors.CLASS_OF.values())) == len(ErrorCode)
    assert all(getattr(client, kind.__name__) is kind for kind in errors.CLASS_OF.values())


def test_close_codes_mean_what_the_relay_means():
    assert {number: code for code, number in CLOSE_CODE.items() if number} == errors.CLOSE_CODES


def test_a_state_file_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(AgentError, match="cannot open"):
        agent_state.load(tmp_path / "file" / "state")
