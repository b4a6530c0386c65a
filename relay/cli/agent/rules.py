"""``relay rules``: from whom this agent's inbox accepts envelopes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from relay.cli.agent import session
from relay.cli.agent.key import KeyFile
from relay.cli.output import members_of, show

Action = Literal["show", "allow", "deny", "forget", "first-contact"]


async def rule(
    file: KeyFile, url: str, patch: dict[str, Any], *, take: bool, as_json: bool
) -> None:
    """Apply ``patch`` and show all rules."""
    with session.opened(file, url, look=not take) as opened:
        ruled = await (await opened.login()).rules(**patch)
    strangers = "may write" if ruled.first_contact == "accept" else "are refused"
    show(
        members_of(ruled, "first_contact allow deny contacts"),
        f"first contact  {ruled.first_contact}: agents that you do not know {strangers}",
        *(f"allow          {did}" for did in ruled.allow),
        *(f"deny           {did}" for did in ruled.deny),
        f"contacts       {ruled.contacts} that you have written to over this relay",
        as_json=as_json,
    )


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
        if list(values) not in (["accept"], ["refuse"]):
            raise ValueError("first-contact takes accept or refuse")
        return {"first_contact": values[0]}
    if not values:
        raise ValueError(f"{action} takes at least one DID")
    return {action: list(values)}
