"""Field tables: each member of a frame is declared once, for reading and for writing.

A frame is a dataclass whose annotations carry a :class:`Field`, such as
``ref: Annotated[str, text(MAX_REF_CHARS)]``. :class:`Codec` turns them into a reader and a writer.
A reader raises ValueError where the form is wrong; whether what is signed inside is right, is
checked by whoever uses it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields, is_dataclass
from enum import Flag, auto
from functools import reduce
from operator import or_
from typing import Any, Final, Generic, NamedTuple, TypeVar, get_args, get_type_hints

from relay.protocol import jws as jose

MAX_FRAME_BYTES: Final = 2 * 1024 * 1024
MAX_REF_CHARS: Final = 64
MAX_DETAIL_CHARS: Final = 1024
MAX_CODE_CHARS: Final = 64

_T = TypeVar("_T")


class SenderField(Flag):
    """The sides of a conversation that may send a frame, by the role of the one that dialled.

    ``LOGIN`` frames belong to the login or to the end: their side may send them in either role.
    """

    AGENT = auto()
    PEER = auto()
    DIALER_LOGIN = auto()
    HOST_TO_AGENT = auto()
    HOST_TO_PEER = auto()
    HOST_LOGIN = auto()
    DIALER = AGENT | PEER | DIALER_LOGIN
    HOST = HOST_TO_AGENT | HOST_TO_PEER | HOST_LOGIN


class Field(NamedTuple):
    """The reader and the writer of one member.

    Args:
        read: reads the member of this name.
        write: makes its JSON value; None writes the value itself.
        wire: its name in JSON, where that is not the attribute's.
        is_null: None is written as ``null``; otherwise the member is left out.
    """

    read: Callable[[jose.Members, str], Any]
    write: Callable[[Any], Any] | None = None
    wire: str | None = None
    is_null: bool = False


def text(limit: int, *, minimum: int = 1) -> Field:
    """Declare a string."""
    return Field(lambda m, name: m.text(name, minimum=minimum, limit=limit))


def integer(limit: int = jose.MAX_SAFE_INTEGER, *, minimum: int = 0) -> Field:
    """Declare an integer."""
    return Field(lambda m, name: m.integer(name, minimum=minimum, limit=limit))


def boolean() -> Field:
    """Declare true or false."""
    return Field(lambda m, name: m.boolean(name))


def one_of(literal: Any) -> Field:
    """Declare one of the values of a Literal."""
    known = frozenset(get_args(literal))
    return Field(lambda m, name: m.one_of(name, known))


def base64(size: int) -> Field:
    """Declare base64url of ``size`` bytes, which stays text."""
    return Field(lambda m, name: jose.b64encode(m.base64(name, size=size)))


def optional(field: Field, default: Any = None) -> Field:
    """Let a member be absent or null; it is then read as ``default``."""
    read = field.read
    return field._replace(read=lambda m, name: read(m, name) if m.has(name) else default)


def wire(name: str, field: Field) -> Field:
    """Give a member another name in JSON than the attribute has."""
    return field._replace(wire=name)


def texts(limit: int, max_chars: int) -> Field:
    """Declare an array of strings; an absent one is empty."""

    def read(m: jose.Members, name: str) -> tuple[str, ...]:
        values = m.optional_array(name, limit=limit)
        found = tuple(one for one in values if isinstance(one, str) and 0 < len(one) <= max_chars)
        if len(found) != len(values):
            raise ValueError(f"{name} must be strings of 1 to {max_chars} characters")
        return found

    return Field(read)


def array(
    read_item: Callable[[Any], Any],
    limit: int,
    *,
    minimum: int = 0,
    write: Callable[[Any], Any] | None = None,
) -> Field:
    """Declare an array whose items ``read_item`` reads."""

    def read(m: jose.Members, name: str) -> tuple[Any, ...]:
        return tuple(map(read_item, m.array(name, minimum=minimum, limit=limit)))

    return Field(read, write)


def objects(kind: Codec[Any], limit: int, *, minimum: int = 0) -> Field:
    """Declare an array of objects of this kind."""
    return array(kind.read, limit, minimum=minimum, write=lambda items: [*map(kind.write, items)])


class _Row(NamedTuple):
    name: str
    wire: str
    field: Field
    default: Any


class Codec(Generic[_T]):
    """The reader and the writer of one kind of frame, or of a part of one.

    Args:
        kind: the dataclass or named tuple; every field of it carries a :class:`Field`.
        sender: the sides that may send it; empty for a part of a frame.
        is_sparse: a member that has its default value is left out.
        check: raises ValueError where the members do not fit together.
    """

    def __init__(
        self,
        kind: type[_T],
        *sender: SenderField,
        is_sparse: bool = False,
        check: Callable[[_T], None] | None = None,
    ) -> None:
        self.kind = kind
        self.name = kind.__name__.lower()
        self.sender = reduce(or_, sender, SenderField(0))
        self._check = check
        self._is_sparse = is_sparse
        self._rows = _rows(kind)

    def read(self, value: object, **given: Any) -> _T:
        """Read an object; ``given`` members are not looked for in it.

        Raises:
            ValueError: its form is wrong.
        """
        m = value if isinstance(value, jose.Members) else jose.Members(value)
        found = self.kind(*[
            given[name] if name in given else field.read(m, wire)
            for name, wire, field, _ in self._rows
        ])  # fmt: skip
        if self._check is not None:
            self._check(found)
        return found

    def write(self, value: _T) -> dict[str, Any]:
        """Return its members as JSON shows them: None and empty text are left out."""
        members: dict[str, Any] = {}
        for name, wire, field, default in self._rows:
            member = getattr(value, name)
            if member is None or member == "":
                if field.is_null:
                    members[wire] = None
            elif not (self._is_sparse and member == default):
                members[wire] = member if field.write is None else field.write(member)
        return members


def _rows(kind: type) -> Sequence[_Row]:
    hints = get_type_hints(kind, include_extras=True)
    if is_dataclass(kind):
        defaults = {one.name: one.default for one in fields(kind)}
    else:
        defaults = dict.fromkeys(hints, MISSING) | kind._field_defaults  # type: ignore[attr-defined]
    rows = []
    for name, default in defaults.items():
        [field] = [one for one in hints[name].__metadata__ if isinstance(one, Field)]
        rows.append(_Row(name, field.wire or name, field, default))
    return tuple(rows)
