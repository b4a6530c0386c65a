"""How far a session may ack cumulatively: all up to here is finished (PROTOCOL.md §5 ``ack``)."""

from __future__ import annotations

from relay.protocol.ids import Seq


class Progress:
    """Finished seqs, as spans above a floor; only what this session was told of may be added."""

    __slots__ = ("_floor", "_spans", "_taken")

    def __init__(self, cursor: Seq) -> None:
        self._floor = cursor
        self._taken = cursor
        self._spans: dict[int, int] = {}

    def add(self, start: Seq, end: Seq) -> None:
        """Seqs ``start`` … ``end`` are finished; adding one again changes nothing."""
        first = max(start, self._floor + 1)
        if first > end:
            return
        self._spans[first] = max(end, self._spans.get(first, 0))
        while self._floor + 1 in self._spans:
            self._floor = Seq(self._spans.pop(self._floor + 1))

    @property
    def moved(self) -> bool:
        """Whether the floor is higher than it was at the last :meth:`take`."""
        return self._floor > self._taken

    def take(self) -> Seq:
        """The floor, to be said to the relay."""
        self._taken = self._floor
        return self._floor
