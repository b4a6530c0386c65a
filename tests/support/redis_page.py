"""``relay/store/REDIS.md``: the keys of the store, and the scripts that write and read them.

``relay/store/redis/keys.py`` lists the kinds of keys; this module finds their users in the text of
the scripts. ``python -m tests.support.redis_page`` writes the page again;
tests/store/test_redis_page.py compares.

A script uses a key if a function that it reaches names the key in a ``redis.call``. A function of a
library counts only for the scripts that call it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

from relay.store.redis import keys, scripts

PAGE: Final = scripts.DIRECTORY.parents[1] / "REDIS.md"
WRITES: Final = frozenset((
    "SET", "DEL", "UNLINK", "HSET", "HSETNX", "HDEL", "HINCRBY", "ZADD", "ZREM", "ZREMRANGEBYSCORE",
    "SADD", "SREM", "RPUSH", "XADD", "XDEL",
))  # fmt: skip
GIVEN: Final[Mapping[str, tuple[str, ...]]] = {
    "claim": ("relay:store",),
    "write_clock": ("relay:store",),
    "heartbeat": ("relay:nodes",),
    "replace_field": ("relay:peers", "relay:handles"),
}
"""What ``KEYS[1]`` is where it is not the state of a partition."""
STATE: Final = "relay:{p}:state"
_CALL = re.compile(
    r"redis\.p?call\((?:[^,()]+ and '[A-Z]+' or )?'([A-Z]+)',\s*"
    r"((?:[^,()]|\([^()]*\))+)((?:,\s*\w*key\([^()]*\))*)"
)
"""The command, its first key, and further keys."""
_MORE = re.compile(r",\s*(?=\w*key\()")
_ASSIGN = re.compile(r"local ([\w, ]+) = ([^\n]+)")
_KEY = re.compile(r"key\('(\w+)'|PREFIX \.\. '([\w:]+)'|(\w+_key)\(|(KEYS\[1\])")


def kinds_of_helpers(texts: Mapping[str, str]) -> dict[str, str]:
    """Return the kind of key that each ``…_key`` function makes."""
    helper = re.compile(r"local function (\w+_key)\([^)]*\)\n  return key\('(\w+)'")
    return {name: kind for text in texts.values() for name, kind in helper.findall(text)}


def functions_of(text: str) -> dict[str, str]:
    """Return the bodies of a script's functions by name; what is in no function is named ""."""
    bodies: dict[str, str] = {}
    rest = text
    for match in re.finditer(r"^local function (\w+)\(.*?^end$", text, re.MULTILINE | re.DOTALL):
        bodies[match[1]] = match[0]
        rest = rest.replace(match[0], "")
    return bodies | {"": rest}


def uses_of(body: str, kinds_in: Callable[[str], list[str]]) -> Iterator[tuple[str, bool]]:
    """Yield (kind, is written) for each call of the store in a body."""
    names: dict[str, list[str]] = {}
    for left, right in _ASSIGN.findall(body):
        for name, kind in zip(left.split(","), kinds_in(right), strict=False):
            names.setdefault(name.strip(), []).append(kind)
    # this function of lib/outbox.lua writes to the key that it is given
    given = [name for name in names if f"write_sums({name}," in body]
    yield from ((kind, True) for name in given for kind in names[name])
    for command, first, more in _CALL.findall(body):
        # a channel is no key
        arguments = [] if command == "SPUBLISH" else [first, *_MORE.split(more)]
        for argument in filter(None, arguments):
            for kind in kinds_in(argument) or names.get(argument.strip(), []):
                yield kind, command in WRITES


def kinds_in(text: str, given: tuple[str, ...], helpers: Mapping[str, str]) -> list[str]:
    """Return the kinds of the keys that an expression names."""
    found: list[str] = []
    for kind, single, helper, _ in (match.groups() for match in _KEY.finditer(text)):
        if kind or single:
            found.append(kind or single)
        elif helper:
            found += [helpers[helper]] if helper in helpers else []
        else:
            found += given
    return found


def users() -> dict[str, tuple[list[str], list[str]]]:
    """Return, by pattern, the scripts that write a key and those that only read it."""
    texts = {one.name: one.text for one in scripts.all_scripts()}
    helpers = kinds_of_helpers(texts)
    patterns = {
        re.sub(r"^relay:\{p\}:|:<.*$", "", kind.pattern): kind.pattern for kind in keys.KINDS
    }
    found: dict[str, tuple[set[str], set[str]]] = defaultdict(lambda: (set(), set()))
    for name, text in texts.items():
        code = re.sub(r"--[^\n]*", "", text)
        bodies, given = functions_of(code), GIVEN.get(name, (STATE,))
        reached, todo = set(), [""]
        while todo:
            body = bodies[todo.pop()]
            for kind, is_written in uses_of(body, lambda text: kinds_in(text, given, helpers)):  # noqa: B023  used up at once
                pattern = patterns.get(kind, kind)
                found[pattern][0 if is_written else 1].add(name)
            called = {one for one in re.findall(r"\b(\w+)\b", body) if one in bodies} - reached
            reached |= called
            todo += called
    return {one: (sorted(wrote), sorted(read - wrote)) for one, (wrote, read) in found.items()}


def page() -> str:
    """Return the text of the page."""
    found = users()
    folders = {path.stem: path.parent.name for path in scripts.DIRECTORY.rglob("*.lua")}
    lines = [
        "# Keys of the store",
        "",
        "Made by `python -m tests.support.redis_page` from `keys.py` and the scripts; do not edit.",
        "`{p}` is the number of a partition. A script that writes a key may read it, too.",
        "",
        "| key | type | holds | written by | only read by |",
        "|---|---|---|---|---|",
    ]
    for kind in keys.KINDS:
        wrote, read = found.get(kind.pattern, ([], []))
        columns = [", ".join(f"{folders[one]}/{one}" for one in some) for some in (wrote, read)]
        if kind.by_python:
            columns[0] = ", ".join(filter(None, (columns[0], kind.by_python)))
        lines.append(
            f"| `{kind.pattern}` | {kind.type} | {kind.holds} | {columns[0]} | {columns[1]} |"
        )
    return "\n".join(lines) + "\n"


def kind_of_key(name: str) -> keys.Kind | None:
    """Return the kind of a key that is in a store."""
    for kind in keys.KINDS:
        parts = re.split(r"(\{p\}|<\w+>)", kind.pattern)
        pattern = "".join(
            r"\{\d+\}" if part == "{p}" else ".+" if part.startswith("<") else re.escape(part)
            for part in parts
        )
        if re.fullmatch(pattern, name):
            return kind
    return None


if __name__ == "__main__":
    Path(PAGE).write_text(page())
