"""Calls into partitions: every script call says what this node knows, every reply is checked.

Rules of the file: an answer is given to the caller only after what it proves about the partition's
lineage is in the rollback file; a partition that was rolled back is renewed before anything else is
done in it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar

from relay.clock import entropy
from relay.health import Health, ProblemReason
from relay.protocol.errors import (
    ErrorCode,
    RelayError,
    UnavailableError,
)
from relay.protocol.ids import (
    AgentKey,
    NodeId,
    Partition,
)
from relay.protocol.jws import b64encode
from relay.store.faults import storage_error
from relay.store.redis import keys
from relay.store.redis.client import Client
from relay.store.redis.lineage import Generation, RollbackFile

_T = TypeVar("_T")
_R = TypeVar("_R")
_MOST_TRIES: Final = 5
"""Other nodes renew the same partition at the same time; each try follows one of them."""


class Partitions:
    """The partitions of one store, as this node knows them.

    Args:
        client: the connection.
        file: where the lineages are kept over a restart.
        node: this node.
        count: how many partitions the store has.
        health: told when the store is seen to be another one than it was.
        is_own: nobody else has the store: what the file does not know of it was lost.
    """

    def __init__(
        self,
        client: Client,
        file: RollbackFile,
        node: NodeId,
        count: int,
        *,
        health: Health,
        is_own: bool = False,
    ) -> None:
        self.client = client
        self.node = node
        self.count = count
        self.on_renewal: Callable[[], None] = lambda: None
        self._file = file
        self._health = health
        self._is_own = is_own
        self._failure: str | None = None
        nothing = Generation(0, "", 0) if is_own else None
        read = ((partition, file.read(partition) or nothing) for partition in self.all())
        self._known = {partition: known for partition, known in read if known is not None}

    def all(self) -> list[Partition]:
        """Every partition."""
        return [Partition(number) for number in range(self.count)]

    def of(self, inbox: AgentKey) -> Partition:
        """The partition of an inbox."""
        return keys.partition_of(inbox, self.count)

    # ------------------------------------------------------------ one call

    async def call(self, name: str, partition: Partition, args: Sequence[Any]) -> Any:
        """Run a script in a partition; gives its result.

        Raises:
            UnavailableError: ``storage_unavailable`` or ``storage_full``.
            RelayError: ``internal``.
        """
        for _ in range(_MOST_TRIES):
            known = self._known.get(partition)
            token, commits = (known.token, known.commits) if known else ("", 0)
            reply = await self.client.script(
                name, keys.state(partition), [token, commits, self.node, *args]
            )
            if reply[0] == b"ok":
                if known is not None:
                    self._learn(partition, Generation(known.number, known.token, reply[1]))
                return reply[2]
            found = Generation(reply[1], reply[2].decode(), reply[3])
            await self._settle(partition, found)
        raise UnavailableError(
            ErrorCode.STORAGE_UNAVAILABLE, f"the lineage of partition {partition} does not settle"
        )

    async def _settle(self, partition: Partition, found: Generation) -> None:
        known = self._known.get(partition)
        if found.token and self._is_believed(known, found):
            self._learn(partition, found)
            return
        token = b64encode(entropy(16))
        number = known.number if known else 0
        is_lost = bool(found.token) or number > 0
        args = [found.token, token, number, int(is_lost)]
        reply = await self.client.script("renew", keys.state(partition), args)
        renewed = Generation(reply[0], reply[1].decode(), reply[2])
        if renewed.number > number:
            self._learn(partition, renewed)
        if is_lost:
            self._health.found(ProblemReason.STORE_ROLLED_BACK, self._what_was_seen(known))

    def _is_believed(self, known: Generation | None, found: Generation) -> bool:
        if known is None:
            return True
        # a higher number is another node's, where there can be one
        is_witness = bool(known.token) or not self._is_own
        return is_witness and known.is_continued_by(found)

    def _what_was_seen(self, known: Generation | None) -> str:
        if self._file.is_copy:
            seen = "the rollback file is a copy, so that the store may be an old one"
        elif known is None or not known.number:
            seen = "there is no rollback file that knows this store, so that it may be an old one"
        else:
            seen = "the store knows less than this node: it was rolled back or emptied"
        return f"{seen}; all inboxes begin a new epoch, and what they hold is marked redelivered"

    def _learn(self, partition: Partition, found: Generation) -> None:
        known = self._known.get(partition)
        # answers overtake one another on their connections; the highest count is what holds
        if known is not None and ((found.number, found.commits) <= (known.number, known.commits)):
            return
        self._known[partition] = found
        if known is not None and known.token != found.token:
            self.on_renewal()
        try:
            self._file.write(partition, found)
        except OSError as exc:
            self._failure = f"the rollback file cannot be written: {exc}"
            self._health.found(ProblemReason.ROLLBACK_FILE, self._failure)
            raise UnavailableError(ErrorCode.STORAGE_UNAVAILABLE, self._failure) from exc
        self._failure = None

    async def attach(self) -> None:
        """Look at every partition once: new ones begin, rolled back ones are renewed.

        Raises:
            RelayError: as :meth:`call`.
        """
        await self.gather(self.all(), lambda partition: self.call("heads", partition, []))

    async def sync(self) -> None:
        """Force the rollback file to disk."""
        try:
            await asyncio.to_thread(self._file.sync)
        except OSError as exc:
            failed = storage_error(exc, self._file.path)
            self._health.found(ProblemReason.ROLLBACK_FILE, failed.detail)
            raise failed from exc
        self._health.found(ProblemReason.ROLLBACK_FILE, self._failure)

    # ------------------------------------------------------------ many calls

    async def gather(
        self, partitions: Sequence[Partition], work: Callable[[Partition], Awaitable[_R]]
    ) -> list[_R]:
        """Work in several partitions at once; the first error is raised when all have ended."""
        results = await self.gather_each(partitions, work)
        for result in results:
            if isinstance(result, RelayError):
                raise result
        return [result for result in results if not isinstance(result, RelayError)]

    async def gather_each(
        self, partitions: Sequence[Partition], work: Callable[[Partition], Awaitable[_R]]
    ) -> list[_R | RelayError]:
        """Work in several partitions at once; each gives its result or its error."""

        async def one(partition: Partition) -> _R | RelayError:
            try:
                return await work(partition)
            except RelayError as exc:
                return exc

        if len(partitions) == 1:
            return [await one(partitions[0])]
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(partition)) for partition in partitions]
        return [task.result() for task in tasks]

    async def spread(
        self,
        items: Sequence[_T],
        inbox_of: Callable[[_T], AgentKey],
        work: Callable[[Partition, Sequence[_T]], Awaitable[Sequence[_R]]],
    ) -> list[_R]:
        """As :meth:`spread_each`; the first error is raised when all have ended."""
        results = await self.spread_each(items, inbox_of, work)
        for result in results:
            if isinstance(result, RelayError):
                raise result
        return [result for result in results if not isinstance(result, RelayError)]

    async def spread_each(
        self,
        items: Sequence[_T],
        inbox_of: Callable[[_T], AgentKey],
        work: Callable[[Partition, Sequence[_T]], Awaitable[Sequence[_R]]],
    ) -> list[_R | RelayError]:
        """Work on the items of each partition at once; results, or a partition's error, in place.

        Args:
            items: what is worked on.
            inbox_of: whose partition an item belongs to.
            work: gives one result for each of the items that it is given.
        """
        places: dict[Partition, list[int]] = {}
        for place, item in enumerate(items):
            places.setdefault(self.of(inbox_of(item)), []).append(place)
        parts = list(places)
        done = await self.gather_each(
            parts, lambda part: work(part, [items[place] for place in places[part]])
        )
        results: dict[int, _R | RelayError] = {}
        for part, outcome in zip(parts, done, strict=True):
            if isinstance(outcome, RelayError):
                results.update(dict.fromkeys(places[part], outcome))
            else:
                results.update(zip(places[part], outcome, strict=True))
        return [results[place] for place in range(len(items))]
