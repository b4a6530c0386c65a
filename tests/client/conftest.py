"""Each test begins as a new process would: a port used again is not a relay that changed."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _no_pins_of_other_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """First contacts are remembered for the whole process; ports are given out anew."""
    monkeypatch.setattr("relay.client.state.agent_state._pinned", {})
