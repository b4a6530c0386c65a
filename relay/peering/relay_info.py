"""Sign this relay's description of itself, and fetch that of others (PROTOCOL.md §8)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from relay import __version__, clock
from relay.peering.dialer import Dialer
from relay.peering.peers import Peers
from relay.protocol import envelope, relay_info
from relay.protocol import jws as jose
from relay.protocol.did import SigningKey
from relay.protocol.errors import ErrorCode, ProtocolError, unreachable

PATH: Final = "/.well-known/agent-relay.json"
OK: Final = 200


@dataclass(frozen=True, slots=True)
class OwnRelayInfo:
    """This relay's description, from its live configuration.

    Args:
        key: of this relay.
        url: its origin.
        limits: of ``hello`` (PROTOCOL.md §3.4).
        registration: who may have an inbox here.
        contact: of the operator.
        durability: of the store; it may change while the node runs.
        peers: the federation policy, and the number of desired links.
    """

    key: SigningKey
    url: str
    limits: dict[str, int]
    registration: str
    contact: str | None
    durability: Callable[[], str]
    peers: Peers

    def sign(self) -> str:
        """Return the signed description as of now."""
        description = relay_info.RelayDescription(
            url=self.url,
            software="did-relay",
            version=__version__,
            limits=self.limits,
            retention_s=envelope.MAX_ENVELOPE_LIFETIME_S,
            registration=self.registration,
            federation=self.peers.federation,
            durability=self.durability(),
            peers=len(self.peers.desired_links()),
            contact=self.contact,
        )
        return relay_info.sign(self.key, description, clock.now())


@dataclass(frozen=True, slots=True)
class RelayInfoFetcher:
    """Fetches the description that a relay serves at its origin."""

    dialer: Dialer

    async def fetch(self, url: str) -> str:
        """Return the signed description, not verified.

        Raises:
            UnavailableError: ``peer_unreachable``.
            ProtocolError: ``unsupported``: not to be dialled; ``bad_frame``: not a relay's answer.
        """
        answer = await self.dialer.get(f"{url}{PATH}", accept="application/json")
        if answer.status != OK:
            raise unreachable(f"{url}: no relay answers there (HTTP {answer.status})")
        try:
            return jose.Members(jose.loads(answer.body)).text(
                "jws", limit=relay_info.MAX_INFO_BYTES
            )
        except ValueError as exc:
            raise ProtocolError(ErrorCode.BAD_FRAME, f"{url}: {exc}") from exc
