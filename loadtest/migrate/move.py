"""One agent with a full inbox moves from A to B, step by step, by the wire.

Rules of the file: the clock starts when the target is first asked and stops when the source says,
signed, that nothing waits there any more. What arrived is counted by eid afterwards, all of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from loadtest import probes
from loadtest.mesh import relays
from loadtest.mesh.relays import Place
from loadtest.migrate import plain
from loadtest.process import RelayFailedError, RelayProcess
from relay.protocol import endpoint_record, frames
from relay.protocol.did import SigningKey
from relay.protocol.endpoint_record import Home
from relay.protocol.envelope import SignedEnvelope, eid_of
from relay.protocol.frames import MAX_MAYBE_SEEN_IDS
from relay.protocol.ids import Eid, Epoch, Seq, Timestamp
from relay.protocol.migration_statement import MigrationCounters, MigrationStatement
from tests.support.migration_steps import Traveller
from tests.support.nodes import Speaker, make_envelope, speaker

WAITING: Final = 10_000
ACKED: Final = 10_000
BODY_BYTES: Final = 1_024
BATCH: Final = 128
IN_FLIGHT: Final = 4
LOOK_S: Final = 0.02
LONGEST_S: Final = 120.0


@dataclass(slots=True)
class Found:
    """What was found.

    Args:
        waiting: envelopes at A when the move began.
        acked: envelopes that the agent had acked there before: they are in the digest.
        wire_bytes: of those that waited.
        prepare_s: until B was ready; then until A had stopped and B had the digest.
        freeze_s: see above; ``digest_pages`` how many pages that were.
        copy_s: from the published record until A said that nothing waits there.
        move_s: from the first question to B until then.
        gap_s: from the end of the session at A until the first envelope was handed over at B.
        plain_s: a copy of the same bytes between the same two stores, page by page.
        cpu_s: of either node and either store, over ``move_s``.
        lost: waited at A and never came at B; ``doubled``: came more than once.
        tally: what A counted, signed.
    """

    waiting: int
    acked: int
    wire_bytes: int = 0
    prepare_s: float = 0.0
    freeze_s: float = 0.0
    copy_s: float = 0.0
    move_s: float = 0.0
    gap_s: float = 0.0
    plain_s: list[float] = field(default_factory=list)
    digest_pages: int = 0
    cpu_s: dict[str, float] = field(default_factory=dict)
    lost: int = 0
    doubled: int = 0
    marked: int = 0
    tally: MigrationCounters = field(default_factory=MigrationCounters)


async def measure(directory: Path, waiting: int = WAITING, acked: int = ACKED) -> Found:
    """Fill an inbox at A, move it, take all of it at B."""
    found = Found(waiting, acked)
    where = relays.places(2, directory)
    async with relays.peered(where) as (a, b):
        key, sender = SigningKey(os.urandom(32)), SigningKey(os.urandom(32))
        newest = endpoint_record.sign(key, [_home(where[0])], now=_now())
        await relays.publish(a, key.did, newest)
        async with speaker(a.url, key):
            pass
        await _fill(a, sender, _letters(sender, key, acked))
        await _take(a, key, acked)
        letters = _letters(sender, key, waiting)
        await _fill(a, sender, letters)
        wires = [letter.wire for letter in letters]
        found.wire_bytes = sum(map(len, wires))
        directories = [place.directory for place in where]
        found.plain_s.append(await plain.copied_in(*directories, wires))
        me = Traveller(key, _home(where[0]), _home(where[1]), newest)
        await _move(me, (a, b), found)
        arrived = await _take(b, key, waiting)
        found.plain_s.append(await plain.copied_in(*directories, wires))
    _count(found, [letter.eid for letter in letters], arrived)
    return found


def _home(place: Place) -> Home:
    return Home(place.key.did, place.url)


def _now() -> Timestamp:
    return Timestamp(time.time())


# ---------------------------------------------------------------- before


def _letters(sender: SigningKey, to: SigningKey, count: int) -> list[SignedEnvelope]:
    return [make_envelope(sender, to.did, os.urandom(BODY_BYTES)) for _ in range(count)]


async def _fill(relay: RelayProcess, sender: SigningKey, letters: Sequence[SignedEnvelope]) -> None:
    wires = [letter.wire for letter in letters]
    batches = [wires[at : at + BATCH] for at in range(0, len(wires), BATCH)]
    answered = 0
    async with speaker(relay.url, sender) as who:
        for number, batch in enumerate(batches):
            await who.say(frames.Submit(str(number), batch))
            while number + 1 - answered >= IN_FLIGHT:
                answered += await _receipted(who)
        while answered < len(batches):
            answered += await _receipted(who)


async def _receipted(who: Speaker) -> int:
    frame = await who.hear(frames.Submitted)
    who.heard.clear()
    if frame.rejected:
        raise RelayFailedError(f"an envelope was refused: {frame.rejected[0]}")
    return len(frame.refs)


# ---------------------------------------------------------------- the move


async def _move(me: Traveller, ends: tuple[RelayProcess, RelayProcess], found: Found) -> None:
    pids = {
        f"{name} {what}": pid
        for name, relay in zip("AB", ends, strict=True)
        for what, pid in (("node", relay.pid), ("store", relay.store_pid))
    }
    before = {name: probes.cpu_s(pid) for name, pid in pids.items()}
    size = found.wire_bytes
    async with speaker(ends[0].url, me.key):
        began = time.perf_counter()
        await me.prepare(found.waiting, size, 4 * BODY_BYTES)
        prepared = time.perf_counter()
    left = time.perf_counter()
    while not (await me.freeze()).digest_acked:
        _in_time(began)
    frozen = time.perf_counter()
    await me.publish(me.target)
    await me.publish(me.source)
    async with asyncio.TaskGroup() as tasks:
        first = tasks.create_task(_first(ends[1], me.key))
        said = await _until_empty(me, began)
        found.move_s = time.perf_counter() - began
        cpu = {name: probes.cpu_s(pid) - before[name] for name, pid in pids.items()}
        found.gap_s = await first - left
    found.prepare_s, found.freeze_s = prepared - began, frozen - left
    found.copy_s = found.move_s - (frozen - began)
    found.cpu_s, found.tally = cpu, said.counters
    found.digest_pages = -(-found.acked // MAX_MAYBE_SEEN_IDS)


async def _first(relay: RelayProcess, key: SigningKey) -> float:
    """When the first envelope is handed over; it is not acked."""
    async with speaker(relay.url, key) as who:
        await who.hear(frames.Deliver)
        return time.perf_counter()


async def _until_empty(me: Traveller, began: float) -> MigrationStatement:
    while True:
        said = await me.state(me.source)
        if not said.counters.waiting:
            return said
        _in_time(began)
        await asyncio.sleep(LOOK_S)


def _in_time(began: float) -> None:
    if time.perf_counter() - began > LONGEST_S:
        raise RelayFailedError(f"the move was not over within {LONGEST_S:.0f} s")


# ---------------------------------------------------------------- after


async def _take(relay: RelayProcess, key: SigningKey, count: int) -> list[tuple[Eid, bool]]:
    """Take and ack until so many were there, or no more come; then look once more."""
    taken: list[tuple[Eid, bool]] = []
    async with speaker(relay.url, key) as who:
        with contextlib.suppress(TimeoutError):
            last, acked = Seq(0), Seq(0)
            while len(taken) < count or acked < last:
                frame = await who.hear(frames.Deliver, frames.Acked)
                who.heard.clear()
                if isinstance(frame, frames.Acked):
                    acked = frame.upto
                    continue
                taken += _entered(frame)
                last = frame.items[-1].seq
                await who.say(frames.Ack(_epoch(who), last, (), ()))
    async with speaker(relay.url, key) as who:
        if who.ready.welcome.pending.count:
            taken += _entered(await who.hear(frames.Deliver))
    return taken


def _entered(frame: frames.Deliver) -> list[tuple[Eid, bool]]:
    return [(_eid(item.envelope), item.redelivered) for item in frame.items]


def _epoch(who: Speaker) -> Epoch:
    epoch = who.ready.welcome.epoch
    if epoch is None:
        raise RelayFailedError("the relay is not the agent's home")
    return epoch


def _eid(item: Any) -> Eid:
    return eid_of(b'{"jws":"%b","body":""}' % item["jws"].encode())


def _count(found: Found, sent: Sequence[Eid], arrived: Sequence[tuple[Eid, bool]]) -> None:
    seen = [eid for eid, _ in arrived]
    found.lost = len(set(sent) - set(seen))
    found.doubled = len(seen) - len(set(seen))
    # the first window was handed over once before, without an ack
    found.marked = sum(is_marked for _, is_marked in arrived)
