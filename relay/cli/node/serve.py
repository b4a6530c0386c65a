"""``relay serve`` and ``relay config show``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from relay.cli.exit_codes import LocalError
from relay.cli.output import first_of, say, write, write_json
from relay.protocol.errors import RelayError, StateError

if TYPE_CHECKING:
    from relay.settings import Settings

_HIDDEN: Final = "(set, not shown)"


def serve(overrides: dict[str, Any]) -> int:
    """Run a node until a signal, and return its exit code."""
    # imported here: no other command needs the packages of a node
    from relay import log, settings  # noqa: PLC0415

    settings.unset_foreign_variables()
    from relay.node import serve as run  # noqa: PLC0415  only now

    loaded = _load(overrides)
    try:
        return run(loaded)
    except Exception as exc:
        if not isinstance(first_of(exc), RelayError | OSError):
            # an operator looks for a bug in the log
            log.internal_error("node")
        raise


def show_config(overrides: dict[str, Any], *, as_json: bool) -> None:
    """Show each setting, its value and where that comes from; secrets stay hidden."""
    from relay import settings  # noqa: PLC0415  as above

    loaded, origins = _load(overrides), settings.origins(overrides)
    for name in settings.unknown_variables():
        say(f"relay: {name} is no setting of a node, and has no effect")
    rows = {
        name: {"value": _plain(getattr(loaded, name)), "origin": origins[name]} for name in origins
    }
    if as_json:
        write_json(rows)
        return
    width = max(len(name) for name in rows)
    values = {name: _text(row["value"]) for name, row in rows.items()}
    wide = max(len(value) for value in values.values())
    for name, row in rows.items():
        write(f"{name:<{width}}  {values[name]:<{wide}}  {row['origin']}")


def _load(overrides: Mapping[str, Any]) -> Settings:
    """Load the settings of a node.

    Raises:
        LocalError: a setting is wrong.
    """
    from relay import settings  # noqa: PLC0415  as above

    try:
        return settings.load(overrides)
    except StateError as exc:
        raise LocalError(exc.detail) from exc


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple):
        return list(value)
    return _HIDDEN if hasattr(value, "get_secret_value") else str(value)


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return ",".join(value) or "-" if isinstance(value, list) else str(value)
