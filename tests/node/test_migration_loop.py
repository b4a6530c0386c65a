"""The turn that looks at all hand-offs: one that is damaged or refused keeps no other waiting."""

from __future__ import annotations

import pytest

from relay import clock
from relay.inbox.keys import DidKeys
from relay.inbox.model.types import InboxLimits, InboxRole
from relay.migration.model import machine, state_json
from relay.migration.ports import MigrationChange, MigrationRow
from relay.migration.steps import MigrationSteps
from relay.protocol.errors import ErrorCode, StateError, UnavailableError
from relay.protocol.ids import AgentKey
from relay.reference.memory_store import MemoryStore
from tests.support.nodes import new_key


class Store(MemoryStore):
    """A store that refuses to tell of some inboxes."""

    def __init__(self) -> None:
        super().__init__(InboxLimits(), clock.now)
        self.noes: dict[AgentKey, Exception] = {}
        self._load, self.migrations.load = self.migrations.load, self.load

    async def load(self, inbox: AgentKey) -> MigrationRow:
        if inbox in self.noes:
            raise self.noes[inbox]
        return await self._load(inbox)


async def begun(store: Store, text: str | None = None) -> AgentKey:
    """An inbox whose hand-off is open, and over as soon as somebody looks."""
    owner = new_key().agent_key
    side = machine.initial_side(new_key().did, InboxRole.HOME, None)
    change = MigrationChange(text or state_json.encode(side), InboxRole.HOME)
    assert await store.migrations.change(owner, MigrationRow(), change)
    return owner


async def test_one_hand_off_that_is_damaged_or_refused_keeps_no_other_waiting():
    store = Store()
    hands = MigrationSteps(new_key().did, store.migrations, DidKeys())
    damaged = await begun(store, '{"mode": "no such mode"}')
    refused, broken = await begun(store), await begun(store)
    store.noes = {
        refused: StateError(ErrorCode.WRONG_STATE, "not as things stand"),
        broken: ZeroDivisionError(),
    }
    others = [await begun(store) for _ in range(3)]
    await hands.refresh()
    left = {owner for owner, _ in await store.migrations.list_open()}
    assert left == {damaged, refused, broken}
    assert left.isdisjoint(others)


async def test_what_comes_before_a_commit_is_done_only_where_there_is_one():
    store = Store()
    hands = MigrationSteps(new_key().did, store.migrations, DidKeys())
    owner, done = await begun(store), []

    async def first() -> None:
        done.append(owner)

    await hands.apply(owner, None, before_commit=first)
    assert done == []
    await hands.apply(owner, None, force=True, before_commit=first)
    assert done == [owner]


async def test_a_store_that_is_away_is_asked_once_a_turn():
    store = Store()
    hands = MigrationSteps(new_key().did, store.migrations, DidKeys())
    away = UnavailableError(ErrorCode.STORAGE_UNAVAILABLE)
    store.noes = dict.fromkeys([await begun(store) for _ in range(3)], away)
    with pytest.raises(UnavailableError):
        await hands.refresh()
