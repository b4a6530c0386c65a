"""The move as a machine: it goes on after any crash, and no lie of a relay ends in silent loss."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest

from relay.client import (
    AgentError,
    BadFrameError,
    BadSignatureError,
    InboxFullError,
    MigrationStalledError,
    WrongRelayError,
    WrongStateError,
)
from relay.client.migration.dry_run import dry_run
from relay.client.migration.handoff import parse_inventory_item
from relay.client.migration.retry import MigrationProgress
from relay.client.migration.runner import MigrationOptions, MigrationRunner
from relay.client.state import agent_state as states
from relay.client.state.migration_log import (
    MigrationLog,
    MigrationReport,
    MigrationStage,
    MigrationState,
)
from relay.protocol import endpoint_record, migration_order, migration_statement
from relay.protocol.errors import ErrorCode, ProtocolError
from relay.protocol.migration_statement import MigrationCounters
from relay.protocol.receipts import digest_of
from relay.protocol.types import Mode
from tests.client.migration_relays import SHORT, Relay, new_key, now, refusing, waiting, world

pytestmark = pytest.mark.timeout(30)

IN_ORDER = ["preparing", "freezing", "digest", "publishing", "copying", "done"]


class Killed(BaseException):
    """The process is gone: nothing of it runs any more."""


def stages(told: list[MigrationProgress]) -> list[str]:
    return list(dict.fromkeys(str(one.stage) for one in told))


async def test_all_that_waited_is_there_and_the_report_says_so():
    async with world(12) as here:
        told: list[MigrationProgress] = []
        items = list(here.source.items)
        me = here.alone()
        moved = await MigrationRunner(me, MigrationOptions(told.append)).start(here.target.url)
        assert moved.is_complete
        counts = (moved.initial, moved.moved, moved.new_at_target)
        assert (*counts, moved.waiting, moved.inventory_count) == (
            12,
            12,
            12,
            0,
            12,
        )
        assert moved.digest == digest_of(one.eid for one in items)
        assert {*here.target.has} == {one.eid for one in items}
        assert stages(told) == IN_ORDER
        counts = [
            (one.done, one.total)
            for one in told
            if one.stage is MigrationStage.COPYING and one.total
        ]
        assert counts == sorted(counts)
        assert {total for _, total in counts} == {12}
        statements = (moved.source_statement, here.source), (moved.target_statement, here.target)
        for compact, relay in statements:
            assert migration_statement.verify(compact or "", relay.key.did).did == me.key.did
        # the session is closed before the source stops, and opened once the record is out
        assert me.did_what[0].startswith("leave")
        assert me.did_what.index("arrive") > 0
        record = me.state.newest_record
        assert record is not None
        assert [home.url for home in record.relays] == [here.target.url]
        assert [left.url for left in record.drain] == [here.source.url]
        assert here.target.side.mode is Mode.ACTIVE
        # asked again it says the same
        assert await MigrationRunner(me, SHORT).start(here.target.url) == moved


@pytest.mark.parametrize("stage", [one for one in MigrationStage if str(one) in IN_ORDER])
@pytest.mark.parametrize("when", ["before it is noted", "once it is noted"])
async def test_a_life_that_ends_at_any_stage_is_gone_on_with(
    tmp_path, monkeypatch, stage: MigrationStage, when: str
):
    keep = MigrationLog.save

    async def dying(self: MigrationLog, move: MigrationState) -> None:
        if when == "before it is noted" and move.stage is stage:
            raise Killed
        await keep(self, move)
        if move.stage is stage:
            raise Killed

    path = tmp_path / "state"
    async with world(9) as here:
        items = {one.eid for one in here.source.items}
        with states.opened(path, here.agent.did) as state, monkeypatch.context() as patch:
            patch.setattr(MigrationLog, "save", dying)
            with pytest.raises(Killed):
                await MigrationRunner(here.alone(state), SHORT).start(here.target.url)
        with states.opened(path, here.agent.did) as state:
            moved = await MigrationRunner(here.alone(state), SHORT).start(here.target.url)
        assert moved.is_complete
        assert {*here.target.has} == items
        assert (moved.initial, moved.new_at_target) == (9, 9)


async def test_it_leads_elsewhere_when_asked_for_another_relay():
    async with world(6) as here, world(0) as there:
        there.target.agent = there.source.agent = here.agent
        third = there.target
        me = here.alone()
        # the source cannot tell the target what was seen
        here.source.other = None
        with pytest.raises(MigrationStalledError):
            await MigrationRunner(me, MigrationOptions(deadline_s=0.5)).start(here.target.url)
        first = me.state.migration.state
        assert first is not None
        assert first.source_frozen
        here.source.other, third.other = third, here.source
        moved = await MigrationRunner(me, SHORT).start(third.url)
        assert moved.is_complete
        assert moved.target.url == third.url
        second = me.state.migration.state
        assert second is not None
        assert second.parsed_order.seq > first.parsed_order.seq
        assert second.parsed_order.record.seq > first.parsed_order.record.seq
        assert second.delivery_stopped_at == first.delivery_stopped_at


# ---------------------------------------------------------------- it does not go on


async def test_where_the_target_does_not_answer_nothing_is_changed():
    async with world() as here:
        here.target.is_down = True
        me = here.alone()
        with pytest.raises(AgentError) as caught:
            await MigrationRunner(me, MigrationOptions(deadline_s=0.5)).start(here.target.url)
        assert caught.value.code is ErrorCode.PEER_UNREACHABLE
        assert me.state.migration.pending is None
        assert here.source.side.mode is Mode.ACTIVE


@pytest.mark.parametrize("code", [ErrorCode.INBOX_FULL, ErrorCode.NOT_ADMITTED])
async def test_a_target_that_says_no_is_no_home_and_its_order_is_overtaken(code: ErrorCode):
    async with world() as here:
        here.target.lies = refusing(code, "prepare")
        me = here.alone()
        with pytest.raises(AgentError) as caught:
            await MigrationRunner(me, SHORT).start(here.target.url)
        assert caught.value.code is code
        move = me.state.migration.state
        assert move is not None
        assert move.stage is MigrationStage.DROPPED
        assert "freeze" not in here.source.asked
        # whoever keeps the order could publish its record: a newer one stands in the way
        record = endpoint_record.parse(here.source.record or "")
        assert record.version > move.parsed_order.record.version
        assert record.names(here.source.key.did)
        assert here.source.side.mode is Mode.ACTIVE


@pytest.mark.alone
async def test_a_source_that_never_hands_over_its_digest_ends_with_what_can_be_done():
    async with world() as here:
        here.source.lies = lambda step, _: (
            here.source.signing(
                mode=Mode.FROZEN, handoff=_id(me), digest_acked=False, reason="the link is down"
            )
            if step == "freeze"
            else None
        )
        me = here.alone()
        began = time.monotonic()
        with pytest.raises(MigrationStalledError) as caught:
            await MigrationRunner(me, MigrationOptions(deadline_s=1.0)).start(here.target.url)
        assert time.monotonic() - began < 3
        for words in ("the link is down", "Nothing is lost", "cancel", "dead_source"):
            assert words in caught.value.detail
        assert "publish" not in here.target.asked, "published before the digest"
        move = me.state.migration.pending
        assert move is not None
        # it can be gone on with
        here.source.lies = lambda _, __: None
        assert (await MigrationRunner(me, SHORT).start(here.target.url)).is_complete


def _id(me) -> str:
    return me.state.migration.state.parsed_order.id


async def test_a_target_that_claims_to_be_ready_and_never_learns_the_digest_is_not_published():
    async with world() as here:
        here.target.lies = lambda step, _: (
            here.target.signing(digest_received=False) if step == "state" else None
        )
        me = here.alone()
        with pytest.raises(MigrationStalledError):
            await MigrationRunner(me, MigrationOptions(deadline_s=1.0)).start(here.target.url)
        assert "publish" not in here.target.asked
        assert here.source.side.mode is Mode.FROZEN
        await MigrationRunner(me, SHORT).cancel()
        assert here.source.side.mode is Mode.ACTIVE
        assert me.state.migration.pending is None
        assert me.did_what[-1] == "stay"
        assert len(here.source.items) == 12


@pytest.mark.parametrize("who", ["source", "target"])
async def test_a_statement_that_another_key_has_signed_ends_it(who: str):
    async with world() as here:
        liar: Relay = getattr(here, who)
        step = "prepare" if who == "target" else "freeze"
        false = Relay("false", here.agent, lies=lambda _, __: None)
        false.side = replace_side(false, liar)

        def lie(asked: str, said: dict[str, object]) -> dict[str, object] | None:
            if asked != step:
                return None
            getattr(liar, step)(said)
            signed = migration_statement.sign(false.key, liar.statement())
            return {"statement": signed}

        liar.lies = lie
        me = here.alone()
        with pytest.raises(BadSignatureError):
            await MigrationRunner(me, SHORT).start(here.target.url)
        assert "publish" not in [*here.target.asked][: here.target.asked.index("prepare") + 1]
        assert len(here.source.items) == 12
        liar.lies = lambda _, __: None
        assert (await MigrationRunner(me, SHORT).start(here.target.url)).is_complete


def replace_side(one: Relay, other: Relay):
    return other.side._replace(me=one.key.did)


async def test_a_statement_of_another_handoff_is_not_taken_for_this_one():
    async with world() as here:
        here.target.lies = lambda step, _: (
            here.target.signing(mode=Mode.INCOMING, handoff="another")
            if step == "prepare"
            else None
        )
        with pytest.raises(BadFrameError):
            await MigrationRunner(here.alone(), SHORT).start(here.target.url)
        assert "freeze" not in here.source.asked


async def test_another_relay_at_a_known_address_is_not_moved_to():
    async with world() as here:
        me = here.alone()
        me.state.relays = {here.target.url: new_key().did}
        with pytest.raises(WrongRelayError):
            await MigrationRunner(me, SHORT).start(here.target.url)
        assert "prepare" not in here.target.asked


# ---------------------------------------------------------------- lies that the report finds


async def test_what_a_source_lists_and_never_hands_over_is_named():
    async with world(12) as here:
        kept_back = here.source.items[3]

        def lie(step: str, _: dict[str, object]) -> dict[str, object] | None:
            if step == "state" and kept_back in here.source.items and here.source.side.names_target:
                # it claims to have handed over one that it has thrown away
                here.source.items.remove(kept_back)
                here.source.tally = here.source.tally._replace(moved=1)
            return None

        here.source.lies = lie
        moved = await MigrationRunner(here.alone(), SHORT).start(here.target.url)
        assert not moved.is_complete
        assert moved.missing == (kept_back.eid,)
        words = "12 were taken over, the new one has got 11"
        assert any(words in one for one in moved.discrepancies)


async def test_what_ended_with_a_bounce_at_the_source_is_not_missing():
    async with world(12) as here:
        refused = here.source.items[3]

        def lie(step: str, _: dict[str, object]) -> dict[str, object] | None:
            if step == "state" and refused in here.source.items and here.source.side.names_target:
                here.source.items.remove(refused)
                here.source.has[refused.eid] = "refused"
                here.source.tally = here.source.tally._replace(refused=1)
            return None

        here.source.lies = lie
        moved = await MigrationRunner(here.alone(), SHORT).start(here.target.url)
        assert moved.is_complete
        assert (moved.moved, moved.refused, moved.missing) == (11, 1, ())


@pytest.mark.parametrize(
    ("tally", "words"),
    [
        (MigrationCounters(was=12, moved=11, kept=0), "do not add up"),
        (MigrationCounters(was=40, moved=40), "listed 12 envelopes, and states that 40 waited"),
        (MigrationCounters(was=2, moved=2), "listed 12 envelopes, and states that 2 waited"),
    ],
)
async def test_counts_that_do_not_fit_are_told(tally: MigrationCounters, words: str):
    async with world(12) as here:

        def lie(step: str, _: dict[str, object]) -> dict[str, object] | None:
            if step == "state" and here.source.side.names_target:
                here.source.copy(here.target, 99)
                return here.source.signing(counters=tally)
            return None

        here.source.lies = lie
        moved = await MigrationRunner(here.alone(), SHORT).start(here.target.url)
        assert not moved.is_complete
        assert any(words in one for one in moved.discrepancies), moved.discrepancies


async def test_however_much_a_source_says_waits_a_bar_can_be_drawn():
    told: list[MigrationProgress] = []
    async with world(2) as here:
        here.source.lies = lambda step, _: (
            here.source.signing(counters=MigrationCounters(was=1, waiting=2**50))
            if step == "state"
            else None
        )
        await MigrationRunner(here.alone(), MigrationOptions(told.append, deadline_s=0.5)).start(
            here.target.url
        )
    assert [one for one in told if one.total], "it was counted"
    assert all(0 <= one.done <= one.total for one in told)


async def test_a_target_that_says_it_has_what_it_has_not_is_found_out_by_eid():
    async with world(12) as here:
        lost = [one.eid for one in here.source.items[:2]]
        here.target.lies = lambda step, said: (
            {"states": ["unknown" if e in lost else "stored" for _, _, e in said["items"]]}
            if step == "find"
            else None
        )
        moved = await MigrationRunner(here.alone(), SHORT).start(here.target.url)
        assert moved.missing == tuple(lost)
        assert not moved.is_complete


async def test_what_still_waits_at_the_deadline_is_said_and_the_same_call_looks_again():
    async with world(12) as here:
        here.source.lies = lambda step, _: (
            here.source.signing() if step == "state" and here.source.side.names_target else None
        )
        me = here.alone()
        moved = await MigrationRunner(me, MigrationOptions(deadline_s=0.5)).start(here.target.url)
        assert (moved.waiting, moved.missing, moved.discrepancies) == (12, (), ())
        assert not moved.is_complete
        assert me.state.migration.pending is not None
        here.source.lies = lambda _, __: None
        assert (await MigrationRunner(me, SHORT).start(here.target.url)).is_complete


@pytest.mark.parametrize(
    ("at", "value"), [(0, 0), (1, "\x1b[2J"), (1, "x" * 44), (3, "AAAA"), (4, -1)]
)
def test_an_inventory_that_lists_what_is_no_envelope_is_not_believed(at: int, value: object):
    good: list[object] = [1, "e" * 43, 7, "A" * 22, 10, 2_000_000_000]
    assert parse_inventory_item(good).eid == "e" * 43
    with pytest.raises(ProtocolError):
        parse_inventory_item([value if n == at else one for n, one in enumerate(good)])


async def test_an_inventory_without_an_end_is_not_read_for_ever():
    async with world() as here:
        page = waiting(1)[0]
        here.source.lies = lambda step, _: (
            {
                "items": [[1, page.eid, page.dedup_key.hour, "A" * 22, 1, 9]],
                "more": True,
            }
            if step == "inventory"
            else None
        )
        with pytest.raises(BadFrameError):
            await asyncio.wait_for(MigrationRunner(here.alone(), SHORT).start(here.target.url), 5)
        assert "freeze" not in here.source.asked


# ---------------------------------------------------------------- without the source


@pytest.mark.parametrize("from_when", ["the beginning", "its freeze"])
async def test_a_dead_source_is_left_and_what_it_holds_comes_later(from_when: str, monkeypatch):
    monkeypatch.setattr("relay.client.migration.runner.DEAD_SOURCE_TIMEOUT_S", 0.3)
    async with world(12) as here:
        me = here.alone()
        if from_when == "its freeze":
            here.source.other = None
            with pytest.raises(MigrationStalledError):
                await MigrationRunner(me, MigrationOptions(deadline_s=0.5)).start(here.target.url)
        here.source.is_down = True
        moved = await MigrationRunner(
            me, MigrationOptions(abandon_source=True, deadline_s=5)
        ).start(here.target.url)
        assert moved.waiting is None
        assert not moved.is_complete
        assert here.target.side.mode is Mode.ACTIVE
        assert here.source.key.did in here.target.side.awaiting_digests, (
            "what comes is to be marked"
        )
        assert me.state.migration.pending is None
        assert here.source.items
        here.source.is_down, here.source.other = False, here.target
        looked = await MigrationRunner(me, SHORT).start(here.target.url)
        assert (looked.waiting, looked.moved) == (0, 12), "it has returned, and the same call looks"


async def test_a_source_that_is_given_up_and_answers_all_the_same_hands_over():
    async with world(12) as here:
        moved = await MigrationRunner(here.alone(), replace(SHORT, abandon_source=True)).start(
            here.target.url
        )
        assert moved.is_complete
        assert moved.moved == 12


# ---------------------------------------------------------------- taking it back, moving back


async def test_it_can_be_taken_back_until_it_is_published_and_moved_back_after():
    async with world(6) as here:
        me = here.alone()
        with pytest.raises(WrongStateError):
            await MigrationRunner(me, SHORT).cancel()
        moved = await MigrationRunner(me, SHORT).start(here.target.url)
        assert moved.is_complete
        with pytest.raises(WrongStateError):
            await MigrationRunner(me, SHORT).cancel()
        here.target.items, here.target.has = waiting(3), {}
        here.source.tally = MigrationCounters()
        again = await MigrationRunner(me, SHORT).start(here.source.url)
        assert (again.is_complete, again.moved) == (True, 3)
        record = me.state.newest_record
        assert record is not None
        assert [home.url for home in record.relays] == [here.source.url]
        assert [left.url for left in record.drain] == [here.target.url]


async def test_migrating_to_where_it_is_moving_from_takes_it_back():
    async with world() as here:
        here.target.lies = lambda step, _: (
            here.target.signing(digest_received=False) if step == "state" else None
        )
        me = here.alone()
        with pytest.raises(MigrationStalledError):
            await MigrationRunner(me, MigrationOptions(deadline_s=0.5)).start(here.target.url)
        stayed = await MigrationRunner(me, SHORT).start(here.source.url)
        assert stayed.target.url == here.source.url
        assert here.source.side.mode is Mode.ACTIVE


async def test_a_taking_back_that_the_source_did_not_hear_is_gone_on_with(tmp_path):
    async with world() as here:
        here.target.lies = lambda step, _: (
            here.target.signing(digest_received=False) if step == "state" else None
        )
        with states.opened(tmp_path / "state", here.agent.did) as state:
            me = here.alone(state)
            with pytest.raises(MigrationStalledError):
                await MigrationRunner(me, MigrationOptions(deadline_s=0.5)).start(here.target.url)
            here.source.is_down = True
            with pytest.raises(AgentError):
                await MigrationRunner(me, MigrationOptions(deadline_s=0.3)).cancel()
        here.source.is_down = False
        with states.opened(tmp_path / "state", here.agent.did) as state:
            me = here.alone(state)
            assert me.state.migration.pending is not None
            await MigrationRunner(me, SHORT).cancel()
            assert me.state.migration.pending is None
        assert here.source.side.mode is Mode.ACTIVE


async def test_a_source_that_dies_before_it_hears_of_the_taking_back_can_still_be_left(monkeypatch):
    monkeypatch.setattr("relay.client.migration.runner.DEAD_SOURCE_TIMEOUT_S", 0.3)
    async with world(3) as here:
        here.source.other = None
        me = here.alone()
        with pytest.raises(MigrationStalledError):
            await MigrationRunner(me, MigrationOptions(deadline_s=0.3)).start(here.target.url)
        here.source.is_down = True
        with pytest.raises(MigrationStalledError):
            await MigrationRunner(me, MigrationOptions(deadline_s=0.3)).cancel()
        moved = await MigrationRunner(
            me, MigrationOptions(abandon_source=True, deadline_s=5)
        ).start(here.target.url)
        assert moved.waiting is None
        assert here.target.side.mode is Mode.ACTIVE
        assert here.source.key.did in here.target.side.awaiting_digests, (
            "what comes is to be marked"
        )
        assert me.state.migration.state is not None
        assert me.state.migration.state.source_frozen, "the source has stopped delivering"


async def test_an_agent_that_has_published_meanwhile_signs_a_newer_order():
    async with world() as here:
        me = here.alone()
        other = endpoint_record.sign(
            here.agent, [here.source.home], now=now(), newest_seq=int(time.time() * 1000) + 5000
        )
        done: list[str] = []

        def lie(step: str, _: dict[str, object]) -> dict[str, object] | None:
            if step == "prepare" and not done:
                done.append(step)
                here.target.learn(other)
                here.source.learn(other)
            return None

        here.target.lies = lie
        moved = await MigrationRunner(me, SHORT).start(here.target.url)
        assert moved.is_complete
        record = me.state.newest_record
        assert record is not None
        assert record.seq > endpoint_record.parse(other).seq


# ---------------------------------------------------------------- dry run


async def test_a_dry_run_moves_nothing_and_its_order_is_void_afterwards():
    async with world(12) as here:
        me = here.alone()
        shown: list[str] = []

        def look(_: str, said: dict[str, object]) -> None:
            shown.append(str(said.get("order", "")))

        here.target.lies = look
        found = await dry_run(me, here.target.url)
        assert found.is_safe
        assert found.waiting is not None
        assert (len(found.waiting), found.lost) == (12, ())
        assert me.state.migration.state is None
        assert (here.source.side.mode, here.target.side.mode) == (Mode.ACTIVE, Mode.NONE)
        order = next(one for one in shown if one)
        assert not here.source.freeze({"order": order, "step": "freeze"}) or (
            here.source.side.mode is Mode.ACTIVE
        ), "who was shown the order could use it"
        assert (
            here.target.publish({"record": migration_order.parse(order).record.jws.compact})[
                "stored"
            ]
            is False
        )
        # and a move goes well after it
        assert (await MigrationRunner(me, SHORT).start(here.target.url)).is_complete


async def test_a_dry_run_names_what_is_too_large_or_expired():
    async with world(3) as here:
        large, old = waiting(1, size=900_000)[0], waiting(1, lives_s=-5)[0]
        here.source.items += [large._replace(seq=4), old._replace(seq=5)]
        found = await dry_run(here.alone(), here.target.url)
        assert [eid for eid, _ in found.lost] == [large.eid, old.eid]
        assert not found.is_safe
        here.source.is_down = True
        dark = await dry_run(here.alone(), here.target.url)
        assert (dark.waiting, dark.is_safe) == (None, False)
        here.source.is_down = False
        here.target.lies = refusing(ErrorCode.INBOX_FULL, "offer")
        full = await dry_run(here.alone(), here.target.url)
        assert isinstance(full.target_failure, InboxFullError)
        assert not full.is_safe


def test_a_report_and_a_move_are_read_as_they_were_written():
    moved = MigrationReport(
        "id",
        endpoint_record.Home(new_key().did, "http://a"),
        endpoint_record.Home(new_key().did, "http://b"),
    )
    full = replace(moved, waiting=0, seconds=1.5, discrepancies=("one",), digest="x")
    assert MigrationReport.decode(full.encode()) == full
    assert MigrationReport.decode(moved.encode()) == moved
