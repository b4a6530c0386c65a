"""The rules of one inbox: whom its agent takes envelopes from, whom it knows (GUARANTEES.md R7).

Rules of the file: a sender stands in at most one list. ``allow`` and ``deny`` are the agent's own
word; a contact is one that it has written to, noted by its relay, and never takes such a place.

::

    allow, contact ──▶ known       deny ──▶ blocked
    none of them   ──▶ stranger, or not_admitted where first contact is refused
"""

from __future__ import annotations

from dataclasses import dataclass, field

from relay.inbox.model.store_contract import (
    CONTACT_EVICTION_SHARE,
    CONTACT_FRESH_S,
    REFUSALS,
    too_many_rules,
)
from relay.inbox.model.types import (
    InboxLimits,
    RulesNow,
    RulesPatch,
)
from relay.protocol.errors import (
    Refusal,
)
from relay.protocol.ids import (
    AgentKey,
    Timestamp,
)
from relay.protocol.types import (
    FirstContact,
    MovedRules,
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
            return REFUSALS["blocked"]
        if self.first_contact == "refuse" and not self.knows(sender):
            return REFUSALS["not_admitted"]
        return None

    def change(self, patch: RulesPatch, limits: InboxLimits) -> RulesNow | Refusal:
        """Change what the patch names; with too many of them nothing at all."""
        named = {*patch.allow, *patch.deny, *patch.forget}
        allow, deny = (self.allow - named) | {*patch.allow}, (self.deny - named) | {*patch.deny}
        if len(allow) > limits.rules or len(deny) > limits.rules:
            return too_many_rules(limits)
        self.allow, self.deny = allow, deny
        for one in named:
            self.contacts.pop(one, None)
        self.first_contact = patch.first_contact or self.first_contact
        contacts = len(self.contacts)
        return RulesNow(self.first_contact, frozenset(allow), frozenset(deny), contacts)

    def add_contacts(self, other: AgentKey, limits: InboxLimits, now: Timestamp) -> None:
        """Note that the agent has written to ``other``; too many contacts lose their oldest."""
        if other in self.allow or other in self.deny:
            return
        noted = self.contacts.get(other)
        if noted is None and len(self.contacts) >= limits.contacts:
            oldest = sorted(self.contacts, key=lambda one: (self.contacts[one], one))
            for one in oldest[: max(1, limits.contacts // CONTACT_EVICTION_SHARE)]:
                del self.contacts[one]
        if noted is None or now - noted >= CONTACT_FRESH_S:
            self.contacts[other] = int(now)

    def known(self) -> MovedRules:
        """All of it, as it moves with the inbox."""
        contacts = sorted(self.contacts, key=lambda one: (self.contacts[one], one))
        allow, deny = tuple(sorted(self.allow)), tuple(sorted(self.deny))
        return MovedRules(self.first_contact, allow, deny, tuple(contacts))

    def learn(self, known: MovedRules, limits: InboxLimits, now: Timestamp) -> None:
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
                self.contacts[other] = max(int(now) - CONTACT_FRESH_S - age, 0)
        if self.first_contact == "accept":
            self.first_contact = known.first_contact
