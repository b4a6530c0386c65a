"""What the operating system knows of a process and of the machine (Linux).

Rules of the file: CPU is what the kernel charged to a process, seconds, its threads included; never
wall time, which other programs on the machine stretch.
"""

from __future__ import annotations

import os
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import nacl.bindings

TICKS: Final = os.sysconf("SC_CLK_TCK")
VERIFY_BURST: Final = 64
FSYNCS: Final = 50


def cpu_s(pid: int) -> float:
    """User and system time of a process, its ended children not included (proc(5), stat)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def children_cpu_s(pid: int) -> float:
    """User and system time of its children that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[13]) + int(fields[14])) / TICKS


def rss_kb(pid: int) -> int:
    """Resident memory, exact: the counters in ``status`` may lag."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Rss:"):
            return int(line.split()[1])
    raise ValueError(f"process {pid} has no Rss")


@dataclass(frozen=True, slots=True)
class MachineTime:
    """CPU seconds of the whole machine since its start.

    Args:
        busy: spent by any process.
        stolen: taken by the hypervisor for others.
    """

    busy: float
    stolen: float


def machine_time() -> MachineTime:
    """How busy all cores were (proc(5), stat)."""
    first = Path("/proc/stat").read_text().split("\n", maxsplit=1)[0].split()[1:]
    user, nice, system, _, _, irq, softirq, steal = (int(value) / TICKS for value in first[:8])
    return MachineTime(user + nice + system + irq + softirq, steal)


class Verifier:
    """The bare cost of one signature check, in this process.

    Args:
        size: bytes of the signed message, as long as an envelope's signing input.
    """

    def __init__(self, size: int) -> None:
        public, secret = nacl.bindings.crypto_sign_seed_keypair(os.urandom(32))
        self._public = public
        self._signed = [
            nacl.bindings.crypto_sign(os.urandom(size), secret) for _ in range(VERIFY_BURST)
        ]

    def burst_us(self, count: int = VERIFY_BURST) -> float:
        """CPU microseconds a check, over one burst of at most 64."""
        check, public = nacl.bindings.crypto_sign_open, self._public
        burst = self._signed[:count]
        began = time.thread_time_ns()
        for signed in burst:
            check(signed, public)
        return (time.thread_time_ns() - began) / 1000 / len(burst)

    def slice_us(self, seconds: float) -> float:
        """Median over the bursts of a slice of time."""
        until = time.perf_counter() + seconds
        found = [self.burst_us()]
        while time.perf_counter() < until:
            found.append(self.burst_us())
        return statistics.median(found)


def fsync_us(directory: Path) -> float:
    """Median time of appending 4 KiB and syncing it there."""
    path, found = directory / "fsync-probe", []
    with path.open("wb", buffering=0) as probe:
        for _ in range(FSYNCS):
            began = time.perf_counter()
            probe.write(bytes(4096))
            os.fdatasync(probe.fileno())
            found.append(time.perf_counter() - began)
    path.unlink()
    return statistics.median(found) * 1e6
