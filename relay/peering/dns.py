"""Asking DNS, with a deadline: addresses of a host, texts of a name.

Rules of the file: a name is asked for as it stands, never with a search domain behind it, and
``/etc/hosts`` is not read; ``()`` is an answer ("there is none"), anything else that is no answer
is ``peer_unreachable``. A cancelled question is over: no thread waits on for it.
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

from relay.protocol.errors import (
    ErrorCode,
    UnavailableError,
)

LOOKUP_S: Final = 5.0
MAX_ANSWERS: Final = 32
_BACKEND: Final = dns.asyncbackend.get_backend("asyncio")
# now, and not with the first answer of each type: by then another version may be installed
dns.rdata.load_all_types()  # type: ignore[no-untyped-call]  # dnspython


class Resolver(Protocol):
    """What the dialer needs of DNS."""

    async def addresses(self, host: str) -> Sequence[str]:
        """All IPv4 and IPv6 addresses of a host; ``()``: it has none.

        Raises:
            UnavailableError: ``peer_unreachable``: DNS does not say.
        """
        ...

    async def texts(self, name: str) -> Sequence[str]:
        """All TXT records of a name, each joined from its strings; ``()``: it has none.

        Raises:
            UnavailableError: ``peer_unreachable``: DNS does not say.
        """
        ...


class Dns:
    """The machine's own DNS servers, asked over UDP, or TCP where an answer is long."""

    def __init__(self, resolver: dns.asyncresolver.Resolver | None = None) -> None:
        """Ask nothing yet.

        Args:
            resolver: another than what the machine is set up with.
        """
        self._resolver = resolver

    async def addresses(self, host: str) -> Sequence[str]:
        """All IPv4 and IPv6 addresses of a host.

        One family may fail where the other answers: many servers know nothing of IPv6.
        """
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(self._ask(host, kind)) for kind in ("A", "AAAA")]
        both = [task.result() for task in asked]
        found = [text for part in both if not isinstance(part, UnavailableError) for text in part]
        for part in both:
            if isinstance(part, UnavailableError) and not found:
                raise part
        return found

    async def texts(self, name: str) -> Sequence[str]:
        """All TXT records of a name."""
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
            return _silent(name, type(exc).__name__)
        if len(answer) > MAX_ANSWERS:
            return _silent(name, f"more than {MAX_ANSWERS} answers")
        return [_text(item) for item in answer]


def _text(item: object) -> str:
    strings = getattr(item, "strings", None)
    if strings is None:
        return str(item)
    return b"".join(strings).decode("utf-8", errors="replace")


def _silent(name: str, why: str) -> UnavailableError:
    return UnavailableError(ErrorCode.PEER_UNREACHABLE, f"{name}: DNS does not say: {why}")
