"""``relay demo`` as a person runs it."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest

from relay.cli.exit_codes import Exit
from tests.cli.terminal import ROOT, Terminal, line_with
from tests.support.patience import wait_until
from tests.support.servers import is_alive

pytestmark = pytest.mark.timeout(60)


def started_below(marker: str) -> list[int]:
    """Processes that have ``marker`` in their arguments."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and is_alive(int(process.name)):
            try:
                arguments = (process / "cmdline").read_bytes()
            except OSError:
                continue
            if marker.encode() in arguments:
                found.append(int(process.name))
    return found


async def test_the_demo_holds_and_leaves_nothing_behind(tmp_path):
    done = await Terminal(tmp_path).run("demo", TMPDIR=str(tmp_path), RELAY_LISTEN="not-for-it")
    assert (done.code, done.err) == (0, "")
    for words in ("kill -9", "checked Alice's signature", "cursor 1 = head 1", "told: acked"):
        assert words in done.out
    pids = [int(pid) for pid in re.findall(r"process (\d+)", done.out)]
    assert len(set(pids)) == 2
    assert not any(is_alive(pid) for pid in pids)
    assert not started_below(str(tmp_path))
    assert not list(tmp_path.glob("relay-demo-*"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_an_interrupted_demo_leaves_no_process_and_no_file(tmp_path, number):
    process = await Terminal(tmp_path).start("demo", TMPDIR=str(tmp_path))
    await line_with(process.stdout, "was killed")
    process.send_signal(number)
    _, err = await process.communicate()
    assert (process.returncode, err) == (Exit.INTERRUPTED, b"")
    await wait_until(lambda: not started_below(str(tmp_path)), 10, "its relay and store are gone")
    assert not list(tmp_path.glob("relay-demo-*"))


async def test_a_killed_demo_takes_its_relay_and_store_with_it(tmp_path):
    process = await Terminal(tmp_path).start("demo", TMPDIR=str(tmp_path))
    await line_with(process.stdout, "A relay runs")
    assert len(started_below(str(tmp_path))) >= 2
    process.kill()
    await process.wait()
    await wait_until(lambda: not started_below(str(tmp_path)), 15, "its relay and store are gone")


SABOTAGE = """
import os, pathlib, shutil, sys

marker = pathlib.Path({marker!r})
if "serve" in sys.orig_argv:
    if {at_once} or marker.exists():
        shutil.rmtree(sys.orig_argv[sys.orig_argv.index("--data") + 1], ignore_errors=True)
    if {at_once}:
        os._exit(9)
    marker.touch()
"""


@pytest.mark.parametrize(
    ("at_once", "reason"), [(True, "ended before it was ready"), (False, "another relay came back")]
)
async def test_a_demo_that_does_not_hold_fails_and_says_why(tmp_path, at_once, reason):
    """Negative control: a relay that does not start, and one whose disk was emptied meanwhile."""
    shim = tmp_path / "shim"
    shim.mkdir()
    code = SABOTAGE.format(marker=str(tmp_path / "started"), at_once=at_once)
    (shim / "sitecustomize.py").write_text(code)
    done = await Terminal(tmp_path).run(
        "demo", TMPDIR=str(tmp_path), PYTHONPATH=f"{shim}{os.pathsep}{ROOT}"
    )
    assert (done.code, "The demo failed" in done.err) == (Exit.FAILED, True)
    assert reason in done.err
    assert not started_below(str(tmp_path))
