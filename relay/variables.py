"""Environment variables that are not settings of a node.

This module reads no environment: :mod:`relay.settings` does, and calls it. docs/settings.md has the
same lists, and tests compare them.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Final

AGENTS: Final = frozenset({
    "RELAY_ADMIN_URL", "RELAY_AGENT_KEY", "RELAY_AGENT_PASSPHRASE",
    "RELAY_AGENT_PASSPHRASE_FILE", "RELAY_URL",
})  # fmt: skip
"""Variables that commands of an agent or an operator read: a node ignores them silently."""
WITHOUT_EFFECT: Final = (
    "FASTAPI_OTEL_AUTO_CONFIGURE",
    "FORWARDED_ALLOW_IPS",
    "PROMETHEUS_DISABLE_CREATED_SERIES",
    "PROMETHEUS_LEGACY_NAME_VALIDATION",
    "PROMETHEUS_MULTIPROC_DIR",
    "SSLKEYLOGFILE",
    "WEBSOCKETS_MAX_FRAGMENTS",
    "WEBSOCKETS_MAX_LOG_SIZE",
    "WEB_CONCURRENCY",
    "prometheus_multiproc_dir",
)
"""Variables by which a library would change a node, past its settings."""
_NEAR: Final = 0.8
"""The similarity (difflib) from which a name counts as a typing error."""


def unknown(names: Iterable[str], prefix: str, fields: Iterable[str]) -> dict[str, str | None]:
    """Return names that begin like a setting and are none, each with the one that was meant.

    A name with None is no error: Kubernetes makes variables for each service, and those of a
    service called ``relay`` begin like settings.

    Args:
        names: of the environment.
        prefix: of settings, in upper case; the case of a setting does not matter, but ``X_FILE``
            and ``CONFIG`` are read in upper case only.
        fields: names of settings, without the prefix.
    """
    settings = set(fields)
    # these are read in upper case only
    in_capitals = {f"{field}_file" for field in settings} | {"config"}
    known = settings | in_capitals
    found: dict[str, str | None] = {}
    for name in sorted(names):
        bare = name.upper().removeprefix(prefix).lower()
        is_read = bare in settings or (bare in in_capitals and name.isupper())
        if not name.upper().startswith(prefix) or is_read or name.upper() in AGENTS:
            continue
        right = nearest(bare, known)
        found[name] = right and f"{prefix}{right.upper()}"
    return found


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the most similar known name, or None."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=_NEAR)
    return found[0] if found else None
