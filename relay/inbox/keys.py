"""Resolve the keys of a DID: a did:key is its own key (PROTOCOL.md §2.1)."""

from __future__ import annotations

from relay.protocol.did import VerificationKey, parse_did
from relay.protocol.errors import ErrorCode, ProtocolError
from relay.protocol.ids import Did
from relay.protocol.jws import UnsupportedTypeError


class DidKeys:
    """Resolves ``did:key``; meets the port :class:`relay.inbox.ports.Keys`."""

    def known(self, claimed: VerificationKey) -> VerificationKey:
        """Return the key in the DID itself."""
        return claimed

    async def resolve(self, did: Did) -> VerificationKey:
        """Return the one key that a did:key stands for."""
        try:
            return parse_did(did)
        except UnsupportedTypeError as exc:
            raise ProtocolError(ErrorCode.UNSUPPORTED, str(exc)) from exc
        except ValueError as exc:
            raise ProtocolError(ErrorCode.BAD_ENVELOPE, str(exc)) from exc
