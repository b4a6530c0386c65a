"""Inboxes over Lua scripts: the shape of calls and replies; the rules are in scripts/*.lua.

Rules of the file: every reply echoes the inbox it speaks of and is compared; what cannot be stored
now is refused only after asking whether it was stored before, since ``stored: no`` must be true.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, Final

from relay.inbox.model.store_contract import REFUSALS
from relay.inbox.model.types import (
    Accepted,
    AckRequest,
    AckResult,
    InboxLimits,
    LiveSession,
    OpenedSession,
    OutboxLimits,
    Page,
    Pending,
    RefusedCount,
    RememberedId,
)
from relay.inbox.ports import (
    InboxHead,
    OpenRequest,
    OwnerPage,
)
from relay.protocol.envelope import StoredEnvelope
from relay.protocol.errors import (
    ErrorCode,
    Refusal,
    RelayError,
    UnavailableError,
)
from relay.protocol.ids import (
    AgentKey,
    Epoch,
    Fence,
    NodeId,
    Partition,
    Seq,
)
from relay.protocol.receipts import Durability
from relay.protocol.types import (
    DedupKey,
    Reason,
    Window,
)
from relay.store.redis import entries, keys
from relay.store.redis.forwarding import (
    proof_of,
    remembered,
)
from relay.store.redis.guard import Guard
from relay.store.redis.pages import RawPage
from relay.store.redis.partitions import Partitions

_MOST_IDS: Final = 1024
"""Seqs a script call names (PROTOCOL.md §3.4)."""
_SCANNED_KEYS: Final = 2_000
"""Keys of one scan: about a millisecond."""
_MOST_ROUNDS: Final = 200
"""Expired runs are concluded 256 at a time: enough for a full inbox, an end for a broken one."""

_REFUSALS: Final = {word.encode(): refusal for word, refusal in REFUSALS.items()}
_FATE_OF: Final = {Reason.EXPIRED: "E", Reason.CORRUPT: "C"}


class RedisInboxes:
    """Inboxes, over scripts; see :class:`relay.inbox.ports.InboxStore`.

    Args:
        partitions: where the scripts run.
        guard: whether new envelopes may be taken.
        limits: quotas of each inbox.
        outbox: bounds of what waits for one peer.
    """

    def __init__(
        self, partitions: Partitions, guard: Guard, limits: InboxLimits, outbox: OutboxLimits
    ) -> None:
        self._partitions = partitions
        self._guard = guard
        self._limits = limits
        self._outbox = outbox

    @property
    def durability(self) -> Durability:
        """The durability that a receipt may promise now."""
        return self._guard.durability

    @property
    def promised(self) -> Durability:
        """The highest durability that a receipt may have promised."""
        return self._guard.promised

    # ------------------------------------------------------------ accept

    async def append(self, items: Sequence[StoredEnvelope]) -> list[Accepted | Refusal]:
        """Store a batch: one commit per partition, each item and each partition judged alone."""
        if self._partitions.count == 1:
            results = await self._append(Partition(0), items)
        else:
            done = await self._partitions.spread_each(items, lambda item: item.inbox, self._append)
            results = [Refusal.of(one) if isinstance(one, RelayError) else one for one in done]
        if any(isinstance(result, Accepted) for result in results):
            await self._guard.confirm()
        return results

    async def _append(
        self, part: Partition, items: Sequence[StoredEnvelope]
    ) -> list[Accepted | Refusal]:
        full = self._guard.refusal(part)
        if full is not None:
            return await self._recall(part, items, full)
        try:
            replies = await self._store(part, items)
            lost = [at for at, reply in enumerate(replies) if reply[1] == b"lost"]
            if lost:
                anew = await self._store(part, [items[at]._replace(marked=True) for at in lost])
                for at, reply in zip(lost, anew, strict=True):
                    replies[at] = reply
        except UnavailableError as exc:
            if exc.code is ErrorCode.STORAGE_FULL:
                return await self._recall(part, items, Refusal.of(exc))
            return [Refusal.of(exc)] * len(items)
        except RelayError as exc:
            return [Refusal.of(exc)] * len(items)
        return [_accepted(item.inbox, reply) for item, reply in zip(items, replies, strict=True)]

    async def _store(self, part: Partition, items: Sequence[StoredEnvelope]) -> list[Any]:
        limits = self._limits
        args: list[Any] = [
            limits.max_count,
            limits.max_bytes,
            limits.sender_count,
            limits.sender_bytes,
            limits.stranger_count,
            limits.stranger_bytes,
            limits.dedupe_entries,
            self._guard.ids_per_partition,
            self._guard.clock_flag,
            self._outbox.count,
            self._outbox.bytes,
            self._outbox.shares,
        ]
        args.append(entries.encode_all(items))
        replies: list[Any] = await self._partitions.call("append", part, args)
        return replies

    async def _recall(
        self, part: Partition, items: Sequence[StoredEnvelope], full: Refusal
    ) -> list[Accepted | Refusal]:
        """Refuse what is new; what was stored before is answered as it was then."""
        questions = [(item.inbox, item.hour, item.dedupe_key) for item in items]
        try:
            replies = await self._partitions.call("status", part, list(chain(*questions)))
        except RelayError as exc:
            return [Refusal.of(exc)] * len(items)
        return [_recalled(item, reply, full) for item, reply in zip(items, replies, strict=True)]

    # ------------------------------------------------------------ session

    async def open(self, request: OpenRequest) -> OpenedSession | Refusal:
        """Open a session; ``unknown_inbox`` where there is none and none may be made."""
        part = self._partitions.of(request.inbox)
        full = self._guard.refusal(part)
        window = request.window
        args = [
            request.inbox,
            request.node,
            window.count,
            window.bytes,
            request.until,
            int(request.create and full is None),
            int(request.forwards),
        ]
        reply = await self._partitions.call("open", part, args)
        if not _is_echo(request.inbox, reply):
            return broken("open")
        if reply[1] != b"opened":
            is_new = request.create and not request.forwards
            return full if full is not None and is_new else refusal_of(reply)
        return _opened(reply)

    async def close(self, inbox: AgentKey, fence: Fence, delivered_upto: Seq) -> bool:
        """End a session cleanly; False if a newer one has the inbox."""
        part = self._partitions.of(inbox)
        reply = await self._partitions.call("close", part, [inbox, fence, delivered_upto])
        return _is_echo(inbox, reply) and reply[1] == 1

    # ------------------------------------------------------------ read

    async def read(
        self, inbox: AgentKey, fence: Fence, after: Seq, window: Window
    ) -> Page | Refusal:
        """Read on; concludes expired and corrupt entries on the way, so the page has none."""
        part = self._partitions.of(inbox)
        for _ in range(_MOST_ROUNDS):
            args = [inbox, fence, after, window.count, window.bytes, self._guard.clock_flag]
            reply = await self._partitions.call("read", part, args)
            raw = await self._judge(inbox, reply)
            if isinstance(raw, Refusal):
                return raw
            if not await self._end_bad(inbox, raw):
                return raw.page()
        return broken("read")

    async def fetch(self, inbox: AgentKey, session: LiveSession, window: Window) -> Page | Refusal:
        """Read from the cursor for a session without a connection."""
        part = self._partitions.of(inbox)
        for _ in range(_MOST_ROUNDS):
            args = [inbox, session.fence, session.node, session.until, window.count, window.bytes]
            reply = await self._partitions.call("fetch", part, [*args, self._guard.clock_flag])
            raw = await self._judge(inbox, reply)
            if isinstance(raw, Refusal):
                return raw
            ended = await self._end_bad(inbox, raw)
            page = raw.page()
            # what was taken with it is marked from now on: handed over now, never read again
            if page.items or not ended:
                return replace(page, expired=())
        return broken("fetch")

    async def _judge(self, inbox: AgentKey, reply: Any) -> RawPage | Refusal:
        if not _is_echo(inbox, reply):
            return broken("read")
        if reply[1] == b"stale":
            await self._reset(inbox, Epoch(""))
            return _REFUSALS[b"inbox_reset"]
        if reply[1] != b"page":
            return refusal_of(reply)
        raw = RawPage.parse(reply)
        if raw.has_hole():
            await self._reset(inbox, raw.epoch)
            return Refusal(ErrorCode.INBOX_RESET, "the store lost part of this inbox")
        return raw

    async def _end_bad(self, inbox: AgentKey, raw: RawPage) -> bool:
        """Conclude what a page must not show; whether there was any."""
        if raw.corrupt:
            await self.finalize(inbox, raw.corrupt, Reason.CORRUPT)
        if raw.expired:
            await self.finalize(inbox, raw.expired, Reason.EXPIRED)
        return bool(raw.corrupt or raw.expired)

    async def _reset(self, inbox: AgentKey, epoch: Epoch) -> None:
        await self._partitions.call("reset", self._partitions.of(inbox), [inbox, epoch])

    # ------------------------------------------------------------ ends of an entry

    async def ack(self, requests: Sequence[AckRequest]) -> list[AckResult | Refusal]:
        """Delete what was processed; works when memory or disk is full."""
        done = await self._partitions.spread_each(
            requests, lambda request: request.inbox, self._ack
        )
        return [Refusal.of(one) if isinstance(one, RelayError) else one for one in done]

    async def _ack(
        self, part: Partition, requests: Sequence[AckRequest]
    ) -> list[AckResult | Refusal]:
        args: list[Any] = []
        for request in requests:
            ack = request.ack
            args += (request.inbox, ack.fence, ack.epoch, ack.upto, int(request.taken))
            args += (len(ack.seqs), *ack.seqs, len(ack.refuse), *chain(*ack.refuse))
            args.append(proof_of(ack.forwarded))
        replies = await self._partitions.call("ack", part, args)
        return [_acked(request, reply) for request, reply in zip(requests, replies, strict=True)]

    async def finalize(self, inbox: AgentKey, seqs: Sequence[Seq], reason: Reason) -> None:
        """End entries that were never handed to the live session."""
        part = self._partitions.of(inbox)
        for start in range(0, len(seqs), _MOST_IDS):
            args = [inbox, _FATE_OF[reason], self._guard.clock_flag]
            await self._partitions.call("finalize", part, [*args, *seqs[start : start + _MOST_IDS]])

    # ------------------------------------------------------------ questions

    async def status(
        self, inbox: AgentKey, questions: Sequence[DedupKey]
    ) -> list[RememberedId | None]:
        """What became of ids; of the eid, its first 21 characters: the store keeps 16 bytes."""
        asked = [(inbox, question.hour, question.dedupe_key) for question in questions]
        if not asked:
            return []
        part = self._partitions.of(inbox)
        replies = await self._partitions.call("status", part, list(chain(*asked)))
        return [remembered(reply) if len(reply) > 1 else None for reply in replies]

    async def heads(self, inboxes: Sequence[AgentKey]) -> list[InboxHead | None]:
        """Fence, epoch and head of many inboxes, in one round trip per partition."""
        return await self._partitions.spread(inboxes, lambda inbox: inbox, self._heads)

    async def _heads(self, part: Partition, inboxes: Sequence[AgentKey]) -> list[InboxHead | None]:
        replies = await self._partitions.call("heads", part, inboxes)
        stale = [
            inbox for inbox, reply in zip(inboxes, replies, strict=True) if reply[1] == b"stale"
        ]
        if stale:
            for inbox in stale:
                await self._reset(inbox, Epoch(""))
            replies = await self._partitions.call("heads", part, inboxes)
        return [_head(reply) for reply in replies]

    # ------------------------------------------------------------ owners

    async def owners(self, after: str, limit: int) -> OwnerPage:
        """List owners of inboxes here; the cursor is a partition and a place among its keys.

        Each step scans few keys, so that other commands run in between: a start asks this, not
        every day.
        """
        number, place = map(int, after.split()) if after else (0, 0)
        found: list[AgentKey] = []
        while number < self._partitions.count and len(found) < limit:
            owners, place = await self._scan(Partition(number), place)
            found += owners
            number += place == 0
        return OwnerPage(found, f"{number} {place}" if number < self._partitions.count else "")

    async def _scan(self, part: Partition, place: int) -> tuple[list[AgentKey], int]:
        head = keys.inbox(part, AgentKey("")).encode()
        words = ("SCAN", place, "MATCH", head + b"*", "COUNT", _SCANNED_KEYS)
        cursor, found = await self._partitions.client.command(keys.state(part), *words)
        return [AgentKey(name.removeprefix(head).decode()) for name in found], int(cursor)


# ---------------------------------------------------------------- replies


def _is_echo(inbox: AgentKey, reply: Any) -> bool:
    return bool(reply[0] == inbox.encode())


def broken(what: str) -> Refusal:
    """The answer to a reply that cannot be."""
    return Refusal(ErrorCode.INTERNAL, f"the store's answer to {what} makes no sense")


def refusal_of(reply: Any) -> Refusal:
    """The no of a script: ``{inbox, code, …}``."""
    code = reply[1]
    if code == b"moved":
        return _moved(reply)
    if code == b"closed":
        refused = ErrorCode(reply[2].decode())
        return Refusal(refused, "the recipient's home takes nothing for it just now", reply[3])
    if code == b"failed":
        # undone as a whole by the script; an operator has to look at this inbox
        said = reply[2].decode(errors="replace")
        return Refusal(ErrorCode.STORAGE_UNAVAILABLE, f"the store refuses this entry: {said}")
    return _REFUSALS.get(code) or broken("a request")


def _moved(reply: Any) -> Refusal:
    record = reply[2].decode() if len(reply) > 2 else None  # noqa: PLR2004
    return Refusal(ErrorCode.MOVED, "the recipient's home is elsewhere", record=record)


def _session(fence: int, node: bytes, until: int) -> LiveSession | None:
    return LiveSession(Fence(fence), NodeId(node.decode()), until) if fence else None


def _accepted(inbox: AgentKey, reply: Any) -> Accepted | Refusal:
    if not _is_echo(inbox, reply):
        return broken("append")
    kind = reply[1]
    if kind in {b"stored", b"waits"}:
        session, away = _session(reply[4], reply[5], reply[6]), kind == b"waits"
        seq, epoch = Seq(reply[2]), Epoch(reply[3].decode())
        return Accepted(seq, epoch, False, session, reply[7] == 1, away)
    if kind in {b"dup", b"gone"}:
        return _dup(reply[2], reply[3], away=kind == b"gone")
    return refusal_of(reply)


def _recalled(item: StoredEnvelope, reply: Any, full: Refusal) -> Accepted | Refusal:
    if not _is_echo(item.inbox, reply):
        return broken("append")
    if len(reply) == 1:
        return full
    _, epoch, seq, _, eid16, is_there, has_gone, _ = reply
    if not entries.eid_bytes(item.eid).startswith(eid16):
        return _REFUSALS[b"replayed"]
    if not is_there:
        return full
    return _dup(seq, epoch, away=has_gone == 1)


def _dup(seq: int, epoch: bytes, *, away: bool) -> Accepted:
    return Accepted(Seq(seq), Epoch(epoch.decode()), dup=True, session=None, away=away)


def _opened(reply: Any) -> OpenedSession:
    _, _, fence, epoch, cursor, head, count, size, oldest, *rest = reply
    refused = RefusedCount(*rest[:3])
    return OpenedSession(
        fence=Fence(fence),
        epoch=Epoch(epoch.decode()),
        cursor=Seq(cursor),
        head=Seq(head),
        pending=Pending(count, size, None if oldest < 0 else oldest, refused),
        previous=_session(*rest[3:]),
    )


def _acked(request: AckRequest, reply: Any) -> AckResult | Refusal:
    if not _is_echo(request.inbox, reply):
        return broken("ack")
    if reply[1] != b"acked":
        return refusal_of(reply)
    covered = tuple(Seq(seq) for seq in reply[3:])
    refused = tuple(seq for seq, _ in request.ack.refuse)
    return AckResult(Seq(reply[2]), (*request.ack.seqs, *covered), refused)


def _head(reply: Any) -> InboxHead | None:
    if reply[1] != b"head":
        return None
    return InboxHead(Fence(reply[2]), Epoch(reply[3].decode()), Seq(reply[4]), reply[5] == 1)
