"""The states of a delivery: every event in every state."""

from __future__ import annotations

import itertools

import pytest

from relay.client.inbox.delivery import Delivery, DeliveryEvent, DeliveryState
from relay.protocol.ids import Eid

V, Q, D, S = (
    DeliveryState.VERIFYING,
    DeliveryState.QUEUED,
    DeliveryState.DELIVERED,
    DeliveryState.SETTLING,
)
# columns: VERIFYING, QUEUED, DELIVERED, SETTLING; None: the event changes nothing
AFTER = {
    DeliveryEvent.VERIFIED: (Q, None, None, None),
    DeliveryEvent.SHOWN: (None, D, None, None),
    DeliveryEvent.RETRIED: (None, None, Q, None),
    DeliveryEvent.REDELIVERED: (None, None, V, None),
    DeliveryEvent.SETTLED: (S, S, S, None),
    DeliveryEvent.NOT_JOURNALED: (None, None, None, D),
}


def test_the_table_has_every_event():
    assert set(AFTER) == set(DeliveryEvent)
    assert all(len(row) == len(DeliveryState) for row in AFTER.values())


@pytest.mark.parametrize(
    ("event", "state"),
    list(itertools.product(DeliveryEvent, DeliveryState)),
    ids=lambda one: one.value,
)
def test_every_event_in_every_state(event: DeliveryEvent, state: DeliveryState):
    delivery = Delivery(Eid("e"), lambda *_: None, state)
    expected = AFTER[event][(V, Q, D, S).index(state)]
    assert delivery.apply(event) == (expected is not None)
    assert delivery.state is (expected or state)
