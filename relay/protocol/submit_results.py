"""An answer to submits, matched with what was submitted (PROTOCOL.md §5.2).

Nothing is believed before all of it fits: each envelope has either its rejection
or the next item of the receipt, which names its eid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from relay.protocol import frames
from relay.protocol.errors import (
    ErrorCode,
    ProtocolError,
)
from relay.protocol.ids import Eid
from relay.protocol.receipts import (
    Receipt,
    ReceiptItem,
)

Outcome = frames.Rejection | ReceiptItem


def match(
    frame: frames.Submitted,
    receipt: Receipt | None,
    asked: Mapping[str, Sequence[Eid]],
    handoffs: Mapping[str, str] | None = None,
) -> dict[str, list[Outcome]]:
    """Give each submitted envelope its rejection, else the next item of the receipt.

    Args:
        frame: the answer.
        receipt: the one in it, verified.
        asked: the eids of every submit that waits, by ref.
        handoffs: by ref, the hand-offs of those that are a part of one.

    Raises:
        ProtocolError: ``bad_frame``: it answers something else.
    """
    named = handoffs or {}
    if receipt and any(named.get(ref, "") != receipt.handoff for ref in frame.refs):
        raise ProtocolError(ErrorCode.BAD_FRAME, "the receipt is of another hand-off")
    rejected = {(item.ref, item.i): item for item in frame.rejected}
    left = iter(receipt.items if receipt else ())
    outcomes: dict[str, list[Outcome]] = {}
    for ref in frame.refs:
        found: list[Outcome] = []
        for i, eid in enumerate(asked.get(ref, ())):
            outcome = rejected.pop((ref, i), None) or next(left, None)
            if outcome is None or (isinstance(outcome, ReceiptItem) and outcome.eid != eid):
                raise ProtocolError(ErrorCode.BAD_FRAME, "the receipt is of something else")
            found.append(outcome)
        outcomes[ref] = found
    unknown = [ref for ref in frame.refs if ref not in asked]
    if unknown or rejected or next(left, None) or len(outcomes) < len(frame.refs):
        raise ProtocolError(ErrorCode.BAD_FRAME, "an answer to what was not asked")
    return outcomes
