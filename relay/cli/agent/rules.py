"""``relay rules``: from whom this agent's inbox accepts envelopes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from relay.cli.agent.key import KeyFile
from relay.cli.agent.session import visiting
from relay.cli.output import write, write_json
from relay.protocol import frames
from relay.protocol.types import FirstContact

Action = Literal["show", "allow", "deny", "forget", "first-contact"]


async def rule(
    file: KeyFile, url: str, patch: dict[str, Any], *, take: bool, as_json: bool
) -> None:
    """Apply ``patch`` and show all rules."""
    async with visiting(file, url, take=take) as (visit, _):
        ruled = await visit.rules(**patch)
    if as_json:
        names = ("first_contact", "allow", "deny", "contacts")
        write_json({name: getattr(ruled, name) for name in names})
    else:
        _tell(ruled)


def patch_of(action: Action, values: Sequence[str]) -> dict[str, Any]:
    """Return the change that an action makes.

    Raises:
        ValueError: the values do not fit the action.
    """
    if action == "show":
        if values:
            raise ValueError("show takes no more words")
        return {}
    if action == "first-contact":
        return {"first_contact": _first_contact(values)}
    if not values:
        raise ValueError(f"{action} takes at least one DID")
    return {action: list(values)}


def _first_contact(values: Sequence[str]) -> FirstContact:
    if list(values) == ["accept"]:
        return "accept"
    if list(values) == ["refuse"]:
        return "refuse"
    raise ValueError("first-contact takes accept or refuse")


def _tell(ruled: frames.Ruled) -> None:
    strangers = "may write" if ruled.first_contact == "accept" else "are refused"
    write(f"first contact  {ruled.first_contact}: agents that you do not know {strangers}")
    for name, dids in (("allow", ruled.allow), ("deny", ruled.deny)):
        for did in dids:
            write(f"{name:<13}  {did}")
    write(f"contacts       {ruled.contacts} that you have written to over this relay")
