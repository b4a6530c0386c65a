"""Answer the questions of a connection: which question goes to which use case."""

from __future__ import annotations

from dataclasses import dataclass

from relay.directory.answers import PeerQuestions
from relay.directory.publish import Directory
from relay.directory.resolve import RecordResolver
from relay.inbox.model.effects import QuestionFrame
from relay.inbox.model.permissions import Identity
from relay.inbox.rules import InboxRules
from relay.inbox.status import StatusQueries
from relay.migration.steps import MigrationSteps
from relay.protocol import frames
from relay.protocol.errors import ErrorCode
from relay.protocol.ids import Fence


@dataclass(frozen=True, slots=True)
class Answers:
    """The use cases behind the questions."""

    directory: Directory
    resolver: RecordResolver
    status: StatusQueries
    rules: InboxRules
    peer_questions: PeerQuestions
    migration: MigrationSteps

    async def __call__(self, who: Identity, question: QuestionFrame) -> frames.Frame:
        """Return the answer to a question.

        Raises:
            RelayError: the question is refused.
        """
        match question:
            case frames.Status():
                return await self._status(who, question)
            case frames.Publish(ref, record):
                return await self.directory.publish(record, owner=who.did, ref=ref)
            case frames.Rules():
                return await self.rules(who.inbox, who.fence or Fence(0), question)
            case frames.Digest() | frames.Want():
                return await self.peer_questions.answer(who.did, question)
            case frames.Migrate():
                return await self.migration.on_digest_page(who.did, question)
            case frames.Resolve():
                return await self._resolve(who, question)

    async def _status(self, who: Identity, question: frames.Status) -> frames.Frame:
        if who.role == "peer":
            answers = await self.status.local(None, question.items)
        else:
            answers = await self.status.query_remote(who.did, question.items)
        return frames.Statuses(question.ref, tuple(answers))

    async def _resolve(self, who: Identity, question: frames.Resolve) -> frames.Frame:
        # a peer gets an answer from the own store, else questions would go in circles
        has_inbox = who.fence is not None
        if question.did is not None:
            # of itself, the asker knows best where it lives, or this relay does
            around = has_inbox and question.did != who.did
            found = await self.resolver.resolve(question.did, around=around, asker=who.did)
        elif has_inbox:
            found = await self.resolver.resolve_handle(question.handle or "", who.did)
        else:
            detail = "handles are looked up for the agents of this relay"
            return frames.Error(ErrorCode.NO_RELAYING, detail, None, question.ref)
        return frames.Resolved(question.ref, found.state, found.record, stale=found.stale)
