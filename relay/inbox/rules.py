"""Rules: an agent decides which senders its inbox accepts (PROTOCOL.md §5.5 ``rules``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from relay.inbox.contacts import Contacts
from relay.inbox.model.types import RulesPatch
from relay.inbox.ports import RuleStore
from relay.protocol import frames
from relay.protocol.did import did_of, parse_did
from relay.protocol.errors import ErrorCode, ProtocolError, Refusal, error
from relay.protocol.ids import AgentKey, Did, Fence
from relay.protocol.jws import UnsupportedTypeError


@dataclass(frozen=True, slots=True)
class InboxRules:
    """Changes and reads the rules of an inbox, for its session."""

    store: RuleStore
    contacts: Contacts

    async def __call__(self, inbox: AgentKey, fence: Fence, request: frames.Rules) -> frames.Ruled:
        """Change what the request names; return all rules.

        Raises:
            RelayError: ``bad_frame``, ``unsupported`` or ``too_large``: nothing is changed;
                ``superseded``, ``inbox_reset`` or ``storage_unavailable``.
        """
        allow, deny, forget = (
            _keys(dids) for dids in (request.allow, request.deny, request.forget)
        )
        if len({*allow, *deny, *forget}) < len(allow) + len(deny) + len(forget):
            raise ProtocolError(ErrorCode.BAD_FRAME, "a DID is named once")
        patch = RulesPatch(request.first_contact, allow, deny, forget)
        now = await self.store.change(inbox, fence, patch)
        if isinstance(now, Refusal):
            raise now.to_error()
        self.contacts.forget(inbox, {*allow, *deny, *forget})
        return frames.Ruled(
            request.ref, now.first_contact, _dids(now.allow), _dids(now.deny), now.contacts
        )


def _keys(dids: Sequence[Did]) -> tuple[AgentKey, ...]:
    try:
        return tuple(parse_did(did).agent_key for did in dids)
    except UnsupportedTypeError as exc:
        raise error(ErrorCode.UNSUPPORTED, f"rules: {exc}") from exc
    except ValueError as exc:
        raise error(ErrorCode.BAD_FRAME, f"rules: {exc}") from exc


def _dids(keys: frozenset[AgentKey]) -> tuple[Did, ...]:
    return tuple(sorted(did_of(key) for key in keys))
