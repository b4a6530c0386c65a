"""The journal by itself: batches, what it forgets, a disk that fails, two processes at once."""

from __future__ import annotations

import asyncio
import sqlite3
import threading

import pytest

from relay import clock
from relay.client import ClosedError, InternalError
from relay.client.errors import make_error
from relay.client.inbox.inbox import Inbox
from relay.client.inbox.opener import EnvelopeOpener
from relay.client.inbox.relay_inbox import RelayInbox
from relay.client.state import journal
from relay.client.state.journal import Journal
from relay.client.state.peers import RETENTION_AFTER_EXPIRY_S, CustodyRecord
from relay.protocol.errors import ErrorCode
from relay.protocol.frames import Acked
from relay.protocol.ids import Eid, Epoch, MessageId, Seq, Timestamp
from tests.client.scripted_relay import deliver, envelope_of, new_key, welcome

ME, SENDER, ONE, TWO = new_key(), new_key(), new_key(), new_key()
NOW = Timestamp(1000.0)
LATER = int(clock.now()) + 1000


@pytest.fixture
def kept(tmp_path):
    made = Journal.open(tmp_path / "state", ME.did)
    yield made
    made.close()


def box_of(kept: Journal | None, relay=ONE, head: int = 1) -> RelayInbox:
    box = RelayInbox(Inbox(EnvelopeOpener(ME, lambda _: None), kept), lambda: None)
    box.connected(relay.did, welcome(head=head), was_reset=False)
    return box


async def noted(kept: Journal) -> None:
    """All that was asked for before is in the file, and its futures are done."""
    await kept.outgoing()
    await asyncio.sleep(0)


async def test_all_that_is_asked_for_at_once_is_few_commits(kept):
    before = kept._database._connection.total_changes
    commits: list[str] = []
    kept._database.run(lambda database: database.set_trace_callback(commits.append)).result()
    await asyncio.gather(*(kept.record_settled(Eid(f"e{n}"), LATER, None) for n in range(500)))
    kept._database.run(lambda database: database.set_trace_callback(None)).result()
    assert kept._database._connection.total_changes - before >= 500
    assert 1 <= commits.count("COMMIT") < 100
    known = await kept.record_delivered([(Eid("e0"), LATER), (Eid("new"), LATER)])
    assert known[Eid("e0")].is_done
    assert Eid("new") not in known


async def test_every_commit_is_synced(kept):
    pragmas = kept._database.run(
        lambda database: [
            database.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("journal_mode", "synchronous")
        ]
    ).result()
    assert pragmas == ["wal", 2]


async def test_eids_are_forgotten_a_day_after_they_expired(tmp_path):
    kept = Journal.open(tmp_path / "state", ME.did)
    now = int(clock.now())
    young, old = Eid("young"), Eid("old")
    await kept.record_settled(young, now - RETENTION_AFTER_EXPIRY_S + 600, None)
    await kept.record_settled(old, now - RETENTION_AFTER_EXPIRY_S - 600, None)
    kept.close()
    kept = Journal.open(tmp_path / "state", ME.did)
    assert set(await kept.record_delivered([(young, now), (old, now)])) == {young}
    kept.close()


async def test_over_the_limit_those_that_expire_first_are_forgotten(tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "MAX_EIDS", 200)
    kept = Journal.open(tmp_path / "state", ME.did)
    eids = [Eid(f"e{n}") for n in range(250)]
    await asyncio.gather(*(kept.record_settled(eid, LATER + n, None) for n, eid in enumerate(eids)))
    kept.close()
    kept = Journal.open(tmp_path / "state", ME.did)
    assert set(await kept.record_delivered((eid, LATER) for eid in eids)) == set(eids[52:])
    kept.close()


async def test_while_a_handler_runs_a_second_delivery_is_held_back_even_from_another_home(kept):
    box = box_of(kept)
    envelope = envelope_of(SENDER, ME.did)
    await box.delivered(deliver((1, envelope.wire)))
    message = await box._inbox.next()
    assert message is not None
    box.disconnected()
    box.connected(TWO.did, welcome(epoch="e2", head=2), was_reset=False)
    other = envelope_of(SENDER, ME.did, b"other")
    await box.delivered(deliver((1, envelope.wire), (2, other.wire), epoch="e2"))
    assert (await box._inbox.next()).body == b"other"
    assert box.next_ack(NOW) is None
    acking = asyncio.ensure_future(message.ack())
    await asyncio.sleep(0)
    await noted(kept)
    assert box.next_ack(NOW).upto == 1
    acking.cancel()


async def test_an_answer_is_said_only_when_it_is_noted(kept):
    box = box_of(kept)
    await box.delivered(deliver((1, envelope_of(SENDER, ME.did).wire)))
    message = await box._inbox.next()
    go_on = threading.Event()
    kept._database.run(lambda _: go_on.wait(5))
    await message.ack(wait=False)
    assert box.next_ack(NOW) is None
    go_on.set()
    await noted(kept)
    assert box.next_ack(NOW).upto == 1


async def one_refused(kept):
    """A box whose first message was refused and noted, and the wire bytes of that."""
    box = box_of(kept)
    wire = envelope_of(SENDER, ME.did).wire
    await box.delivered(deliver((1, wire)))
    await (await box._inbox.next()).refuse("unsupported", wait=False)
    await noted(kept)
    return box, wire


async def test_a_refusal_is_repeated_with_its_code_after_a_crash(kept):
    _, wire = await one_refused(kept)
    after = box_of(kept, TWO)
    await after.delivered(deliver((1, wire)))
    assert after.next_ack(NOW).refuse == ((1, "unsupported"),)


async def test_a_refusal_that_one_home_has_made_durable_is_acked_at_the_next_one(kept):
    box, wire = await one_refused(kept)
    assert box.next_ack(NOW).refuse == ((1, "unsupported"),)
    box.acked(Acked(Epoch("e1"), Seq(0), (), (Seq(1),)))
    for other in (box, box_of(kept, TWO)):  # in this life, and after a crash
        await noted(kept)
        other.disconnected()
        other.connected(TWO.did, welcome(epoch="e2", head=1), was_reset=False)
        await other.delivered(deliver((1, wire), epoch="e2"))
        frame = other.next_ack(NOW)
        assert (frame.upto, frame.refuse) == (1, ())


async def test_a_refusal_that_is_said_again_is_noted_when_it_is_durable(kept):
    _, wire = await one_refused(kept)
    after = box_of(kept, TWO)
    await after.delivered(deliver((1, wire)))
    assert after.next_ack(NOW).refuse == ((1, "unsupported"),)
    after.acked(Acked(Epoch("e1"), Seq(0), (), (Seq(1),)))
    await noted(kept)
    third = box_of(kept, ONE)
    await third.delivered(deliver((1, wire)))
    assert third.next_ack(NOW).refuse == ()


async def test_a_refusal_lost_with_its_epoch_is_said_in_the_next_one():
    box = box_of(None)
    wire = envelope_of(SENDER, ME.did).wire
    await box.delivered(deliver((1, wire)))
    await (await box._inbox.next()).refuse("unsupported", wait=False)
    box.disconnected()
    box.connected(ONE.did, welcome(epoch="e2", head=1), was_reset=True)
    await box.delivered(deliver((1, wire), epoch="e2"))
    assert box.next_ack(NOW).refuse == ((1, "unsupported"),)


async def test_what_cannot_be_noted_is_not_acked_and_can_be_acked_later(kept):
    box = box_of(kept)
    await box.delivered(deliver((1, envelope_of(SENDER, ME.did).wire)))
    message = await box._inbox.next()
    kept._database.run(lambda database: database.execute("PRAGMA query_only = 1")).result()
    with pytest.raises(InternalError, match="cannot write"):
        await message.ack()
    assert box.next_ack(NOW) is None
    kept._database._connection.execute("PRAGMA query_only = 0")
    await message.ack(wait=False)
    await noted(kept)
    assert box.next_ack(NOW).upto == 1


async def test_nothing_is_shown_that_cannot_be_noted(kept):
    box = box_of(kept)
    kept._database.run(lambda database: database.execute("PRAGMA query_only = 1")).result()
    with pytest.raises(InternalError):
        await box.delivered(deliver((1, envelope_of(SENDER, ME.did).wire)))
    assert box._inbox._next_shown() is None


async def test_a_processed_one_is_noted_although_the_agent_was_superseded(kept):
    box = box_of(kept)
    envelope = envelope_of(SENDER, ME.did)
    await box.delivered(deliver((1, envelope.wire)))
    message = await box._inbox.next()
    box._inbox.end(make_error(ErrorCode.SUPERSEDED, "gone"))
    with pytest.raises(Exception, match="superseded"):
        await message.ack()
    known = await kept.record_delivered([(envelope.eid, LATER)])
    assert known[envelope.eid].is_done


async def test_another_process_may_write_the_same_file(kept, tmp_path):
    other = sqlite3.connect(tmp_path / "state", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    noting = kept.record_settled(Eid("e"), LATER, None)
    other.execute("COMMIT")
    other.close()
    await noting


async def test_a_closed_journal_says_so(tmp_path):
    kept = Journal.open(tmp_path / "state")
    kept.close()
    kept.close()
    with pytest.raises(ClosedError):
        await kept.outgoing()


async def test_a_file_of_an_earlier_version_gets_what_it_lacks(tmp_path):
    kept = Journal.open(tmp_path / "state", ME.did)
    await kept.record_settled(Eid("e"), LATER, None)
    kept.close()
    earlier = sqlite3.connect(tmp_path / "state", isolation_level=None)
    for table in ("found", "handles", "holdings"):
        earlier.execute(f"DROP TABLE {table}")
    earlier.close()
    kept = Journal.open(tmp_path / "state", ME.did)
    assert (await kept.record_delivered([(Eid("e"), LATER)]))[Eid("e")].is_done
    assert await kept.peers.pin_handle("bob@relay.example", ONE.did) == ONE.did
    assert await kept.peers.pin_handle("bob@relay.example", TWO.did) == ONE.did
    kept.close()


async def test_who_holds_an_envelope_is_forgotten_a_day_after_it_expired(tmp_path):
    kept = Journal.open(tmp_path / "state", ME.did)
    now = int(clock.now())
    young, old = (
        CustodyRecord(
            Eid(eid), MessageId(eid), ONE.did, now - RETENTION_AFTER_EXPIRY_S + left, (TWO.did,)
        )
        for eid, left in (("young", 600), ("old", -600))
    )
    for one in (young, old):
        await kept.peers.save_custody(one)
    kept.close()
    kept = Journal.open(tmp_path / "state", ME.did)
    assert await kept.peers.custody(young.eid) == young
    assert await kept.peers.custody_by_id(young.id) == young
    assert await kept.peers.custody(old.eid) is None
    kept.close()


def test_whatever_nobody_waits_for_is_logged_where_the_disk_is_full(kept, caplog):
    kept._database.run(lambda database: database.execute("PRAGMA query_only = 1")).result()
    for note in (
        lambda: kept.pin_relay("https://one.example", ONE.did),
        lambda: kept.save_found_relay("https://one.example", TWO.did),
        lambda: kept.save_epoch(ONE.did, Epoch("e1")),
        lambda: kept.save_record("a record"),
    ):
        caplog.clear()
        with pytest.raises(InternalError):
            note().result()
        # the disk's thread logs it before it does the next job
        assert kept._database.run(lambda _: None).exception() is not None
        assert "the state file was not written" in caplog.text
