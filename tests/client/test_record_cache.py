"""Records of other agents: the newest that any life of this agent has seen, and no older one."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from relay.client.directory import cache
from relay.client.directory.cache import RecordCache
from relay.client.state import agent_state as states
from relay.protocol import endpoint_record
from relay.protocol.endpoint_record import EndpointRecord
from relay.protocol.ids import Timestamp
from tests.client.scripted_relay import new_key

KEY, ME = new_key(), new_key()


def record(age_s: int) -> EndpointRecord:
    at = Timestamp(time.time() - age_s)
    return endpoint_record.parse(
        endpoint_record.sign(KEY, [endpoint_record.Home(ME.did, "https://r.example")], now=at)
    )


OLD, NEW = record(3600), record(0)


async def seen(file: Path, *shown: EndpointRecord) -> EndpointRecord | None:
    """What one life knows at its end, after it was shown so much."""
    with states.opened(file, ME.did) as state:
        assert state.journal is not None
        known = RecordCache(state.journal.peers)
        for one in shown:
            known.add(KEY.did, one.jws.compact)
        return await known.get(KEY.did)


@pytest.mark.parametrize(("first", "then"), [(NEW, OLD), (OLD, NEW)])
async def test_a_relay_that_shows_an_older_record_takes_nothing_back(tmp_path, first, then):
    file = tmp_path / "state"
    assert await seen(file, first) == first
    assert await seen(file, then) == NEW
    assert await seen(file) == NEW


async def test_what_is_forgotten_for_want_of_room_is_still_in_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "CACHE_SIZE", 1)
    other = new_key()
    others = endpoint_record.sign(other, [], now=Timestamp(time.time()))
    with states.opened(tmp_path / "state", ME.did) as state:
        assert state.journal is not None
        known = RecordCache(state.journal.peers)
        known.add(KEY.did, NEW.jws.compact)
        assert await known.get(KEY.did) == NEW
        known.add(other.did, others)
        assert known.add(KEY.did, None) is None
        assert await known.get(KEY.did) == NEW
