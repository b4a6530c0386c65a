"""How several workers share one machine: lanes, tests that need it alone, and time limits.

``./run test -n 4 --dist loadgroup`` has these lanes:

- All kill tests (tests/chaos) run one after the other on one worker. They mostly wait.
- A test marked ``alone`` measures, floods or fills. While it runs, no other worker of the run does.
  Consecutive ones keep the machine, so they are in one group.
- The other workers share all the rest.

``TEST_SLOWNESS`` scales each time limit of a test, as it scales deadlines (``patience.py``).
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.patience import SLOWNESS

RUN = os.environ.get("PYTEST_XDIST_TESTRUNUID")


class Machine:
    """A lock of all workers of a run: many share it, or one has it alone.

    A worker that waits to be alone holds ``gate``, so that no other worker starts a test before it.
    """

    def __init__(self, run: str) -> None:
        stem = Path(tempfile.gettempdir()) / f"did-relay-tests-{run}"
        flags = os.O_CREAT | os.O_RDWR | os.O_CLOEXEC
        self._gate = os.open(f"{stem}.gate", flags, 0o600)
        self._room = os.open(f"{stem}.room", flags, 0o600)
        self.is_alone = False

    def share(self) -> None:
        """Wait until no worker is alone or waits to be."""
        fcntl.flock(self._gate, fcntl.LOCK_EX)
        fcntl.flock(self._room, fcntl.LOCK_SH)
        fcntl.flock(self._gate, fcntl.LOCK_UN)

    def have_alone(self) -> None:
        """Wait until every other worker has ended its test."""
        if not self.is_alone:
            fcntl.flock(self._gate, fcntl.LOCK_EX)
            fcntl.flock(self._room, fcntl.LOCK_EX)
            self.is_alone = True

    def leave(self) -> None:
        """Let the others go on."""
        self.is_alone = False
        fcntl.flock(self._room, fcntl.LOCK_UN)
        fcntl.flock(self._gate, fcntl.LOCK_UN)


_machine = Machine(RUN) if RUN and "PYTEST_XDIST_WORKER" in os.environ else None


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put each item into its lane, and scale its time limit."""
    for item in items:
        if needs_machine_alone(item):
            item.add_marker(pytest.mark.xdist_group("alone"))
        elif item.nodeid.startswith("tests/chaos/"):
            item.add_marker(pytest.mark.xdist_group("chaos"))
        if SLOWNESS != 1:
            item.add_marker(pytest.mark.timeout(limit_s(item) * SLOWNESS), append=False)


def needs_machine_alone(item: pytest.Item | None) -> bool:
    """Return True if no other test may run beside this one."""
    return item is not None and item.get_closest_marker("alone") is not None


def limit_s(item: pytest.Item) -> float:
    """Return the time limit that the test, its module or the configuration names."""
    mark = item.get_closest_marker("timeout")
    return float(mark.args[0] if mark else item.config.getini("timeout"))


@pytest.hookimpl(wrapper=True, tryfirst=True)  # outside of the time limit
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """Run the test beside others, or alone."""
    if _machine is None:
        return (yield)
    if needs_machine_alone(item):
        _machine.have_alone()
    else:
        _machine.share()
    try:
        return (yield)
    finally:
        if not (_machine.is_alone and needs_machine_alone(nextitem)):
            _machine.leave()
