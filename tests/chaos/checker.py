"""Judge a ledger by the promises of docs/GUARANTEES.md.

The checker is pure. Each promise is one function that yields a sentence for each breach; each field
of :class:`Verdict` is one kind of breach. What the promises allow is counted elsewhere: a mark too
many, or a receipt that never arrived.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, fields

from relay.protocol.ids import (
    Did,
    Eid,
    Epoch,
)
from tests.chaos.ledger import Ended, Handed, Ledger, Sent

Sentences = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Broken promises, by kind.

    Args:
        lost: receipted, or taken by the SDK for good, but never handed to its recipient nor
            bounced (S1, S2).
        wrong: handed to another agent.
        phantom: handed over, but never sent like this, or after a definite no (S3).
        unmarked: handed over again without ``redelivered`` (R1).
        acked_again: handed over again after its end was confirmed (R3).
        forgotten: an agent was killed before it answered, and it never came again (R1).
        reordered: overtook one that was receipted before it was submitted (R4).
        untrue_receipts: a receipt that does not say what is so (S1, S3).
        untrue_bounces: a refusal without exactly one bounce, or a bounce without a refusal (R6).
        unsettled: at the end, an envelope without an outcome or an inbox that is not empty.
        miscounted: an inbox that gave out more or fewer seqs than it took envelopes (R5).
        surprises: anything else that should not have happened.
    """

    lost: Sentences
    wrong: Sentences
    phantom: Sentences
    unmarked: Sentences
    acked_again: Sentences
    forgotten: Sentences
    reordered: Sentences
    untrue_receipts: Sentences
    untrue_bounces: Sentences
    unsettled: Sentences
    miscounted: Sentences
    surprises: Sentences

    @property
    def kinds(self) -> set[str]:
        """The kinds of broken promises."""
        return {item.name for item in fields(self) if getattr(self, item.name)}

    def __str__(self) -> str:
        lines = []
        for item in fields(self):
            said: Sentences = getattr(self, item.name)
            lines.append(f"{item.name}: {len(said)}")
            lines += [f"    {sentence}" for sentence in said[:5]]
        return "\n".join(lines)


def judge(ledger: Ledger) -> Verdict:
    """Compare what was promised with what was seen."""
    return Verdict(
        lost=tuple(_lost(ledger)),
        wrong=tuple(_wrong(ledger)),
        phantom=tuple(_phantom(ledger)),
        unmarked=tuple(_unmarked(ledger)),
        acked_again=tuple(_acked_again(ledger)),
        forgotten=tuple(_forgotten(ledger)),
        reordered=tuple(_reordered(ledger)),
        untrue_receipts=(*_untrue_receipts(ledger), *_moved_places(ledger), *_resets(ledger)),
        untrue_bounces=(*_untrue_bounces(ledger), *_missing_bounces(ledger)),
        unsettled=(*_unsettled(ledger), *_not_empty(ledger), *_other_states(ledger)),
        miscounted=tuple(_miscounted(ledger)),
        surprises=tuple(ledger.surprises),
    )


def _lost(ledger: Ledger) -> Iterator[str]:
    arrived = _arrived(ledger)
    bounced = {item.eid for item in ledger.bounces}
    for eid, sent in ledger.sent.items():
        if eid in arrived or eid in bounced:
            continue
        if sent.receipted is not None:
            yield f"{eid} to {sent.envelope.to}, receipted at {sent.receipted}"
        elif eid in ledger.promised:
            yield f"{eid} to {sent.envelope.to}, {ledger.promised[eid]}"


def _is_for(ledger: Ledger, item: Handed) -> bool:
    sent = ledger.sent.get(item.eid)
    return sent is not None and sent.envelope.to == item.agent


def _wrong(ledger: Ledger) -> Iterator[str]:
    for item in ledger.handed:
        if item.eid in ledger.sent and not _is_for(ledger, item):
            to = ledger.sent[item.eid].envelope.to
            yield f"{item.eid} to {to} was handed to {item.agent} at {item.tick}"
    for bounce in ledger.bounces:
        sent = ledger.sent.get(bounce.eid)
        if sent is not None and sent.sender != bounce.agent:
            yield f"the bounce of {bounce.eid} by {sent.sender} was handed to {bounce.agent}"


def _phantom(ledger: Ledger) -> Iterator[str]:
    from_relay = {item.within for item in ledger.bounces}
    for item in ledger.handed:
        sent = ledger.sent.get(item.eid)
        if sent is None:
            if item.eid not in from_relay:
                yield f"{item.eid} was handed to {item.agent} and nobody sent it"
        elif not _is_what_was_sent(sent, item):
            yield f"{item.eid} was handed to {item.agent} with other bytes"
        elif item.eid in ledger.denied:
            yield f"{item.eid} was handed to {item.agent}, though its sender was told: not stored"


def _is_what_was_sent(sent: Sent, item: Handed) -> bool:
    return item.wire in {None, sent.envelope.wire} and item.body in {None, sent.body}


def _unmarked(ledger: Ledger) -> Iterator[str]:
    # in the order of sessions: what an older one was sent may be read after what a newer one was
    first: dict[tuple[Did, Eid], Handed] = {}
    for item in sorted(ledger.handed, key=_when):
        before = first.setdefault((item.agent, item.eid), item)
        if before is not item and not item.redelivered:
            yield (
                f"{item.eid} at {item.tick} in session {item.session}, but {item.agent} had it "
                f"at {before.tick} in session {before.session}"
            )


def _acked_again(ledger: Ledger) -> Iterator[str]:
    ends = {(item.agent, item.eid): item for item in ledger.ended}
    for item in ledger.handed:
        end = ends.get((item.agent, item.eid))
        if end is not None and _when(end) < _when(item):
            yield f"{item.eid} at {item.tick}, {end.how} by {item.agent} at {end.tick}"


def _forgotten(ledger: Ledger) -> Iterator[str]:
    shown: dict[Did, dict[Eid, list[int]]] = defaultdict(lambda: defaultdict(list))
    for item in ledger.handed:
        shown[item.agent][item.eid].append(item.tick)
    # the first answer counts: after it, it may come again or not
    said = sorted((*ledger.answers, *ledger.ended), key=lambda item: item.tick, reverse=True)
    answered = {(item.agent, item.eid): item.tick for item in said}
    for death in ledger.deaths:
        for eid, ticks in shown[death.agent].items():
            was_in_hand = ticks[0] <= death.tick < answered.get((death.agent, eid), death.tick + 1)
            if was_in_hand and ticks[-1] <= death.tick:
                yield f"{eid} was in the hands of {death.agent}, killed at {death.tick}"


def _when(item: Handed | Ended) -> tuple[int, int]:
    return item.session, item.tick


def _reordered(ledger: Ledger) -> Iterator[str]:
    pairs: dict[tuple[Did, Did], list[Sent]] = defaultdict(list)
    seen: set[Eid] = set()
    for item in ledger.handed:
        if item.eid not in seen and _is_for(ledger, item):
            seen.add(item.eid)
            sent = ledger.sent[item.eid]
            pairs[sent.sender, item.agent].append(sent)
    for firsts in pairs.values():
        earliest: Sent | None = None
        for sent in reversed(firsts):
            # all that follow in delivery: was one of them receipted before this was submitted?
            if earliest is not None and (earliest.receipted or 0) < sent.submitted:
                yield (
                    f"{sent.envelope.eid}, submitted at {sent.submitted}, came before "
                    f"{earliest.envelope.eid}, receipted at {earliest.receipted}"
                )
            if sent.receipted is not None and (
                earliest is None or sent.receipted < (earliest.receipted or 0)
            ):
                earliest = sent


def _untrue_receipts(ledger: Ledger) -> Iterator[str]:
    for item in ledger.receipts:
        sent = ledger.sent.get(item.eid)
        if sent is None or sent.envelope.to != item.to:
            yield f"a receipt for {item.eid} to {item.to}, which nobody sent like this"
        if item.durability != "fsync":
            yield f"{item.eid}: durability {item.durability}"
        if item.dup and not item.had_reason:
            yield f"{item.eid}: called a duplicate at {item.tick}, but it never was stored before"


def _moved_places(ledger: Ledger) -> Iterator[str]:
    places: dict[Eid, tuple[Epoch, str]] = {}
    taken: dict[tuple[Epoch, str], Eid] = {}
    for item in ledger.receipts:
        if item.place is None:
            continue
        if places.setdefault(item.eid, item.place) != item.place:
            yield f"{item.eid} has two places: {places[item.eid]} and {item.place}"
        if taken.setdefault(item.place, item.eid) != item.eid:
            yield f"{item.eid} and {taken[item.place]} have the same place"


def _resets(ledger: Ledger) -> Iterator[str]:
    for inbox, epochs in ledger.epochs.items():
        if len(epochs) > 1:
            yield f"the inbox of {inbox} had {len(epochs)} epochs, though nothing was rolled back"


def _untrue_bounces(ledger: Ledger) -> Iterator[str]:
    known: dict[Eid, set[Eid]] = defaultdict(set)
    for item in ledger.bounces:
        sent = ledger.sent.get(item.eid)
        known[item.eid].add(item.within)
        if sent is None or not sent.poison or item.reason != "poison":
            yield f"{item.eid} bounced as {item.reason}, but nobody refused it like this"
    for eid, within in known.items():
        if len(within) > 1:
            yield f"{eid} bounced {len(within)} times"


def _missing_bounces(ledger: Ledger) -> Iterator[str]:
    bounced = {item.eid for item in ledger.bounces}
    for (agent, eid), how in ends_of(ledger).items():
        if how == "refused" and eid not in bounced:
            yield f"{eid} was refused by {agent}, and its sender was never told"


def ends_of(ledger: Ledger) -> dict[tuple[Did, Eid], str]:
    """Yield confirmed ends, and answers of a killed agent that the relay confirms."""
    answered = {(item.agent, item.eid): item.how for item in ledger.answers}
    ends = {key: how for key, how in answered.items() if ledger.states.get(key[1]) == how}
    return ends | {(item.agent, item.eid): item.how for item in ledger.ended}


def _arrived(ledger: Ledger) -> set[Eid]:
    return {item.eid for item in ledger.handed if _is_for(ledger, item)}


def _unsettled(ledger: Ledger) -> Iterator[str]:
    ended, arrived = {eid for _, eid in ends_of(ledger)}, _arrived(ledger)
    for eid, sent in ledger.sent.items():
        if sent.receipted is None and not (sent.is_mortal and eid in arrived):
            if eid not in ledger.void and eid not in ledger.denied:
                yield f"{eid} of {sent.sender} has no receipt"
        elif eid not in ended:
            yield f"{eid} to {sent.envelope.to} has no end"


def _not_empty(ledger: Ledger) -> Iterator[str]:
    for item in ledger.standings:
        if item.pending or item.cursor != item.head:
            yield (
                f"the inbox of {item.agent} is not empty: {item.pending} pending, "
                f"cursor {item.cursor}, head {item.head}"
            )


def _other_states(ledger: Ledger) -> Iterator[str]:
    ends = {item.eid: item.how for item in ledger.ended}
    for eid, state in ledger.states.items():
        if eid in ends and state != ends[eid]:
            yield f"{eid} was {ends[eid]}, but the relay tells its sender: {state}"


def _miscounted(ledger: Ledger) -> Iterator[str]:
    arrived = _arrived(ledger)
    taken = Counter(
        sent.envelope.to
        for eid, sent in ledger.sent.items()
        if sent.receipted is not None or (sent.is_mortal and eid in arrived)
    )
    bounces = {(item.agent, item.within) for item in ledger.bounces}
    taken.update(agent for agent, _ in bounces)
    for item in ledger.standings:
        if item.head != taken[item.agent]:
            yield f"the inbox of {item.agent} took {taken[item.agent]}, but its head is {item.head}"
