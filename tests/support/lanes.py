"""Lanes: several workers share one machine, and some tests need it alone.

``./run test -n 4 --dist loadgroup`` has these lanes:

- The kill tests (tests/chaos) run one after the other on one worker. They mostly wait, and their
  time limits are generous.
- A test marked ``alone`` measures, floods or fills. While it runs, no other worker of the run does.
  Such tests are a lane, too, so that they keep the machine from the first one to the last.
- The other workers share all the rest, test by test.

``pytest.mark.xdist_group`` puts a test into a lane of another name. The scheduler is our own: that
of xdist 3.8 finds no groups under pytest 9.2. ``TEST_SLOWNESS`` scales each time limit of a test,
as it scales deadlines (``patience.py``).
"""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

from tests.support.patience import SLOWNESS

LANES = "lanes.json"


class Machine:
    """A lock of all workers of a run: many share it, or one has it alone.

    A worker that waits to be alone holds ``gate``, so that no other worker starts a test before it.
    """

    def __init__(self, directory: Path) -> None:
        flags = os.O_CREAT | os.O_RDWR | os.O_CLOEXEC
        self._gate = os.open(directory / "gate", flags, 0o600)
        self._room = os.open(directory / "room", flags, 0o600)
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


class Worker:
    """The part of a worker: it reports the lanes of its tests, and waits for the machine."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._machine = Machine(directory)

    @pytest.hookimpl(tryfirst=True)  # before xdist reports what was collected
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Write down the lane of each test that has one."""
        lanes = {item.nodeid: lane for item in session.items if (lane := lane_of(item))}
        own = self._directory / f"{LANES}.{os.getpid()}"
        own.write_text(json.dumps(lanes))
        own.replace(self._directory / LANES)

    @pytest.hookimpl(wrapper=True, tryfirst=True)  # outside of the time limit
    def pytest_runtest_protocol(
        self, item: pytest.Item, nextitem: pytest.Item | None
    ) -> Iterator[None]:
        """Run the test beside others, or alone."""
        if is_alone(item):
            self._machine.have_alone()
        else:
            self._machine.share()
        try:
            return (yield)
        finally:
            if not (self._machine.is_alone and is_alone(nextitem)):
                self._machine.leave()


class Scheduler(LoadScopeScheduling):
    """Hands out each lane as a whole, the longest first, and then test by test."""

    def __init__(self, config: pytest.Config, log: Any, directory: Path) -> None:
        super().__init__(config, log)
        self._file = directory / LANES
        self._lanes: dict[str, str] | None = None

    def _split_scope(self, nodeid: str) -> str:
        if self._lanes is None:
            self._lanes = json.loads(self._file.read_text())
        return self._lanes.get(nodeid, nodeid)


class Controller:
    """The part of the process that hands out tests."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="relay-lanes-")

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Tell a worker where the files of this run are."""
        node.workerinput["lanes"] = self._directory.name

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Any) -> Scheduler | None:
        """Hand out lanes where groups are asked for."""
        if config.getoption("dist") != "loadgroup":
            return None
        return Scheduler(config, log, Path(self._directory.name))

    def pytest_unconfigure(self) -> None:
        """Remove the files of this run."""
        self._directory.cleanup()


def pytest_configure(config: pytest.Config) -> None:
    """Take part as a worker, or as the process that hands out tests."""
    worker_input = getattr(config, "workerinput", None)
    if worker_input is not None:
        config.pluginmanager.register(Worker(Path(worker_input["lanes"])))
    elif config.getoption("numprocesses", None):
        config.pluginmanager.register(Controller())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Scale the time limit of each test."""
    if SLOWNESS != 1:
        for item in items:
            mark = item.get_closest_marker("timeout")
            limit_s = float(mark.args[0] if mark else item.config.getini("timeout"))
            item.add_marker(pytest.mark.timeout(limit_s * SLOWNESS), append=False)


def is_alone(item: pytest.Item | None) -> bool:
    """Return True if no other test may run beside this one."""
    return item is not None and item.get_closest_marker("alone") is not None


def lane_of(item: pytest.Item) -> str | None:
    """Return the lane of a test; None if any worker may have it."""
    if is_alone(item):
        return "alone"
    group = item.get_closest_marker("xdist_group")
    if group is not None:
        return str(group.args[0])
    return "chaos" if item.nodeid.startswith("tests/chaos/") else None
