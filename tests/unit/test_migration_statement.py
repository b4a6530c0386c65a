"""A side as text, and what a relay signs of one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.migration.model import state_json
from relay.migration.model.state import Handoff, MigrationSide, PartialDigest, RecordRef
from relay.migration.model.state_json import MigrationRecord
from relay.protocol import jws as jose
from relay.protocol import migration_statement
from relay.protocol.endpoint_record import RecordVersion
from relay.protocol.errors import ErrorCode, ProtocolError
from relay.protocol.ids import Did
from relay.protocol.migration_statement import MigrationCounters, MigrationStatement
from relay.protocol.types import Mode
from tests.unit.builders import ALICE, BOB, RELAY

ME = RELAY.did
DIDS = st.text("abc:", min_size=1, max_size=8).map(Did)
COUNTS = st.integers(0, 2**53 - 1)
ORDERS = st.tuples(st.integers(1, 9), COUNTS, st.binary(min_size=32, max_size=32))
RECORDS = st.builds(RecordRef, ORDERS, st.lists(DIDS, max_size=3).map(tuple))
SIDES = st.builds(
    MigrationSide,
    me=st.just(ME),
    mode=st.sampled_from(Mode),
    record=st.none() | RECORDS,
    order_seq=COUNTS,
    handoff=st.none() | st.builds(Handoff, st.text(max_size=20), DIDS),
    pending=st.none() | RECORDS,
    since=COUNTS,
    awaiting_digests=st.frozensets(DIDS, max_size=3),
    digest_received=st.booleans(),
    partial_digest=st.none() | st.builds(PartialDigest, st.binary(max_size=32), st.integers(0, 64)),
    digest_sources=st.frozensets(DIDS, max_size=3),
    digest_acked=st.booleans(),
    fork_version=st.none() | ORDERS,
)
STATEMENTS = st.builds(
    MigrationStatement,
    relay=st.just(ME),
    did=st.just(ALICE.did),
    handoff=st.text(max_size=40),
    mode=st.sampled_from(Mode),
    at=COUNTS,
    digest_received=st.booleans(),
    digest_acked=st.booleans(),
    record_names_target=st.booleans(),
    awaiting_digests=st.lists(st.sampled_from([ALICE.did, BOB.did]), unique=True).map(tuple),
    counters=st.builds(MigrationCounters, *[COUNTS] * len(MigrationCounters._fields)),
    reason=st.text(max_size=100),
)
SAID = MigrationStatement(
    ME, ALICE.did, "mig", Mode.FROZEN, 7, counters=MigrationCounters(was=3, moved=1, waiting=2)
)


def code_of(compact: str, relay: Did = ME) -> ErrorCode:
    with pytest.raises(ProtocolError) as told:
        migration_statement.verify(compact, relay)
    return told.value.code


def signed(typ: str = migration_statement.TYP, **changes: Any) -> str:
    """A statement of which the members are changed before it is signed."""
    _, payload, _ = migration_statement.sign(RELAY, SAID).split(".")
    members = jose.loads_own(jose.b64decode(payload)) | changes
    kept = {name: value for name, value in members.items() if value is not ...}
    return jose.sign(kept, typ=typ, kid=RELAY.kid, key=RELAY.sign)


# ---------------------------------------------------------------- a side as text


@given(SIDES, st.text(max_size=20))
def test_a_side_is_read_back_as_it_was_written(side: MigrationSide, order: str):
    text = state_json.encode(side, order)
    assert state_json.decode(ME, text) == MigrationRecord(side, order)
    assert "\n" not in text
    assert text == state_json.encode(*state_json.decode(ME, text))


@given(SIDES, SIDES)
def test_two_sides_are_never_one_text(one: MigrationSide, other: MigrationSide):
    assert (state_json.encode(one) == state_json.encode(other)) is (one == other)


def test_every_field_of_a_side_is_in_its_text():
    plain = MigrationSide(ME)
    full = MigrationSide(
        me=ME,
        mode=Mode.FROZEN,
        record=RecordRef(RecordVersion(1, 2, b"h"), (ME,)),
        order_seq=3,
        handoff=Handoff("mig", ALICE.did),
        pending=RecordRef(RecordVersion(1, 4, b"p"), ()),
        since=5,
        awaiting_digests=frozenset({ALICE.did}),
        digest_received=True,
        partial_digest=PartialDigest(b"w", 6),
        digest_sources=frozenset({BOB.did}),
        digest_acked=True,
        fork_version=RecordVersion(1, 7, b"f"),
    )
    for name in set(MigrationSide._fields) - {"me"}:
        one = plain._replace(**{name: getattr(full, name)})
        assert one != plain, name
        assert state_json.decode(ME, state_json.encode(one)).side == one, name


@pytest.mark.parametrize(
    "text",
    ["", "{}", '{"mode":"x"}', '{"mode":"frozen"', "nothing", '{"mode":"none","record":[1]}'],
)
def test_a_text_that_was_not_written_here_is_no_side(text: str):
    with pytest.raises(ValueError, match=r"."):
        state_json.decode(ME, text)


# ---------------------------------------------------------------- statements


@given(STATEMENTS)
def test_a_statement_is_read_as_it_was_signed(said: MigrationStatement):
    assert migration_statement.verify(migration_statement.sign(RELAY, said), ME) == said


def test_a_statement_is_one_relays_alone():
    compact = migration_statement.sign(RELAY, SAID)
    assert code_of(compact, BOB.did) is ErrorCode.BAD_SIGNATURE
    # another signs in that relay's name, with its own key id and with that relay's
    assert code_of(migration_statement.sign(BOB, SAID)) is ErrorCode.BAD_SIGNATURE
    payload = jose.loads_own(jose.b64decode(compact.split(".")[1]))
    forged = jose.sign(payload, typ=migration_statement.TYP, kid=RELAY.kid, key=BOB.sign)
    assert code_of(forged) is ErrorCode.BAD_SIGNATURE
    # a relay says of itself what another one is
    assert (
        code_of(migration_statement.sign(RELAY, replace(SAID, relay=BOB.did)))
        is ErrorCode.BAD_SIGNATURE
    )


def test_a_statement_that_was_altered_is_refused():
    head, payload, signature = migration_statement.sign(RELAY, SAID).split(".")
    members = jose.loads_own(jose.b64decode(payload))
    members["tally"]["moved"] = 3
    other = jose.b64encode(jose.dumps(members))
    assert code_of(f"{head}.{other}.{signature}") is ErrorCode.BAD_SIGNATURE


def test_what_a_newer_relay_says_besides_is_passed_over():
    assert migration_statement.verify(signed(more={"x": 1}), ME) == SAID
    tally = SAID.counters._asdict() | {"more": 1}
    assert migration_statement.verify(signed(tally=tally), ME) == SAID


@pytest.mark.parametrize(
    "changes",
    [
        {"v": 2},
        {"mode": "tombstone"},
        {"mode": ...},
        {"tally": ...},
        {"tally": {"was": 1}},
        {"tally": SAID.counters._asdict() | {"was": -1}},
        {"at": "now"},
        {"handed": 1},
        {"mig_id": "x" * 129},
        {"missing": [ALICE.did] * 65},
        {"why": "x" * 513},
        {"relay": ...},
    ],
)
def test_a_statement_of_another_form_is_refused(changes: dict[str, Any]):
    assert code_of(signed(**changes)) is ErrorCode.BAD_FRAME


def test_something_else_that_a_relay_signed_is_no_statement():
    assert code_of(signed(typ="relay-receipt+jws")) is ErrorCode.BAD_FRAME
    assert code_of("x") is ErrorCode.BAD_FRAME


# ---------------------------------------------------------------- counts


@given(st.builds(MigrationCounters, *[st.integers(0, 5)] * len(MigrationCounters._fields)))
def test_books_are_balanced_where_every_envelope_is_accounted_for(tally: MigrationCounters):
    ended = tally.moved + tally.acked + tally.expired + tally.refused + tally.corrupt
    assert tally.is_balanced is (ended + tally.waiting - tally.late == tally.was)
    even = tally._replace(was=0, late=ended + tally.waiting)
    assert even.is_balanced
    assert not even._replace(moved=even.moved + 1).is_balanced
    assert even._replace(kept=99, dups=99, was_bytes=99).is_balanced
