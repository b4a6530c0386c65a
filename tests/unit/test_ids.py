"""Message ids and numbers: order, bounds, refusals."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.protocol import ids
from relay.protocol.ids import Timestamp, message_id_hour, message_id_ms, new_message_id
from tests.unit.builders import numbered_entropy


@given(st.integers(0, 2**48 - 1), st.binary(min_size=10, max_size=10))
def test_a_new_id_is_a_uuid_version_7_of_its_time(ms: int, noise: bytes):
    made = new_message_id(Timestamp(ms / 1000), lambda count: noise[:count])
    assert ids.parse_message_id(made) == made
    read = uuid.UUID(made)
    assert str(read) == made
    assert (read.version, read.variant) == (7, uuid.RFC_4122)
    assert abs(message_id_ms(made) - ms) <= 1  # a float of seconds
    assert message_id_hour(made) == message_id_ms(made) // 3_600_000


def test_the_example_of_rfc_9562_is_read():
    example = "017f22e2-79b0-7cc3-98c4-dc0c0c07398f"
    assert ids.parse_message_id(example) == example
    assert message_id_ms(example) == 1_645_557_742_000


def test_ids_sort_by_their_time_and_differ_within_it():
    entropy = numbered_entropy()
    made = [new_message_id(Timestamp(t), entropy) for t in (1.0, 2.0, 3.5, 4e9)]
    assert made == sorted(made)
    assert len({new_message_id(Timestamp(1), entropy) for _ in range(50)}) == 50


GOOD = "017f22e2-79b0-7cc3-98c4-dc0c0c07398f"


@pytest.mark.parametrize(
    "text",
    [
        "", GOOD[:-1], GOOD + "0", GOOD + "\n", " " + GOOD, GOOD.upper(), "{" + GOOD + "}",
        "urn:uuid:" + GOOD, GOOD.replace("-", ""), GOOD.replace("-7", "-4"),
        GOOD.replace("-9", "-c"), GOOD.replace("-9", "-7"), GOOD.replace("017f", "\uff1017f"),
        GOOD.replace("0", "g"), str(uuid.UUID(int=0)),
    ],
)  # fmt: skip
def test_anything_but_a_lower_case_uuid_version_7_is_refused(text: str):
    with pytest.raises(ValueError, match="UUIDv7"):
        ids.parse_message_id(text)
