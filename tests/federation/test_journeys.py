"""The journeys in ARCHITECTURE.md: the real code passes their hops in the order of the page."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest

from relay.inbox.model.types import InboxLimits
from relay.protocol.frames import Ack, Acked, Deliver, Publish, Submit, Submitted
from relay.store.redis import RedisStore
from tests.federation.linked_nodes import places, record_of, relay_at, until_held
from tests.federation.test_migration import take_all, two, until_empty
from tests.support.embedded_stores import serving
from tests.support.nodes import make_envelope, new_key, running_node, speaker

ROOT = Path(__file__).parents[2]
RELAY = f"{ROOT / 'relay'}/"
PAGE = ROOT / "docs/ARCHITECTURE.md"
TITLES = ["One envelope", "One envelope between relays", "One record", "One migration"]
HOP = re.compile(r"^\| \d+ \| `([\w/]+\.py)` `([\w.]+)` \|", re.MULTILINE)
MAX_READING_PATH = 3000
"""Lines to read to understand how one envelope is accepted, delivered and acked."""

pytestmark = pytest.mark.timeout(60)

Call = tuple[str, str]
"""A path below relay/, and a qualified name."""


def section(title: str) -> str:
    found = re.search(rf"(?ms)^## \d+\. {title}$(.*?)(?=^## |\Z)", PAGE.read_text())
    assert found, title
    return found[1]


def hops(title: str) -> list[Call]:
    found = HOP.findall(section(title))
    assert len(found) >= 8, "the pattern finds nothing"
    return found


@contextlib.contextmanager
def recording() -> Iterator[list[Call]]:
    """Record every function of relay/ that this thread enters."""
    calls: list[Call] = []

    def note(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(RELAY):
            calls.append((code.co_filename.removeprefix(RELAY), code.co_qualname))

    sys.setprofile(note)
    try:
        yield calls
    finally:
        sys.setprofile(None)


def not_passed(title: str, calls: list[Call]) -> list[Call]:
    """Return the hops that the calls do not pass in the order of the page."""
    rest = iter(calls)
    return [hop for hop in hops(title) if hop not in rest]


@pytest.mark.parametrize("title", TITLES)
def test_every_hop_is_a_function(title: str):
    for path, name in hops(title):
        tree: ast.AST = ast.parse((ROOT / "relay" / path).read_text())
        for part in name.split("."):
            found = [
                node
                for node in getattr(tree, "body", [])
                if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
                and node.name == part
            ]
            assert found, f"{path}: {name}"
            tree = found[0]


async def test_one_envelope_passes_its_hops_over_the_real_store(tmp_path: Path):
    alice, bob = new_key(), new_key()
    async with (
        serving(tmp_path, None) as server,
        running_node(RedisStore(server.url, InboxLimits())) as node,
        speaker(node.url, bob) as reader,
        speaker(node.url, alice) as writer,
    ):
        with recording() as calls:
            await writer.say(Submit("s", [make_envelope(alice, bob.did).wire]))
            await writer.hear(Submitted)
            delivered = await reader.hear(Deliver)
            await reader.say(Ack(delivered.epoch, delivered.items[-1].seq))
            await reader.hear(Acked)
    assert not_passed("One envelope", calls) == []


async def test_one_envelope_between_relays_passes_its_hops():
    a, c = places(2)
    alice, carol = new_key(), new_key()
    async with relay_at(a, [c]) as at_a, relay_at(c, [a]):
        record = record_of(carol, c)
        async with (
            speaker(c.url, carol, record=record) as reader,
            speaker(a.url, alice) as writer,
        ):
            await until_held(at_a, carol, record)
            with recording() as calls:
                await writer.say(Submit("s", [make_envelope(alice, carol.did).wire]))
                await writer.hear(Submitted)
                await reader.hear(Deliver)
                async with asyncio.timeout(20):
                    while not_passed("One envelope between relays", calls):  # noqa: ASYNC110
                        await asyncio.sleep(0.05)
    assert not_passed("One envelope between relays", calls) == []


async def test_one_record_passes_its_hops():
    a, b = places(2)
    agent = new_key()
    async with relay_at(a, [b]), relay_at(b, [a]) as at_b:
        first = record_of(agent, a)
        async with speaker(a.url, agent, record=first) as one:
            await until_held(at_b, agent, first)
            second = record_of(agent, a, seq=1)
            with recording() as calls:
                await one.say(Publish("p", second))
                await until_held(at_b, agent, second)
    assert not_passed("One record", calls) == []


async def test_one_migration_passes_its_hops():
    async with two() as world:
        await world.write(world.a, 3)
        move = world.traveller()
        with recording() as calls:
            await move.move()
            async with speaker(world.b.url, world.agent) as reader:
                await take_all(reader, 3)
            await until_empty(move)
    assert not_passed("One migration", calls) == []


def test_the_order_of_hops_matters():
    calls = hops("One envelope")
    assert not_passed("One envelope", calls) == []
    assert not_passed("One envelope", calls[::-1]) != []


def test_the_reading_path_is_short_enough_for_an_afternoon():
    path = section("One envelope").partition("**Reading path.**")[2]
    named = re.findall(r"`([\w/]+\.(?:py|lua))`", path)
    assert len(named) >= 10
    lines = sum(len((ROOT / "relay" / one).read_text().splitlines()) for one in named)
    assert lines <= MAX_READING_PATH
