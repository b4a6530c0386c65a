"""Parties in network namespaces of their own, joined by a bridge, with real faults by nftables.

They need root, ``ip`` and ``nft``; :func:`why_missing` names what is missing. All names begin with
``rly`` and this process's id, so nothing of another program is touched. This process's own
namespace gets only one veth pair. Namespaces end with the block, whatever happens.

::

    test process 10.213.N.1 ──veth── bridge (in a namespace) ──veth── 10.213.N.10 "a"
                                                             └──veth── 10.213.N.11 "b" …
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence

TOOLS = ("ip", "nft")
FIRST_HOST = 10
_numbers = itertools.count(os.getpid() % 200)


def why_missing() -> str | None:
    """Return why namespaces cannot be made here; None = they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    gone = [tool for tool in TOOLS if shutil.which(tool) is None]
    if gone:
        return f"not installed: {', '.join(gone)}"
    name = f"rly{os.getpid()}x"
    try:
        _run("ip", "netns", "add", name)
    except (OSError, subprocess.CalledProcessError) as exc:
        return f"network namespaces cannot be made here: {exc}"
    try:
        _run(*_inside(name), "nft", "add", "table", "inet", "faults")
    except subprocess.CalledProcessError as exc:
        return f"nftables cannot be used here: {exc}"
    finally:
        _run("ip", "netns", "del", name)
    return None


class Namespaces:
    """Parties by name, each with an address; faults between them.

    Args:
        names: of the parties.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.number = next(_numbers) % 250 + 1
        self.network = f"10.213.{self.number}.0/24"
        self.names = list(names)
        self._prefix = f"rly{os.getpid()}"
        self._hub = f"{self._prefix}hub"

    def address(self, name: str) -> str:
        """Return where a party lives."""
        return f"10.213.{self.number}.{FIRST_HOST + self.names.index(name)}"

    def command(self, name: str) -> tuple[str, ...]:
        """Words that run what follows them there; the process id stays."""
        return _inside(self._space(name))

    @contextlib.contextmanager
    def made(self) -> Iterator[Namespaces]:
        """Make them; gone at the end."""
        with contextlib.ExitStack() as stack:
            self._make_hub(stack)
            for name in self.names:
                self._make(name, stack)
            yield self

    # ------------------------------------------------------------ faults

    def cut(self, source: str, target: str) -> None:
        """Nothing of ``source`` reaches ``target`` any more; the other direction is left alone."""
        self._rule(source, target, "drop")

    def lose(self, source: str, target: str, share: float) -> None:
        """So many of the packets of ``source`` do not reach ``target``."""
        chance = f"numgen random mod 100 < {round(share * 100)}"
        self._rule(source, target, *chance.split(), "drop")

    def reset(self, source: str, target: str) -> None:
        """Whatever ``source`` says next to ``target`` is answered with a reset."""
        self._rule(source, target, *["meta", "l4proto", "tcp", "reject", "with", "tcp", "reset"])

    def heal(self, *targets: str) -> None:
        """Take all faults away."""
        for name in targets or self.names:
            _run(*self.command(name), "nft", "flush", "chain", "inet", "faults", "heard")

    def _rule(self, source: str, target: str, *words: str) -> None:
        chain = ("nft", "add", "rule", "inet", "faults", "heard")
        _run(*self.command(target), *chain, "ip", "saddr", self.address(source), *words)

    # ------------------------------------------------------------ making

    def _space(self, name: str) -> str:
        return f"{self._prefix}n{self.names.index(name)}"

    def _add(self, space: str, stack: contextlib.ExitStack) -> None:
        _run("ip", "netns", "add", space)
        stack.callback(_run, "ip", "netns", "del", space)
        _run(*_inside(space), "ip", "link", "set", "lo", "up")

    def _make_hub(self, stack: contextlib.ExitStack) -> None:
        self._add(self._hub, stack)
        _run(*_inside(self._hub), "ip", "link", "add", "bridge", "type", "bridge")
        _run(*_inside(self._hub), "ip", "link", "set", "bridge", "up")
        ours = f"{self._prefix}h"
        self._plug(ours, self._hub)
        stack.callback(_run, "ip", "link", "del", ours)
        _run("ip", "addr", "add", f"10.213.{self.number}.1/24", "dev", ours)
        _run("ip", "link", "set", ours, "up")

    def _make(self, name: str, stack: contextlib.ExitStack) -> None:
        space, inside = self._space(name), self.command(name)
        self._add(space, stack)
        wire = f"{space}i"
        self._plug(wire, self._hub)
        _run("ip", "link", "set", wire, "netns", space)
        _run(*inside, "ip", "addr", "add", f"{self.address(name)}/24", "dev", wire)
        _run(*inside, "ip", "link", "set", wire, "up")
        _run(*inside, "nft", "add", "table", "inet", "faults")
        hook = "{ type filter hook input priority 0; }"
        _run(*inside, "nft", "add", "chain", "inet", "faults", "heard", hook)

    def _plug(self, wire: str, hub: str) -> None:
        """A veth pair: one end is left in this namespace, the other is in the bridge."""
        far = f"{wire}b"
        _run("ip", "link", "add", wire, "type", "veth", "peer", "name", far)
        _run("ip", "link", "set", far, "netns", hub)
        _run(*_inside(hub), "ip", "link", "set", far, "master", "bridge", "up")


def _inside(space: str) -> tuple[str, ...]:
    return ("ip", "netns", "exec", space)


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True, timeout=20)  # noqa: S603  our own words
