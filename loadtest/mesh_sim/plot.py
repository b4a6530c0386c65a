"""Plot the part of all records that the relays hold against seconds: a small picture a mesh.

Rules of the file: pure, drawn by hand, as ``loadtest/plot.py``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final
from xml.sax.saxutils import escape

from loadtest.mesh_sim.scenes import TROUBLES, Found, thinned

WIDTH: Final = 400
HEIGHT: Final = 330
LEFT: Final = 56
TOP: Final = 84
RIGHT: Final = 14
BOTTOM: Final = 44
COLUMNS: Final = 2
COLOURS: Final = dict(zip(TROUBLES, ("#1b7837", "#d08200", "#2166ac", "#b2182b"), strict=True))
MIN_SHARE: Final = 1e-4
"""The lowest share still missing that is drawn; below it, nothing or nearly nothing is missing."""


def draw(runs: Sequence[Found], title: str) -> str:
    """The whole picture."""
    meshes = sorted({(run.records, run.relays) for run in runs}, reverse=True)
    rows = math.ceil(len(meshes) / COLUMNS)
    width, height = WIDTH * COLUMNS, HEIGHT * rows + 70
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
    parts = [
        f'{head} font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        _text(LEFT, 20, title, "start", size=13),
        *_legend(),
    ]
    for number, (records, relays) in enumerate(meshes):
        some = [run for run in runs if (run.records, run.relays) == (records, relays)]
        x, y = number % COLUMNS * WIDTH, number // COLUMNS * HEIGHT + 50
        parts += [f'<g transform="translate({x} {y})">', *_mesh(some), "</g>"]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _text(  # noqa: PLR0917  a place, a text and how it looks
    x: float, y: float, text: str, anchor: str, fill: str = "black", size: int = 11
) -> str:
    at = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{fill}" font-size="{size}"'
    return f"<text {at}>{escape(text)}</text>"


def _legend() -> Iterator[str]:
    for number, (trouble, colour) in enumerate(COLOURS.items()):
        yield _text(LEFT + 130 * number, 40, trouble, "start", colour)


def _mesh(runs: Sequence[Found]) -> Iterator[str]:
    latest = max(run.seconds or run.curve[-1][0] for run in runs)
    limit = _round_up(latest)
    first = runs[0]
    yield _text(LEFT, 22, f"{first.relays:,} relays, {first.records:,} records", "start", size=12)
    yield from _grid(limit)
    for run in runs:
        yield from _line(run, limit)


def _round_up(seconds: float) -> float:
    unit = 10 ** math.floor(math.log10(seconds))
    return next(unit * step for step in (1, 1.5, 2, 3, 5, 7.5, 10) if unit * step >= seconds)


def _x(at: float, limit: float) -> float:
    return LEFT + min(at / limit, 1.0) * (WIDTH - LEFT - RIGHT)


def _y(missing: float) -> float:
    share = math.log(max(missing, MIN_SHARE) / MIN_SHARE) / math.log(1 / MIN_SHARE)
    return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def _grid(limit: float) -> Iterator[str]:
    for percent in (100, 10, 1, 0.1, 0.01):
        y, name = _y(percent / 100), f"{percent:g} %"
        yield f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#dddddd"/>'
        yield _text(LEFT - 6, y + 4, name, "end")
    for part in range(6):
        at = limit * part / 5
        yield _text(_x(at, limit), HEIGHT - BOTTOM + 16, f"{at:g}", "middle")
    yield _text(WIDTH / 2, HEIGHT - 12, "seconds; what is still missing", "middle")


def _line(run: Found, limit: float) -> Iterator[str]:
    colour = COLOURS[run.trouble]
    points = [(_x(at, limit), _y(1 - share)) for at, share in thinned(run.curve)]
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    yield f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="1.8"/>'
    if run.seconds is not None:
        x, y = points[-1]
        reply = f"{run.seconds:.0f} s, {run.rounds:.1f} pulls, {run.mb_sent:.1f} MB"
        row = 22 + 14 * list(COLOURS).index(run.trouble)
        yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>'
        yield _text(WIDTH - RIGHT, row, reply, "end", colour)
