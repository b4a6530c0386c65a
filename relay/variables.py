"""Variables of the environment that are no settings of a node, and what is done about them.

Rules of the file: it reads no environment; :mod:`relay.settings` does, and asks here. A list here
is said in docs/settings.md, too, and tests compare them.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Final

AGENTS: Final = frozenset({
    "RELAY_ADMIN_URL", "RELAY_AGENT_KEY", "RELAY_AGENT_PASSPHRASE",
    "RELAY_AGENT_PASSPHRASE_FILE", "RELAY_URL",
})  # fmt: skip
"""What commands of an agent or an operator read: nothing of a node, and no mistake."""
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
"""Those by which a library would change what a node does, beside its settings."""
_NEAR: Final = 0.8
"""How alike two names are that somebody has mixed up, by difflib."""


def unknown(names: Iterable[str], prefix: str, fields: Iterable[str]) -> dict[str, str | None]:
    """Names that begin like a setting and are none, each with the one that was meant, or None.

    Those with None are no error: Kubernetes makes variables for each service, and for one that is
    called ``relay`` they begin so, too.

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
    """The known name that is nearly this one; None: there is none."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=_NEAR)
    return found[0] if found else None
