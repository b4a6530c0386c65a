"""What is sent arrives as it was, or is refused where it is made."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import itertools
import math
import time
import uuid
from decimal import Decimal

import pytest

from relay.client import Agent, BadEnvelopeError, BadFrameError, TooLargeError
from relay.client.inbox.opener import EnvelopeOpener, Opened
from relay.client.message import MAX_OPENED_BODY_BYTES
from relay.client.migration import orders
from relay.client.outbox.signing import check, sign
from relay.client.state.agent_state import AgentState
from relay.protocol import endpoint_record
from relay.protocol.errors import RelayError
from relay.protocol.ids import Timestamp
from relay.protocol.jws import loads
from relay.protocol.receipts import BOUNCE_CONTENT_TYPE
from relay.protocol.sealing import CONTENT_TYPE
from tests.client.scripted_relay import new_key
from tests.support.nodes import running_node
from tests.support.patience import within

ALICE, BOB = new_key(), new_key()
MONTH_S = 30 * 24 * 3600


class Colour(enum.Enum):
    RED = "red"


class Size(enum.IntEnum):
    LARGE = 3


class Kind(enum.StrEnum):
    ORDER = "order"


@dataclasses.dataclass
class Point:
    x: int


def opened(body, **values) -> Opened:
    """What the recipient gets of it."""
    envelope = sign(ALICE, BOB.did, body, **values)
    found = EnvelopeOpener(BOB, lambda _: None).open(loads(envelope.wire))
    assert isinstance(found, Opened)
    return found


def deep(levels: int) -> list:
    made: list = []
    for _ in range(levels):
        made = [made]
    return made


@pytest.mark.parametrize(
    "body",
    [
        *(None, True, 0, -0.0, 0.1 + 0.2, 1e308, 5e-324, 2**53 + 1, -(2**63), 2**64 - 1),
        *([], {}, {"": ""}, {"a": {"b": [1, {"c": None}]}}, deep(200), Size.LARGE, [Kind.ORDER]),
    ],
    ids=lambda body: f"{body!r:.20}",
)
def test_what_json_can_say_comes_back_equal(body):
    back = opened(body).message(None, redelivered=False).json()
    assert back == body
    assert type(back) in {type(body), int}
    assert math.copysign(1, back) == math.copysign(1, body) if isinstance(body, float) else True


@pytest.mark.parametrize(
    ("body", "error", "named"),
    [
        (math.nan, ValueError, "the body is nan"),
        (math.inf, ValueError, "the body is inf"),
        ({"price": math.nan}, ValueError, r"the body\['price'\] is nan"),
        ([1.5, {"a": [-math.inf]}], ValueError, r"the body\[1\]\['a'\]\[0\] is -inf"),
        ({"at": (1, 2)}, TypeError, r"the body\['at'\] is \(1, 2\)"),
        ([dt.date(2026, 1, 2)], TypeError, "would arrive as '2026-01-02'"),
        ([dt.datetime(2026, 1, 2, tzinfo=dt.UTC)], TypeError, "would arrive as"),
        ([dt.time(1, 2)], TypeError, "would arrive as"),
        ({"id": uuid.UUID(int=1)}, TypeError, "would arrive as '00000000"),
        ([Colour.RED], TypeError, "would arrive as 'red'"),
        ([Point(1)], TypeError, "would arrive as"),
        ({1: "x"}, TypeError, "."),
        (2**64, TypeError, "."),
        ({1, 2}, TypeError, "."),
        ([Decimal(1)], TypeError, "."),
        ([b"x"], TypeError, "."),
        ({"s": "\ud800"}, TypeError, "."),
        ("\ud800", ValueError, "."),
        (deep(300), TypeError, "."),
    ],
    ids=lambda value: f"{value!r:.20}",
)
def test_what_would_arrive_as_something_else_is_refused_and_named(body, error, named):
    with pytest.raises(error, match=named):
        sign(ALICE, BOB.did, body)


WRONG = [
    {"content_type": "a" * 257},
    {"content_type": "\ud800"},
    {"content_type": BOUNCE_CONTENT_TYPE},
    {"type": "a" * 257},
    {"type": ""},
    {"type": "\ud800"},
    {"thid": "a" * 65},
    {"thid": ""},
    {"pthid": "a" * 65},
    {"pthid": ""},
    {"lifetime_s": 0},
    {"lifetime_s": -1},
    {"lifetime_s": MONTH_S + 1},
    {"lifetime_s": 1.5},
    {"lifetime_s": 2**70},
]


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("values", WRONG, ids=lambda values: f"{values!r:.30}")
def test_what_a_relay_or_the_recipient_would_refuse_is_refused_where_it_is_made(values, sealed):
    with pytest.raises(BadEnvelopeError) as caught:
        sign(ALICE, BOB.did, b"x", sealed=sealed, **values)
    assert caught.value.stored == "no"


@pytest.mark.parametrize("sealed", [True, False])
def test_what_is_at_the_limits_arrives(sealed):
    limits = {"content_type": "é" * 256, "type": "t" * 256, "thid": "é" * 64, "pthid": "p" * 64}
    got = opened(b"x", sealed=sealed, lifetime_s=MONTH_S, **limits)
    message = got.message(None, redelivered=False)
    assert {name: getattr(message, name) for name in limits} == limits


def test_plain_text_that_says_it_is_sealed_is_refused():
    with pytest.raises(BadEnvelopeError):
        sign(ALICE, BOB.did, b"x", sealed=False, content_type=CONTENT_TYPE)


def test_no_more_is_made_than_an_agent_opens_whatever_its_relay_takes():
    opened(b"x" * MAX_OPENED_BODY_BYTES, sealed=False, max_body_bytes=2**30)
    with pytest.raises(TooLargeError) as caught:
        sign(ALICE, BOB.did, b"x" * (MAX_OPENED_BODY_BYTES + 1), sealed=False, max_body_bytes=2**30)
    assert caught.value.stored == "no"


@pytest.mark.parametrize(
    "spoilt",
    [
        {"wire": b"}{"},
        {"wire": b"{}"},
        {"eid": "another"},
        {"id": "another"},
        {"to": ALICE.did},
        {"expires_at": 1},
    ],
    ids=["no JSON", "no envelope", "eid", "id", "to", "expires_at"],
)
async def test_an_envelope_that_no_relay_could_read_is_not_submitted(spoilt):
    envelope = sign(ALICE, BOB.did, "x")
    check(envelope)
    async with running_node() as node, Agent.open(ALICE, node.url) as alice:
        with pytest.raises(BadEnvelopeError):
            await alice.submit(dataclasses.replace(envelope, **spoilt))
        assert alice.unanswered == 0


def is_record(compact: str) -> bool:
    try:
        return endpoint_record.parse(compact).did == ALICE.did
    except RelayError:
        return False


def test_an_order_to_move_that_no_relay_could_read_is_not_made():
    homes = [endpoint_record.Home(new_key().did, f"https://{n}.example") for n in "abcde"]
    there = endpoint_record.Home(new_key().did, "https://there.example")
    now = Timestamp(time.time())
    sizes = range(endpoint_record.MAX_RECORD_BYTES)
    made = (
        endpoint_record.sign(ALICE, homes, now=now, handles=["h" * (n // 8)] * 8) for n in sizes
    )
    # the longest record that there is; that of the order names the homes that it leaves, too
    full = list(itertools.takewhile(is_record, made))[-1]
    state = AgentState(record=full)
    with pytest.raises(BadFrameError):
        orders.sign_order(ALICE, state, homes[0], there)


async def test_a_reason_that_the_relay_could_not_read_is_refused_and_ends_nothing(tmp_path):
    async with (
        running_node() as node,
        Agent.open(new_key(), node.url, state=str(tmp_path / "state")) as me,
    ):
        sent = await me.send(me.did, "x")
        message = await anext(me.inbox())
        for reason in ("", "a" * 65, "\ud800"):
            with pytest.raises(ValueError, match=r"reason|surrogates"):
                await message.refuse(reason)
        async with within(10):
            await message.refuse("é" * 64)
        assert await me.status(me.did, sent.id) == "refused"
