"""``relay demo mesh`` and ``relay demo migrate`` as a person runs them."""

from __future__ import annotations

import os
import re
import signal

import pytest

from relay.cli.exit_codes import Exit
from tests.cli.terminal import ROOT, Terminal, line_with
from tests.cli.test_demo import SABOTAGE, started_below
from tests.support.patience import wait_until
from tests.support.servers import is_alive

pytestmark = pytest.mark.timeout(90)


async def test_the_demo_of_the_mesh_holds_and_leaves_nothing_behind(tmp_path):
    done = await Terminal(tmp_path).run("demo", "mesh", TMPDIR=str(tmp_path), RELAY_LISTEN="no")
    assert (done.code, done.err) == (0, "")
    for words in (
        "Three relays run", "is called carol@127.0.0.1:", "A, which nobody told of C, knows",
        "fsync, outbox", "checked Alice's signature", "kill -9", "since C cannot be reached",
        "A brought it over by itself", "C knows where Dave lives", "was told: acked",
        "Accepted 2, delivered 2, lost 0",
    ):  # fmt: skip
        assert words in done.out
    pids = [int(pid) for pid in re.findall(r"process (\d+)", done.out)]
    assert pids
    assert not any(is_alive(pid) for pid in pids)
    assert not started_below(str(tmp_path))
    assert not list(tmp_path.glob("relay-demo-*"))


async def test_the_demo_of_moving_house_holds_and_leaves_nothing_behind(tmp_path):
    done = await Terminal(tmp_path).run("demo", "migrate", TMPDIR=str(tmp_path), RELAY_LISTEN="no")
    assert (done.code, done.err) == (0, "")
    for words in (
        "Two relays run", "wrote her 2,000 sealed envelopes", "asks to move to B", "kill -9",
        "goes on by itself", " waited, ", "none is missing", "noticed nothing", "each once",
        "her inbox is empty", "lost 0",
    ):  # fmt: skip
        assert words in done.out
    took, accepted, delivered = re.findall(
        r"([\d.]+) s  Accepted ([\d,]+), delivered ([\d,]+), lost 0", done.out
    )[0]
    # a person watches: half a minute is what that may take
    assert float(took) <= 30
    assert accepted == delivered
    assert int(accepted.replace(",", "")) > 2_000
    pids = [int(pid) for pid in re.findall(r"process (\d+)", done.out)]
    assert pids
    assert not any(is_alive(pid) for pid in pids)
    assert not started_below(str(tmp_path))
    assert not list(tmp_path.glob("relay-demo-*"))


BOTH = pytest.mark.parametrize("what", ["mesh", "migrate"])


@BOTH
async def test_an_interrupted_demo_of_several_relays_leaves_no_process_and_no_file(tmp_path, what):
    process = await Terminal(tmp_path).start("demo", what, TMPDIR=str(tmp_path))
    await line_with(process.stdout, "was killed")
    process.send_signal(signal.SIGINT)
    _, err = await process.communicate()
    assert (process.returncode, err) == (Exit.INTERRUPTED, b"")
    await wait_until(lambda: not started_below(str(tmp_path)), 10, "its relays and stores are gone")
    assert not list(tmp_path.glob("relay-demo-*"))


@BOTH
async def test_a_demo_of_several_relays_that_does_not_hold_fails_and_says_why(tmp_path, what):
    """Negative control: the killed relay comes back with an empty disk."""
    shim = tmp_path / "shim"
    shim.mkdir()
    code = SABOTAGE.format(marker=str(tmp_path / "started"), at_once=False)
    (shim / "sitecustomize.py").write_text(code)
    done = await Terminal(tmp_path).run(
        "demo", what, TMPDIR=str(tmp_path), PYTHONPATH=f"{shim}{os.pathsep}{ROOT}"
    )
    assert done.code == Exit.FAILED
    assert "another relay came back" in done.err
    assert not started_below(str(tmp_path))
