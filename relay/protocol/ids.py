"""Names of things: NewTypes, so that one kind of id is never taken for another.

An id is made here or parsed here; ``new_*`` makes, ``parse_*`` reads and raises ValueError.
Times are Unix seconds unless a name ends in ``_ms`` (PROTOCOL.md §1.7).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, NewType

Did = NewType("Did", str)
"""``did:key:z6Mk…``: who an agent or a relay is."""
AgentKey = NewType("AgentKey", str)
"""What an inbox is stored under: ``key:<multibase>`` today (PROTOCOL.md §2.1)."""
Eid = NewType("Eid", str)
"""b64url(SHA-256(signing input)), 43 characters (PROTOCOL.md §1.6)."""
MessageId = NewType("MessageId", str)
"""The sender's own id, a UUIDv7 in lower-case text form."""
Seq = NewType("Seq", int)
"""Position in one inbox, from 1, gap-free within an epoch."""
Epoch = NewType("Epoch", str)
"""Opaque random string; changes when an inbox is created, moved or rolled back."""
Fence = NewType("Fence", int)
"""Number of an inbox's session, growing; a lower one can change nothing."""
Timestamp = NewType("Timestamp", float)
"""Unix seconds."""
Partition = NewType("Partition", int)
"""Which share of the store an inbox lives in, 0 … P-1."""
NodeId = NewType("NodeId", str)
"""One running node process; new at each start."""

Entropy = Callable[[int], bytes]
"""``entropy(n)`` gives n random bytes; passed in, so that the core has none of its own."""

UUID7: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
ORIGIN: Final = re.compile(
    r"https?://[A-Za-z0-9.\-]+(:[0-9]{1,5})?|https?://\[[0-9a-f:]+\](:[0-9]{1,5})?"
)
"""``https://host[:port]`` or ``http://…``: how a relay is dialled, without a path."""
MAX_DID_BYTES: Final = 512
MAX_AGENT_KEY_CHARS: Final = 600
MAX_URL_CHARS: Final = 512
MAX_EPOCH_CHARS: Final = 64
MAX_HANDOFF_ID_CHARS: Final = 128
"""Characters of what a hand-off is named: an order's id, or one made of a record."""
HOUR_MS: Final = 3_600_000


def in_utc(at: Timestamp) -> str:
    """A time for a person, to the second: ``2027-01-15T08:00:00Z``."""
    return datetime.fromtimestamp(int(at), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def new_message_id(now: Timestamp, entropy: Entropy) -> MessageId:
    """Make a UUIDv7 (RFC 9562 §5.7) whose time is ``now``."""
    ms = int(now * 1000).to_bytes(6, "big")
    raw = bytearray(ms + entropy(10))
    raw[6] = 0x70 | (raw[6] & 0x0F)
    raw[8] = 0x80 | (raw[8] & 0x3F)
    h = raw.hex()
    return MessageId(f"{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}")


def parse_message_id(text: str) -> MessageId:
    """Check that ``text`` is a UUIDv7 in lower-case text form.

    Raises:
        ValueError: it is not.
    """
    if UUID7.fullmatch(text) is None:
        raise ValueError("id must be a lower-case UUIDv7")
    return MessageId(text)


def message_id_ms(message_id: MessageId) -> int:
    """The time inside a UUIDv7, Unix milliseconds."""
    return int(message_id[:8] + message_id[9:13], 16)


def message_id_hour(message_id: MessageId) -> int:
    """The hour of a UUIDv7 since the epoch: what dedupe entries are grouped by (R3)."""
    return message_id_ms(message_id) // HOUR_MS
