"""Other relays and names under this one: two small hashes of JSON values, one field each."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Final

from relay.directory.local_handles import claimed
from relay.directory.ports import (
    HandleRow,
)
from relay.peering.ports import (
    PeerRow,
)
from relay.protocol.errors import (
    ErrorCode,
    UnavailableError,
)
from relay.protocol.ids import Did
from relay.protocol.jws import (
    dumps,
    loads,
)
from relay.store.redis import keys
from relay.store.redis.client import Client

_MOST_TRIES: Final = 5
"""Other nodes may change the same name at the same time; each try sees what one of them did."""


class Peers:
    """The part of a store that knows other relays, and whose names are whose."""

    def __init__(self, client: Client) -> None:
        self._client = client

    # ------------------------------------------------------------ relays

    async def peers(self) -> list[PeerRow]:
        """All that are known."""
        return [PeerRow(**loads(text)) for text in await self._values(keys.PEERS)]

    async def put_peer(self, row: PeerRow) -> None:
        """Write one down, in the place of what was known of this DID."""
        await self._client.command(keys.PEERS, "HSET", keys.PEERS, row.did, _text(row))

    async def replace_peer(self, held: PeerRow | None, row: PeerRow) -> bool:
        """Write one down where the store says what ``held`` does; False: it says otherwise."""
        return await self._replace(keys.PEERS, row.did, _text(held) if held else b"", row)

    async def remove_peer(self, did: Did) -> bool:
        """Forget one; False if it was not known."""
        return bool(await self._client.command(keys.PEERS, "HDEL", keys.PEERS, did))

    # ------------------------------------------------------------ names

    async def claim_handle(self, name: str, did: Did, now: int) -> HandleRow:
        """Give a free name to an agent; gives who holds it now."""
        for _ in range(_MOST_TRIES):
            text = await self._client.command(keys.HANDLES, "HGET", keys.HANDLES, name)
            held = HandleRow(**loads(text)) if text else None
            row = claimed(held, name, did, now)
            if row == held or await self._replace(keys.HANDLES, name, text or b"", row):
                return row
        raise UnavailableError(
            ErrorCode.STORAGE_UNAVAILABLE, f"other nodes keep changing the name {name}"
        )

    async def _replace(self, key: str, name: str, old: bytes, row: HandleRow | PeerRow) -> bool:
        return bool(await self._client.script("replace_field", key, [name, old, _text(row)]))

    async def put_handle(self, row: HandleRow) -> None:
        """Write down that a name was left, or taken up again."""
        await self._client.command(keys.HANDLES, "HSET", keys.HANDLES, row.name, _text(row))

    async def handle(self, name: str) -> HandleRow | None:
        """Who holds a name."""
        text = await self._client.command(keys.HANDLES, "HGET", keys.HANDLES, name)
        return HandleRow(**loads(text)) if text else None

    async def handles(self) -> list[HandleRow]:
        """All names."""
        return [HandleRow(**loads(text)) for text in await self._values(keys.HANDLES)]

    async def _values(self, key: str) -> list[Any]:
        return list(await self._client.command(key, "HVALS", key))


def _text(row: HandleRow | PeerRow) -> bytes:
    return dumps(asdict(row))
