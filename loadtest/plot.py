"""Latency against rate as an SVG: three lines on a logarithmic scale, drawn by hand.

Rules of the file: pure, no dependency: a chart library for three lines would be the largest part of
the driver.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final
from xml.sax.saxutils import escape

WIDTH: Final = 720
HEIGHT: Final = 420
LEFT: Final = 64
RIGHT: Final = 20
TOP: Final = 52
BOTTOM: Final = 52
LINES: Final = (("p50", "#1b7837"), ("p95", "#d08200"), ("p99", "#b2182b"))
STEPS: Final = (1, 2, 5)
_HEAD: Final = (
    f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
    'font-family="sans-serif" font-size="12">'
)


@dataclass(frozen=True, slots=True)
class Point:
    """Latency percentiles, ms, at one rate, envelopes/s."""

    rate: float
    p50: float
    p95: float
    p99: float


class Axes:
    """Where a rate and a latency lie on the paper.

    Args:
        most: largest rate.
        low: least latency, ms.
        high: largest latency, ms.
    """

    def __init__(self, most: float, low: float, high: float) -> None:
        self._most = most
        self._low = 10 ** math.floor(math.log10(low))
        self._high = 10 ** math.ceil(math.log10(high * 1.001))

    def x(self, rate: float) -> float:
        """Across, linear from zero."""
        return LEFT + rate / self._most * (WIDTH - LEFT - RIGHT)

    def y(self, ms: float) -> float:
        """Up, logarithmic."""
        share = math.log(ms / self._low) / math.log(self._high / self._low)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    def latencies(self) -> Iterator[float]:
        """Where to write a latency: 1, 2, 5, 10 and so on."""
        decade = self._low
        while decade < self._high:
            yield from (decade * step for step in STEPS)
            decade *= 10
        yield self._high

    def rates(self) -> Iterator[float]:
        """Where to write a rate: some five round numbers."""
        rough = self._most / 5
        unit = 10 ** math.floor(math.log10(rough))
        step = next(unit * one for one in (*STEPS, 10) if unit * one >= rough)
        for number in range(int(self._most / step) + 1):
            yield number * step


def draw(points: Sequence[Point], title: str) -> str:
    """The whole picture; at least one point."""
    points = sorted(points, key=lambda point: point.rate)
    values = [max(getattr(point, name), 0.01) for point in points for name, _ in LINES]
    axes = Axes(max(point.rate for point in points) * 1.04, min(values), max(values))
    parts = [
        _HEAD,
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        _text(LEFT, 20, title, "start"),
        *_grid(axes),
        *_lines(points, axes),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _text(x: float, y: float, text: str, anchor: str, fill: str = "black") -> str:
    at = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{fill}"'
    return f"<text {at}>{escape(text)}</text>"


def _grid(axes: Axes) -> Iterator[str]:
    for ms in axes.latencies():
        y = axes.y(ms)
        yield f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#dddddd"/>'
        yield _text(LEFT - 6, y + 4, f"{ms:g}", "end")
    for rate in axes.rates():
        yield _text(axes.x(rate), HEIGHT - BOTTOM + 18, f"{rate:,.0f}", "middle")
    yield _text(WIDTH / 2, HEIGHT - 12, "envelopes/s, open loop", "middle")
    yield _text(LEFT - 6, TOP - 14, "ms", "end")


def _lines(points: Sequence[Point], axes: Axes) -> Iterator[str]:
    for number, (name, colour) in enumerate(LINES):
        at = [(axes.x(point.rate), axes.y(max(getattr(point, name), 0.01))) for point in points]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in at)
        yield f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>'
        for x, y in at:
            yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>'
        yield _text(WIDTH - RIGHT - 50 * (len(LINES) - number - 1), TOP - 14, name, "end", colour)
