"""Other relays and handles: two small hashes of JSON values, one field each."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Final

from relay.directory.local_handles import claimed
from relay.directory.ports import HandleRow
from relay.peering.ports import PeerRow
from relay.protocol.errors import ErrorCode, UnavailableError
from relay.protocol.ids import Did
from relay.protocol.jws import dumps, loads
from relay.store.redis import keys
from relay.store.redis.client import Client

_MAX_TRIES: Final = 5
"""Other nodes may change the same name at the same time; each try sees one of their changes."""


class RedisPeers:
    """Other relays; see :class:`relay.peering.ports.PeerRowStore`."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def all(self) -> list[PeerRow]:
        """Return all known relays."""
        values = await self._client.command(keys.PEERS, "HVALS", keys.PEERS)
        return [PeerRow(**loads(text)) for text in values]

    async def put(self, row: PeerRow) -> None:
        """Store a row, in the place of the former one of this DID."""
        await self._client.command(keys.PEERS, "HSET", keys.PEERS, row.did, _text(row))

    async def replace(self, expected: PeerRow | None, row: PeerRow) -> bool:
        """Store a row if the store still has ``expected``; return False otherwise."""
        old = _text(expected) if expected else b""
        return await _replace(self._client, keys.PEERS, row.did, old, row)

    async def remove(self, did: Did) -> bool:
        """Forget a relay; return False if it was not known."""
        return bool(await self._client.command(keys.PEERS, "HDEL", keys.PEERS, did))


class RedisHandles:
    """Names under this relay; see :class:`relay.directory.ports.HandleStore`."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def claim(self, name: str, did: Did, now: int) -> HandleRow:
        """Give a free name to an agent; return the row of its present owner."""
        for _ in range(_MAX_TRIES):
            text = await self._client.command(keys.HANDLES, "HGET", keys.HANDLES, name)
            current = HandleRow(**loads(text)) if text else None
            row = claimed(current, name, did, now)
            if row == current or await _replace(self._client, keys.HANDLES, name, text or b"", row):
                return row
        raise UnavailableError(
            ErrorCode.STORAGE_UNAVAILABLE, f"other nodes keep changing the name {name}"
        )

    async def put(self, row: HandleRow) -> None:
        """Record that an agent left a name, or took it up again."""
        await self._client.command(keys.HANDLES, "HSET", keys.HANDLES, row.name, _text(row))

    async def get(self, name: str) -> HandleRow | None:
        """Return the owner of a name."""
        text = await self._client.command(keys.HANDLES, "HGET", keys.HANDLES, name)
        return HandleRow(**loads(text)) if text else None

    async def all(self) -> list[HandleRow]:
        """Return all names."""
        values = await self._client.command(keys.HANDLES, "HVALS", keys.HANDLES)
        return [HandleRow(**loads(text)) for text in values]


def _text(row: Any) -> bytes:
    return dumps(asdict(row))


async def _replace(client: Client, key: str, field: str, old: bytes, row: Any) -> bool:
    return bool(await client.script("replace_field", key, [field, old, _text(row)]))
