"""The rules of one inbox: whom its agent takes envelopes from, whom it knows (GUARANTEES.md R7).

Rules of the file: a sender stands in at most one list. ``allow`` and ``deny`` are the agent's own
word; a contact is one that it has written to, noted by its relay, and never takes such a place.

::

    allow, contact ──▶ known       deny ──▶ blocked
    none of them   ──▶ stranger, or not_admitted where first contact is refused
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from relay.inbox.model.types import (
    InboxLimits,
    RulesNow,
    RulesPatch,
)
from relay.protocol.errors import (
    ErrorCode,
    Refusal,
)
from relay.protocol.ids import (
    AgentKey,
    Timestamp,
)
from relay.protocol.types import (
    FirstContact,
    Known,
)

FRESH_S: Final = 600
"""A contact noted so lately is not noted anew."""
GIVE_WAY: Final = 10
"""Of too many contacts one in so many goes, the oldest: not each new one costs a search."""

BLOCKED: Final = Refusal(ErrorCode.BLOCKED, "the recipient takes nothing of this sender")
NOT_ADMITTED: Final = Refusal(
    ErrorCode.NOT_ADMITTED, "the recipient takes envelopes only of those it knows"
)


@dataclass(slots=True)
class Rules:
    """What one inbox goes by; each method is one atomic step of the store."""

    first_contact: FirstContact = "accept"
    allow: set[AgentKey] = field(default_factory=set)
    deny: set[AgentKey] = field(default_factory=set)
    contacts: dict[AgentKey, int] = field(default_factory=dict)

    def knows(self, sender: AgentKey) -> bool:
        """Whether a sender is allowed, or was written to."""
        return sender in self.allow or sender in self.contacts

    def objection(self, sender: AgentKey) -> Refusal | None:
        """Why nothing is taken of a sender."""
        if sender in self.deny:
            return BLOCKED
        if self.first_contact == "refuse" and not self.knows(sender):
            return NOT_ADMITTED
        return None

    def change(self, patch: RulesPatch, limits: InboxLimits) -> RulesNow | Refusal:
        """Change what the patch names; with too many of them nothing at all."""
        named = {*patch.allow, *patch.deny, *patch.forget}
        allow, deny = (self.allow - named) | {*patch.allow}, (self.deny - named) | {*patch.deny}
        if len(allow) > limits.rules or len(deny) > limits.rules:
            return too_many(limits)
        self.allow, self.deny = allow, deny
        for one in named:
            self.contacts.pop(one, None)
        self.first_contact = patch.first_contact or self.first_contact
        contacts = len(self.contacts)
        return RulesNow(self.first_contact, frozenset(allow), frozenset(deny), contacts)

    def meet(self, other: AgentKey, limits: InboxLimits, now: Timestamp) -> None:
        """Note that the agent has written to ``other``; too many contacts lose their oldest."""
        if other in self.allow or other in self.deny:
            return
        noted = self.contacts.get(other)
        if noted is None and len(self.contacts) >= limits.contacts:
            oldest = sorted(self.contacts, key=lambda one: (self.contacts[one], one))
            for one in oldest[: max(1, limits.contacts // GIVE_WAY)]:
                del self.contacts[one]
        if noted is None or now - noted >= FRESH_S:
            self.contacts[other] = int(now)

    def known(self) -> Known:
        """All of it, as it moves with the inbox."""
        contacts = sorted(self.contacts, key=lambda one: (self.contacts[one], one))
        allow, deny = tuple(sorted(self.allow)), tuple(sorted(self.deny))
        return Known(self.first_contact, allow, deny, tuple(contacts))

    def learn(self, known: Known, limits: InboxLimits, now: Timestamp) -> None:
        """Add what the agent went by elsewhere; its own word here stands.

        What has no room is left out, of contacts the longest known. All of them give way before
        those that were noted here lately.
        """
        for named, given in ((self.allow, known.allow), (self.deny, known.deny)):
            for one in given:
                is_listed = one in self.allow or one in self.deny
                if not is_listed and len(named) < limits.rules:
                    named.add(one)
                    self.contacts.pop(one, None)
        for age, other in enumerate(reversed(known.contacts)):
            is_listed = other in self.allow or other in self.deny or other in self.contacts
            if not is_listed and len(self.contacts) < limits.contacts:
                self.contacts[other] = max(int(now) - FRESH_S - age, 0)
        if self.first_contact == "accept":
            self.first_contact = known.first_contact


def too_many(limits: InboxLimits) -> Refusal:
    """The no to a patch."""
    return Refusal(ErrorCode.TOO_LARGE, f"at most {limits.rules} allowed and as many denied")
