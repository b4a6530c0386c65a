"""What steps of a hand-off do to the envelopes of one inbox (GUARANTEES.md §3).

Rules of the file: pure functions from one :class:`Side` to the next, with the effects that make the
store follow. Whether the step is allowed at all is judged in :mod:`relay.core.migration`; here
everything is about single envelopes, and nothing here is ever taken back.

::

    source                                          target
    live, finished, maybe ──digest pages──▶ what it says is finished ends what *it* brought;
                                            what this relay receipted itself is kept and marked
    live ──────────────────copy pages────▶ kept, once, with the mark; answered when durable
    ended and forgotten ◀──receipt───────   only for the mark that was sent
"""

from __future__ import annotations

from typing import Final, NamedTuple

from relay.core.errors import ErrorCode, Refusal
from relay.core.ids import Eid
from relay.core.migration_values import (
    NO_EIDS,
    Answer,
    Bounce,
    Collecting,
    CopyPage,
    CopyReceipt,
    DigestPage,
    DigestReceipt,
    Effect,
    Eids,
    End,
    Forget,
    Heard,
    Held,
    Keep,
    Mark,
    Mode,
    Receipt,
    Side,
    Told,
    digest_hash,
)

DIGEST_PAGE: Final = 4096
"""Ids of one page of a digest."""
DIGEST_PAGES: Final = 64
"""Pages of one digest: five times what the memory of an inbox holds."""
COPY_PAGE: Final = 256
"""Envelopes of one page of a copy; its bytes (1 MiB, one envelope always fits) the shell counts."""


class Step(NamedTuple):
    """The next state, durable in one piece with what the first effects do to the inbox."""

    side: Side
    effects: tuple[Effect, ...] = ()


# ---------------------------------------------------------------- sending


def digest_pages(side: Side, most: int = DIGEST_PAGE) -> tuple[DigestPage, ...]:
    """All that a frozen source says its agent has or may have seen; at least one page.

    What other relays have told it is passed on as a doubt only: a relay's word ends nothing but
    what that relay itself brought.
    """
    if side.mode is not Mode.FROZEN or side.handoff is None:
        return ()
    doubted = {told.eid for told in side.told} | {held.eid for held in side.live if held.marked}
    maybe = frozenset(side.maybe | doubted)
    whole = digest_hash(side.finished, maybe, side.missing)
    ids = [
        *((eid, True) for eid in sorted(side.finished)),
        *((eid, False) for eid in sorted(maybe)),
    ]
    parts = [ids[at : at + most] for at in range(0, len(ids), most)] or [[]]
    return tuple(
        DigestPage(
            handoff=side.handoff.id,
            whole=whole,
            number=number,
            total=len(parts),
            finished=frozenset(eid for eid, is_finished in part if is_finished),
            maybe=frozenset(eid for eid, is_finished in part if not is_finished),
            missing=side.missing,
        )
        for number, part in enumerate(parts)
    )


def copy_pages(side: Side, most: int = COPY_PAGE) -> tuple[CopyPage, ...]:
    """What still waits at a frozen source."""
    if side.mode is not Mode.FROZEN or side.handoff is None:
        return ()
    items = sorted((held.eid, held.marked) for held in side.live)
    parts = [tuple(items[at : at + most]) for at in range(0, len(items), most)]
    return tuple(CopyPage(side.handoff.id, part) for part in parts)


# ---------------------------------------------------------------- marks


def marked(side: Side, eids: Eids) -> Step:
    """Mark what waits of ``eids``."""
    bare = frozenset(held for held in side.live if held.eid in eids and not held.marked)
    if not bare:
        return Step(side)
    live = (side.live - bare) | {held._replace(marked=True) for held in bare}
    return Step(side._replace(live=live), (Mark(frozenset(held.eid for held in bare)),))


def is_doubtful(side: Side, eid: Eid) -> bool:
    """Whether it may have been handed over elsewhere."""
    return eid in side.maybe or any(told.eid == eid for told in side.told)


# ---------------------------------------------------------------- the target's part


def take_digest(side: Side, heard: Heard, page: DigestPage) -> Step:
    """Take one page of a digest; with the last one missing, its source is not missing any more."""
    told = frozenset(Told(heard.peer, eid) for eid in page.finished)
    side = side._replace(told=side.told | told, maybe=side.maybe | page.maybe)
    gone = frozenset(
        held for held in side.live if held.eid in page.finished and held.brought_by == heard.peer
    )
    side = side._replace(live=side.live - gone)
    effects: tuple[Effect, ...] = ()
    if gone:
        effects = (End(frozenset(held.eid for held in gone), "moved"),)
    side, marks = marked(side, page.finished | page.maybe)
    return _collect(side, heard, page, (*effects, *marks))


def _collect(side: Side, heard: Heard, page: DigestPage, effects: tuple[Effect, ...]) -> Step:
    known = side.collecting
    numbers = known.numbers if known and known.whole == page.whole else frozenset()
    numbers |= {page.number}
    if len(numbers) < page.total:
        return Step(side._replace(collecting=Collecting(page.whole, numbers)), effects)
    current = side.handoff is not None and side.handoff.peer == heard.peer
    side = side._replace(
        collecting=None,
        digested=side.digested or current,
        missing=(side.missing - {heard.peer}) | (page.missing - {side.me}),
    )
    return Step(side, (*effects, Answer(DigestReceipt(page.handoff, page.whole))))


def take_copy(side: Side, heard: Heard, page: CopyPage) -> Step:
    """Take a page of envelopes; every one of them is answered for."""
    effects: list[Effect] = []
    no = frozenset(eid for eid, _ in heard.refused)
    for eid, mark in page.items:
        if eid not in no:
            side, done = _take(side, heard, eid, mark=mark)
            effects += done
    items = tuple((eid, mark) for eid, mark in page.items if eid not in no)
    answer = CopyReceipt(page.handoff, items, heard.refused)
    return Step(side, (*effects, Answer(answer)))


def _take(side: Side, heard: Heard, eid: Eid, *, mark: bool) -> Step:
    known = side.held(eid)
    if known is not None:
        # two relays have given it up to this one: the word of neither can end it any more
        by = known.brought_by if known.brought_by == heard.peer else None
        side = side._replace(live=(side.live - {known}) | {known._replace(brought_by=by)})
        return marked(side, frozenset({eid}) if mark else NO_EIDS)
    if eid in side.finished or Told(heard.peer, eid) in side.told:
        return Step(side)
    held = Held(eid, mark or is_doubtful(side, eid), heard.peer)
    return Step(side._replace(live=side.live | {held}), (Keep(eid, held.marked),))


# ---------------------------------------------------------------- the source's part


def take_receipt(side: Side, receipt: CopyReceipt) -> Step:
    """Let go of what the target has, and of what it will never take.

    What was handed over is forgotten, too: an id that is remembered would turn the envelope away
    when the agent moves back. A mark that was set since the page was sent has not arrived.
    """
    known = {held.eid: held for held in side.live}
    there = [
        known[eid] for eid, mark in receipt.items if eid in known and known[eid].marked is mark
    ]
    never = [(known[eid], code) for eid, code in receipt.refused if eid in known]
    gone = frozenset([*there, *(held for held, _ in never)])
    eids = frozenset(held.eid for held in there)
    dead = frozenset(held.eid for held, _ in never)
    effects: list[Effect] = [End(eids, "moved"), Forget(eids)] if eids else []
    if dead:
        effects.append(End(dead, "refused"))
    for held, code in never:
        effects.append(Bounce(frozenset({held.eid}), code.value, held.marked))
    side = side._replace(live=side.live - gone, finished=side.finished | dead)
    return Step(side, tuple(effects))


# ---------------------------------------------------------------- an inbox's own life


def submitted(side: Side, eid: Eid) -> Step | Refusal:
    """A sender's envelope: kept, and this relay's own from now on."""
    if not side.accepts:
        code = ErrorCode.UNKNOWN_INBOX if side.mode is Mode.NONE else ErrorCode.MOVED
        return Refusal(code, "the recipient's inbox is not here")
    moved = side.mode is Mode.FROZEN and not side.is_home
    held = side.held(eid)
    if held is not None:
        live = (side.live - {held}) | {held._replace(brought_by=None)}
        return Step(side._replace(live=live), (Receipt(eid, True, moved),))
    if eid in side.finished:
        return Step(side, (Receipt(eid, True, moved),))
    new = Held(eid, is_doubtful(side, eid))
    side = side._replace(live=side.live | {new})
    return Step(side, (Keep(eid, new.marked), Receipt(eid, False, moved)))


def acked(side: Side, eids: Eids) -> Step | Refusal:
    """The agent is done with these: the one thing that makes a set of finished ids."""
    if not side.delivers:
        code = ErrorCode.MIGRATING if side.mode is Mode.FROZEN else ErrorCode.SUPERSEDED
        return Refusal(code, "this relay does not deliver for its agent now")
    gone = frozenset(held for held in side.live if held.eid in eids)
    ended = frozenset(held.eid for held in gone)
    effects = (End(ended, "acked"),) if ended else ()
    return Step(
        side._replace(live=side.live - gone, finished=side.finished | ended), effects
    )  # fmt: skip


def expired(side: Side, eids: Eids) -> Step | Refusal:
    """End what has expired, with a bounce unless another relay says that it ended there.

    Only a home does: a frozen or incoming side hands it over, so that there is one bounce. While
    another relay's digest is missing there may be a second one: that is better than none.
    """
    if not side.delivers:
        return Refusal(ErrorCode.WRONG_STATE, "only a home lets envelopes expire")
    gone = frozenset(held for held in side.live if held.eid in eids)
    if not gone:
        return Step(side)
    ended = frozenset(held.eid for held in gone)
    elsewhere = {told.eid for told in side.told}
    effects: list[Effect] = [End(ended, "expired")]
    for maybe in (False, True):
        due = frozenset(
            held.eid
            for held in gone
            if held.eid not in elsewhere and side.is_marked(held) is maybe
        )  # fmt: skip
        if due:
            effects.append(Bounce(due, "expired", maybe))
    side = side._replace(live=side.live - gone, finished=side.finished | ended)
    return Step(side, tuple(effects))
