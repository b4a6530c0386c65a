"""Frames are frozen values within the limits of the protocol."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, is_dataclass
from typing import get_args

import pytest

from relay.protocol import frames
from relay.protocol.frames import Frame


@pytest.mark.parametrize("kind", get_args(Frame), ids=lambda kind: kind.__name__)
def test_every_frame_is_a_frozen_value(kind: type):
    assert is_dataclass(kind)
    assert kind.__dataclass_params__.frozen
    assert "__slots__" in vars(kind)
    assert kind.__doc__


def test_a_frame_cannot_be_changed_once_said():
    with pytest.raises(FrozenInstanceError):
        frames.Ack("e").upto = 9  # type: ignore[misc]


def test_the_limits_are_those_of_the_protocol():
    limits = (frames.MAX_FRAME_BYTES, frames.MAX_ENVELOPES, frames.MAX_SEQS, frames.MAX_REF_CHARS)
    assert limits == (2 * 1024 * 1024, 256, 1024, 64)
    assert frames.SUBPROTOCOL == "agent-relay.v1"
