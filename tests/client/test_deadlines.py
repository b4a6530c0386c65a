"""One deadline for a call, whatever it has to ask before, and whoever does not answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from relay.client import Agent, IdentityUnavailableError, MigratingError, UnreachableError, sync
from relay.client.http.transport import REQUEST_TIMEOUT_S
from relay.client.migration.runner import MigrationOptions, MigrationRunner
from tests.cli.terminal import stalling
from tests.client.migration_relays import world
from tests.client.scripted_relay import new_key
from tests.support.nodes import running_node

pytestmark = [pytest.mark.timeout(30), pytest.mark.alone]


@contextmanager
def not_as_long_as_one_request() -> Iterator[None]:
    """What does not answer would hold up a single request for so long."""
    began = time.monotonic()
    yield
    assert time.monotonic() - began < REQUEST_TIMEOUT_S / 2


def at(url: str) -> str:
    return f"bob@{url.removeprefix('http://')}"


async def test_the_look_up_of_a_handle_is_part_of_the_deadline_of_a_send():
    async with running_node() as node, stalling() as silent, Agent.open(new_key(), node.url) as me:
        for wait in ("stored", "acked"):
            with not_as_long_as_one_request(), pytest.raises(IdentityUnavailableError) as caught:
                await me.send(at(silent.url), "x", wait=wait, deadline_s=0.3)
            assert caught.value.stored == "no"
        assert me.unanswered == 0


async def test_so_it_is_without_a_loop():
    def program(url: str, to: str) -> None:
        with (
            sync.Agent.open(new_key(), url) as me,
            not_as_long_as_one_request(),
            pytest.raises(IdentityUnavailableError),
        ):
            me.send(to, "x", deadline_s=0.3)

    async with running_node() as node, stalling() as silent:
        await asyncio.to_thread(program, node.url, at(silent.url))


async def test_a_pinned_handle_whose_source_is_silent_is_sent_to_within_the_deadline():
    async with running_node() as node, stalling() as silent, Agent.open(new_key(), node.url) as me:
        me._parts.handles._pins[at(silent.url)] = me.did
        with not_as_long_as_one_request():
            assert (await me.send(at(silent.url), "x", deadline_s=2.0)).to == me.did


async def test_no_time_at_all_is_told_as_that_and_nothing_is_sent():
    async with running_node() as node, Agent.open(new_key(), node.url) as me:
        with pytest.raises(UnreachableError, match="no time") as caught:
            await me.submit(me.sign(me.did, "x"), deadline_s=0.0)
        assert (caught.value.stored, me.unanswered) == ("no", 0)


async def test_a_target_that_is_silent_holds_up_a_move_no_longer_than_its_deadline():
    async with world() as here, stalling() as silent:
        me = here.alone()
        with (
            not_as_long_as_one_request(),
            pytest.raises(UnreachableError, match="Nothing was changed"),
        ):
            await MigrationRunner(me, MigrationOptions(deadline_s=0.3)).start(silent.url)
        assert me.state.migration.pending is None


async def test_who_waits_for_another_move_to_end_waits_no_longer_than_its_own_deadline():
    async with running_node() as node, stalling() as silent, Agent.open(new_key(), node.url) as me:
        moving = asyncio.ensure_future(me.migrate(silent.url, deadline_s=20.0))
        await silent.was_asked()
        with not_as_long_as_one_request(), pytest.raises(MigratingError):
            await me.migrate(silent.url, deadline_s=0.2)
        moving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await moving
