"""Ask DNS, with a deadline: addresses of a host, TXT records of a name.

A name is resolved as it stands, never with a search domain, and ``/etc/hosts`` is not read. ``()``
means that there is no record; no answer is ``peer_unreachable``. A cancelled question leaves no
thread behind.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final, Protocol

import dns.asyncbackend
import dns.asyncresolver
import dns.exception
import dns.name
import dns.rdata
import dns.resolver

from relay.protocol.errors import UnavailableError, unreachable

LOOKUP_S: Final = 5.0
MAX_ANSWERS: Final = 32
_BACKEND: Final = dns.asyncbackend.get_backend("asyncio")
# not on the first answer of each type: by then another version may be installed
dns.rdata.load_all_types()  # type: ignore[no-untyped-call]  # dnspython


class Resolver(Protocol):
    """The questions that the dialer asks; a port for tests."""

    async def addresses(self, host: str) -> Sequence[str]:
        """Return all IPv4 and IPv6 addresses of a host; raise ``peer_unreachable``."""
        ...

    async def texts(self, name: str) -> Sequence[str]:
        """Return all TXT records of a name, each one joined; raise ``peer_unreachable``."""
        ...


class Dns:
    """Asks the machine's DNS servers over UDP, or over TCP if an answer is long."""

    def __init__(self, resolver: dns.asyncresolver.Resolver | None = None) -> None:
        """Ask nothing yet; ``resolver`` replaces the one that the machine configures."""
        self._resolver = resolver

    async def addresses(self, host: str) -> Sequence[str]:
        """See the port. One family may fail if the other answers: many servers know no IPv6."""
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(self._ask(host, kind)) for kind in ("A", "AAAA")]
        both = [task.result() for task in asked]
        found = [text for part in both if not isinstance(part, UnavailableError) for text in part]
        for part in both:
            if isinstance(part, UnavailableError) and not found:
                raise part
        return found

    async def texts(self, name: str) -> Sequence[str]:
        """See the port."""
        answer = await self._ask(name, "TXT")
        if isinstance(answer, UnavailableError):
            raise answer
        return answer

    async def _ask(self, name: str, kind: str) -> Sequence[str] | UnavailableError:
        try:
            resolver = self._resolver = self._resolver or dns.asyncresolver.Resolver()
            answer = await resolver.resolve(
                dns.name.from_text(f"{name}."),
                kind,
                lifetime=LOOKUP_S,
                search=False,
                backend=_BACKEND,
                raise_on_no_answer=False,
            )
        except dns.resolver.NXDOMAIN:
            return ()
        except (dns.exception.DNSException, OSError) as exc:
            return unreachable(f"{name}: DNS does not say: {type(exc).__name__}")
        if len(answer) > MAX_ANSWERS:
            return unreachable(f"{name}: DNS does not say: more than {MAX_ANSWERS} answers")
        return [_text(item) for item in answer]


def _text(item: object) -> str:
    strings = getattr(item, "strings", None)
    if strings is None:
        return str(item)
    return b"".join(strings).decode("utf-8", errors="replace")
