"""The agent's conversations: one with each relay that its record or its program names.

Rules of the file: two sessions at one relay would supersede each other, so each relay has one
conversation, whatever its origins. Envelopes go through one of them, the best that is connected;
what is delivered comes through all. The agent is over when a newer session has the inbox of one
home, or when no conversation is left.

::

    origins, record ──▶ Conversation, Conversation, … ──▶ one Outbox, one Inbox, one record
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, Final

from relay import clock
from relay.client._util import task_group
from relay.client.directory.cache import Correspondents
from relay.client.directory.own_record import Homes
from relay.client.errors import AgentError, SupersededError, WrongRelayError, bug_of
from relay.client.http import origin as origins
from relay.client.http.origin import Origin
from relay.client.identity.handle_lookup import Naming
from relay.client.identity.handles import Handles
from relay.client.inbox.inbox import Inbox
from relay.client.inbox.opener import EnvelopeOpener
from relay.client.outbox.custody import Custody
from relay.client.outbox.direct import Detours
from relay.client.outbox.outcomes import Outcomes
from relay.client.outbox.queue import Outbox
from relay.client.outbox.status import Following
from relay.client.session.channel import Conversation
from relay.client.session.request_router import Asking
from relay.client.state.agent_state import AgentState
from relay.protocol.did import SigningKey
from relay.protocol.endpoint_record import Home
from relay.protocol.errors import RelayError
from relay.protocol.ids import (
    Did,
    Eid,
)

SLOW_S: Final = 1.0
"""A relay that has not answered so long after the first is not waited for."""
WARNINGS: Final = 16

_log: Final = logging.getLogger("relay.client")


class Sessions:
    """All that goes on between an agent and its relays.

    Args:
        key: the agent.
        named: the relays that the program names, best first.
        state: pins, record and epochs.
        insecure_networks: CIDRs that may be dialled without TLS.
    """

    def __init__(
        self,
        key: SigningKey,
        named: Sequence[Origin],
        state: AgentState,
        insecure_networks: Sequence[str] = (),
    ) -> None:
        self.key = key
        self.state = state
        self.insecure_networks = insecure_networks
        self.warnings: deque[AgentError] = deque(maxlen=WARNINGS)
        knowledge = state.journal.peers if state.journal is not None else None
        self.custody = Custody(knowledge, self.is_ours)
        self.correspondents = Correspondents(knowledge)
        self.following = Following(self)
        self.detours = Detours(self)
        self.outbox = Outbox(self.custody, self.detours.wake, self.wake)
        self.asking = Asking(self)
        is_here = any(one.is_loopback for one in named)
        naming = Naming(self.asking.find, self.correspondents.learn, is_here)
        self.handles = Handles(naming.record, naming.forward, knowledge)
        opener = EnvelopeOpener(key, self.custody.relay_of, self._may_be_ours)
        self.inbox = Inbox(opener, state.journal, self.following.judge)
        self.outcomes = Outcomes(state.journal)
        share = int.from_bytes(clock.entropy(4)) / 0xFFFF_FFFF
        self.homes = Homes(key, state, [str(one) for one in named], share, self.warn)
        self._named = tuple(named)
        self.conversations: list[Conversation] = []
        self.sender: Conversation | None = None
        self.alone_since: float | None = clock.monotonic()
        self.current: Conversation
        self._claims: dict[Did, Conversation] = {}
        self._gone: dict[Did, str | None] = {}
        self._running: set[asyncio.Task[None]] = set()
        self._ended: AgentError | None = None
        self._over = asyncio.Event()
        self._changes = asyncio.Event()
        self._tasks: asyncio.TaskGroup | None = None
        for one in named:
            self._add(one, state.relay_at(str(one)))
        self.current = self.conversations[0]

    # ------------------------------------------------------------ the set

    def _add(self, origin: Origin, relay: Did | None) -> None:
        """Converse at an origin, too; with a relay that has a conversation already, by that one."""
        for conversation in self.conversations:
            if relay is not None and conversation.relay == relay:
                _join(conversation, origin)
                return
        made = Conversation(self, [origin], relay)
        if self.state.migration.is_paused_at(relay, str(origin)):
            made.gate.shut()
        self.conversations.append(made)
        if self._tasks is not None:
            self._start(self._tasks, made)

    def _start(self, tasks: asyncio.TaskGroup, conversation: Conversation) -> None:
        task = tasks.create_task(self._converse(conversation), name=f"at {conversation.origin}")
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def run(self, *beside: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Converse until cancelled or told to stop for good; a bug ends the agent, by name.

        The program's own task is never cancelled for what goes on in here.
        """
        try:
            await self._run(beside)
        except Exception as bug:  # noqa: BLE001  told to all who wait, and to whoever asks next
            self.end(bug_of(bug, "the agent"))

    async def _run(self, beside: Iterable[Callable[[], Coroutine[Any, Any, None]]]) -> None:
        async with task_group() as tasks:
            self._tasks = tasks
            self._running.add(tasks.create_task(self._follow_record()))
            self._running.add(tasks.create_task(self.detours.run()))
            for work in beside:
                self._running.add(tasks.create_task(work()))
            for conversation in list(self.conversations):
                self._start(tasks, conversation)
            await self._over.wait()
            self._tasks = None
            for task in self._running:
                task.cancel()

    async def _converse(self, conversation: Conversation) -> None:
        failure = await conversation.run()
        self.conversations.remove(conversation)
        if failure is None:
            conversation.inbox.close()
            return
        if conversation.gate.has_left:
            conversation.inbox.detach()
        else:
            conversation.inbox.end(failure)
        if self._ended is None:
            self._left(conversation.relay, failure.record)
        if isinstance(failure, SupersededError) or not self.conversations:
            self.end(failure)
        elif isinstance(failure, WrongRelayError):
            # the others go on; what its user can do about this one is said
            self.warn(failure)
        self.line_changed()

    def _left(self, relay: Did | None, record: str | None) -> None:
        """A relay is not dialled again, but for a newer record; it may say where else to go."""
        try:
            if record is not None:
                self.homes.told(record)
        except RelayError as exc:
            _log.warning("%s shows a record that is none of ours: %s", relay, exc)
        if relay is not None:
            self._gone[relay] = self.state.record
        if record is not None:
            self._add_homes()

    async def _follow_record(self) -> None:
        """Converse with each home that the newest record names."""
        while True:
            news = self.homes.news
            self._add_homes()
            self.line_changed()
            await news.wait()

    def _add_homes(self) -> None:
        newest = self.homes.newest
        for home in newest.relays if newest else ():
            # one that was left under this very record would only say the same again
            is_gone = home.did in self._gone and self._gone[home.did] == self.state.record
            if not is_gone and not self.is_ours(home.did):
                self._add_home(home)

    def follow_move(self) -> None:
        """The newest record names another home: converse there, and no more at those it left."""
        self._add_homes()
        newest = self.homes.newest
        for one in self.conversations if newest is not None else ():
            if newest is not None and any(left.did == one.relay for left in newest.drain):
                one.gate.leave()
            else:
                one.gate.reopen()
        self.homes.announce()

    def _add_home(self, home: Home) -> None:
        try:
            origin = origins.parse(home.url, insecure_networks=self.insecure_networks)
        except (ValueError, AgentError) as exc:
            _log.warning("the record names a home that cannot be dialled: %s", exc)
            return
        # a conversation at this origin may not know yet with whom it is
        if not any(origin in one.origins and one.relay is None for one in self.conversations):
            self._add(origin, home.did)

    # ------------------------------------------------------------ for the conversations

    @property
    def ended(self) -> AgentError | None:
        """Why the agent is over."""
        return self._ended

    def claims(self, conversation: Conversation, relay: Did) -> bool:
        """See :class:`relay.client.session.channel.Company`."""
        known = [one for one in self.conversations if one.relay == relay]
        holder = self._claims.get(relay, conversation)
        if not known and holder in self.conversations:
            known = [holder]
        if known and known[0] is not conversation:
            _join(known[0], conversation.origin)
            return False
        self._claims[relay] = conversation
        return True

    def is_sender(self, conversation: Conversation) -> bool:
        """See :class:`relay.client.session.channel.Company`."""
        return self.sender is conversation

    def line_changed(self) -> None:
        """See :class:`relay.client.session.channel.Company`."""
        open_ones = [one for one in self.conversations if one.line is not None]
        # not looked for at each envelope: that would read the record each time
        self.sender = min(open_ones, key=self._rank, default=None)
        self.current = self.sender or self.current
        if self.sender is not None:
            self.alone_since = None
        elif self.alone_since is None:
            self.alone_since = clock.monotonic()
        self._changes.set()
        self._changes = asyncio.Event()
        self.wake()

    async def all_asked(self) -> None:
        """See :class:`relay.client.session.channel.Company`."""
        await self._until(lambda one: one.has_asked or one.last_failure is not None, SLOW_S)

    async def _until(self, holds: Callable[[Conversation], bool], seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                while not all(map(holds, self.conversations)):
                    await self._changes.wait()
        except TimeoutError:
            return

    def _rank(self, one: Conversation) -> tuple[bool, tuple[int, int]]:
        is_home = one.welcome is not None and one.welcome.inbox
        return (not is_home, self.homes.rank(one.relay or Did(""), str(one.origin)))

    # ------------------------------------------------------------ for the agent

    async def changed(self) -> None:
        """Wait until a connection comes or goes, or the agent is over."""
        await self._changes.wait()

    @property
    def last_failure(self) -> AgentError | None:
        """Why a relay could not be reached the last time."""
        failures = [one.last_failure for one in self.conversations if one.last_failure]
        return failures[0] if failures else None

    def is_ours(self, relay: Did) -> bool:
        """Whether ``relay`` is one that this agent converses with."""
        return any(one.relay == relay for one in self.conversations)

    def wake(self) -> None:
        """There is something to write."""
        for one in self.conversations:
            one.wake()
        if self.sender is None:
            self.detours.wake()

    def warn(self, warning: AgentError) -> None:
        """Tell the program something that does not end the agent."""
        _log.warning("%s", warning)
        self.warnings.append(warning)

    @property
    def is_private_network(self) -> bool:
        """Whether a relay that the program names has an address that is not public."""
        return any(one.is_private_network for one in self._named)

    def _may_be_ours(self, eid: Eid) -> bool:
        """Whether this agent may have sent it: a journal knows more than this process does."""
        return self.state.journal is not None or self.custody.get(eid) is not None

    def origin_of(self, url: str) -> Origin | None:
        """Where a stranger's home is; None: not to be dialled."""
        return self.detours.origin_of(url)

    def note_correspondent(self, to: Did) -> None:
        """This agent writes to ``to``: where it lives is found out while a relay can tell."""
        if to != self.key.did and self.correspondents.want(to):
            self.detours.wake()

    async def opened(self) -> None:
        """Wait for the first login, its record included, and a moment for the other relays.

        Raises:
            AgentError: the agent ended before it.
        """
        while not any(one.is_settled for one in self.conversations) and self._ended is None:
            await self.changed()
        if self._ended is not None:
            raise self._ended
        await self._until(lambda one: one.has_answered, SLOW_S)

    def end(self, failure: AgentError) -> None:
        """Nobody will dial again: everyone who waits is told why."""
        if self._ended is None:
            self._ended = failure
            self.outbox.end(failure)
            self.inbox.end(failure)
            for one in self.conversations:
                one.questions.end(failure)
            self.outcomes.end(failure)
            self._over.set()
            self.line_changed()


def _join(conversation: Conversation, origin: Origin) -> None:
    if origin not in conversation.origins:
        conversation.origins.append(origin)
