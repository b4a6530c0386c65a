"""Eight senders, eight recipients and the ledger that follows every envelope between them."""

from __future__ import annotations

import asyncio
import binascii
import contextlib
import hashlib
import os
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, Final

import orjson
from hdrh.histogram import HdrHistogram  # type: ignore[import-untyped]

from loadtest.agents import AgentFailedError, Recipient, Sender
from loadtest.ledger import Ledger
from loadtest.posts import Stock, checksum
from loadtest.process import RelayProcess
from relay.protocol.did import SigningKey
from relay.protocol.endpoint_record import Home
from relay.protocol.endpoint_record import sign as sign_record
from relay.protocol.errors import RelayError
from relay.protocol.ids import Did, Eid, Timestamp
from relay.protocol.receipts import verify_receipt

PAIRS: Final = 8
POLL_S: Final = 0.01
QUIET_S: Final = 15.0
LONGEST_US: Final = 120_000_000


def histogram() -> Any:
    """Microseconds, three significant figures."""
    return HdrHistogram(1, LONGEST_US, 3)


@dataclass(slots=True)
class Latencies:
    """Microseconds from the moment an envelope was due.

    Args:
        counted_from: envelopes due before this are warm-up, driver clock.
        delivered: to the recipient's handler.
        receipted: to the sender's handler of the receipt.
        sent: to the write by the driver: its own share of the two above.
    """

    counted_from: float = 0.0
    delivered: Any = field(default_factory=histogram)
    receipted: Any = field(default_factory=histogram)
    sent: Any = field(default_factory=histogram)

    def record(self, kind: Any, due: float, now: float) -> None:
        """Record one, unless it is warm-up."""
        if due >= self.counted_from:
            kind.record_value(max(1, int((now - due) * 1e6)))


class Fleet:
    """The agents of phases 1 and 2.

    Args:
        relay: where they live.
        ledger: the book of the whole run.
        far: where the recipients live instead; they publish records that say so.
    """

    def __init__(
        self, relay: RelayProcess, ledger: Ledger, far: RelayProcess | None = None
    ) -> None:
        self.relay = relay
        self.ledger = ledger
        self.far = far
        recipients = [SigningKey(os.urandom(32)) for _ in range(PAIRS)]
        senders = [SigningKey(os.urandom(32)) for _ in range(PAIRS)]
        dids = [key.did for key in recipients]
        self.recipients = [self._recipient(key) for key in recipients]
        self.senders = [
            Sender(key, relay.url, Stock(key, number, dids)) for number, key in enumerate(senders)
        ]
        self._relay_did = Did("")

    def _recipient(self, key: SigningKey) -> Recipient:
        if self.far is None:
            return Recipient(key, self.relay.url)
        home = Home(self.far.did, self.far.url)
        return Recipient(key, self.far.url, sign_record(key, [home], now=Timestamp(time.time())))

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[Fleet]:
        """Log everybody in; leave at the end."""
        for agent in (*self.recipients, *self.senders):
            self._relay_did = (await agent.open()).relay
        yield self
        for agent in (*self.senders, *self.recipients):
            await agent.close()

    async def sign(self, count: int) -> None:
        """Let every sender have ``count`` posts in stock."""
        for sender in self.senders:
            await sender.stock.fill(count)

    def signed_bytes(self) -> int:
        """How long a message is whose signature the node checks."""
        [envelope] = orjson.loads(self.senders[0].stock.posts[0].frame)["envelopes"]
        return len(envelope["jws"].rpartition(".")[0])

    # ------------------------------------------------------------ while it runs

    @property
    def delivered(self) -> int:
        """Envelopes handed to recipients so far."""
        return sum(one.delivered for one in self.recipients)

    @property
    def answered(self) -> int:
        """Envelopes answered to senders so far."""
        return sum(one.answered for one in self.senders)

    def check(self) -> None:
        """Raise what went wrong at an agent, if anything did."""
        for agent in (*self.senders, *self.recipients):
            if agent.failure is not None:
                raise AgentFailedError(agent.failure)

    async def run_until(self, is_over: Callable[[], bool], until: float) -> None:
        """Let it run until a condition or a time of the driver's clock."""
        while not is_over() and (left := until - time.perf_counter()) > 0:
            await asyncio.sleep(min(left, POLL_S))
            self.check()

    async def come_to_rest(self) -> bool:
        """Wait until all is answered, handed over and acked; False if nothing moves any more."""
        seen, until = self._progress(), time.perf_counter() + QUIET_S
        while not self._is_at_rest() and time.perf_counter() < until:
            await asyncio.sleep(POLL_S)
            self.check()
            if (now := self._progress()) != seen:
                seen, until = now, time.perf_counter() + QUIET_S
        return self._is_at_rest()

    def _progress(self) -> tuple[int, int, int]:
        return self.answered, self.delivered, sum(one.acked_upto for one in self.recipients)

    def _is_at_rest(self) -> bool:
        is_answered = all(not one.in_flight for one in self.senders)
        is_acked = all(one.acked_upto == one.handed_upto for one in self.recipients)
        stored = self.answered - sum(one.rejected for one in self.senders)
        return is_answered and is_acked and self.delivered >= stored

    # ------------------------------------------------------------ afterwards

    def settle(
        self, latencies: Latencies | None = None, due: Callable[[int], float] | None = None
    ) -> None:
        """Write into the ledger what the agents noted, and forget it.

        Args:
            latencies: where to record them.
            due: when the n-th post of all senders together was due; None = when it was sent.
        """
        for number, sender in enumerate(self.senders):
            for at, (sent_at, post) in enumerate(
                zip(sender.sent_at, sender.stock.posts, strict=False)
            ):
                was_due = sent_at if due is None else due(at * len(self.senders) + number)
                self.ledger.post(post.eid, (number, post.recipient), was_due, post.checksum)
                if latencies is not None:
                    latencies.record(latencies.sent, was_due, sent_at)
        for sender in self.senders:
            for now, answer in sender.answers:
                self._settle_answer(sender, now, answer, latencies)
            sender.stock.drop(len(sender.sent_at))
            sender.sent_at.clear()
            sender.answers.clear()
        for number, recipient in enumerate(self.recipients):
            for now, items in recipient.deliveries:
                self._settle_delivery(number, now, items, latencies)
            recipient.deliveries.clear()

    def _settle_answer(
        self, sender: Sender, now: float, answer: dict[str, Any], latencies: Latencies | None
    ) -> None:
        stock = sender.stock
        rejected = {item["ref"]: item["error"] for item in answer["rejected"]}
        expected: list[Eid] = []
        for ref in answer["refs"]:
            eid = stock.posts[int(ref) - stock.first].eid
            if ref in rejected:
                self.ledger.reject(eid, rejected[ref])
            else:
                expected.append(eid)
        if expected and self._eids_of(answer["receipt"]) != expected:
            self.ledger.misreceipt()
            return
        for eid in expected:
            posted = self.ledger.store(eid)
            if latencies is not None and posted is not None:
                latencies.record(latencies.receipted, posted.due, now)

    def _eids_of(self, receipt: str | None) -> list[Eid]:
        """What a receipt vouches for; nothing unless it was signed by the relay, after an fsync."""
        try:
            read = verify_receipt(receipt or "", self._relay_did)
        except RelayError:
            return []
        return [item.eid for item in read.items] if read.durability == "fsync" else []

    def _settle_delivery(
        self, number: int, now: float, items: list[dict[str, Any]], latencies: Latencies | None
    ) -> None:
        for item in items:
            signing_input = item["envelope"]["jws"].rpartition(".")[0].encode()
            digest = binascii.b2a_base64(hashlib.sha256(signing_input).digest(), newline=False)
            eid = Eid(digest.rstrip(b"=").translate(_URL_SAFE).decode())
            found = checksum(orjson.dumps(item["envelope"]))
            posted = self.ledger.deliver(number, eid, found, redelivered=item["redelivered"])
            if latencies is not None and posted is not None:
                latencies.record(latencies.delivered, posted.due, now)


_URL_SAFE: Final = bytes.maketrans(b"+/", b"-_")
