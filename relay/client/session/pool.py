"""The channels of an agent: one for each relay that its record or its program names.

Entry point: :class:`ChannelPool`. Invariants: two sessions at one relay would supersede each other,
so each relay has one channel, whatever its origins. Envelopes are submitted through one channel,
the best that is connected; deliveries arrive through all. The agent ends when a newer session has
the inbox of one home, or when no channel is left.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final

from relay.client._util import Signal, task_group
from relay.client.directory.own_record import OwnRecord
from relay.client.errors import AgentError, SupersededError, WrongRelayError, bug_of
from relay.client.http import origin as origins
from relay.client.http.origin import Origin
from relay.client.inbox.inbox import Inbox
from relay.client.outbox.direct import DirectDelivery
from relay.client.outbox.queue import Outbox
from relay.client.session.channel import Channel
from relay.client.state.agent_state import AgentState
from relay.protocol.did import SigningKey
from relay.protocol.endpoint_record import Home
from relay.protocol.errors import RelayError
from relay.protocol.ids import Did

WAIT_OTHERS_S: Final = 1.0
"""How long to wait for the other relays once the first has answered."""

_log: Final = logging.getLogger("relay.client")


class ChannelPool:
    """The channels of one agent, and the end of it.

    Args:
        key: the agent.
        named: the relays that the program names, best first.
        state: pins and epochs.
        outbox: of the agent.
        inbox: of the agent.
        own_record: names the homes.
        direct: delivers without the relays of the agent.
        insecure_networks: CIDRs that may be dialled without TLS.
        on_end: called once with the reason when the agent is over.
        warn: called with warnings for the program.
    """

    def __init__(
        self,
        key: SigningKey,
        named: Sequence[Origin],
        state: AgentState,
        *,
        outbox: Outbox,
        inbox: Inbox,
        own_record: OwnRecord,
        direct: DirectDelivery,
        insecure_networks: Sequence[str],
        on_end: Callable[[AgentError], None],
        warn: Callable[[AgentError], None],
    ) -> None:
        self.channels: list[Channel] = []
        self.active: Channel | None = None
        self.ended: AgentError | None = None
        self.changed = Signal()
        """A connection was made or lost, more is known of a relay, or the agent is over."""
        self._key = key
        self._state = state
        self._outbox = outbox
        self._inbox = inbox
        self._own_record = own_record
        self._direct = direct
        self._insecure_networks = insecure_networks
        self._on_end = on_end
        self._warn = warn
        self._claims: dict[Did, Channel] = {}
        self._gone: dict[Did, str | None] = {}
        self._running: set[asyncio.Task[None]] = set()
        self._over = asyncio.Event()
        self._tasks: asyncio.TaskGroup | None = None
        for one in named:
            self._add(one, state.relay_at(str(one)))
        self.current = self.channels[0]
        """The channel that is active, or was the last time."""

    # ------------------------------------------------------------ run

    async def run(self, *background: Coroutine[Any, Any, None]) -> None:
        """Keep the channels up until cancelled or ended; a bug ends the agent, and is its reason.

        Other work of the agent goes on beside it. The program's own task is never cancelled for a
        failure in here.
        """
        try:
            async with task_group() as tasks:
                self._tasks = tasks
                work = (self._follow_record(), self._direct.run(), *background)
                self._running.update(tasks.create_task(one) for one in work)
                for channel in list(self.channels):
                    self._start(tasks, channel)
                await self._over.wait()
                self._tasks = None
                for task in self._running:
                    task.cancel()
        except Exception as bug:  # noqa: BLE001  the reason for all who wait, and for later calls
            self.end(bug_of(bug, "the agent"))

    def _start(self, tasks: asyncio.TaskGroup, channel: Channel) -> None:
        task = tasks.create_task(self._run_channel(channel), name=f"at {channel.origin}")
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _run_channel(self, channel: Channel) -> None:
        failure = await channel.run()
        self.channels.remove(channel)
        if failure is None:
            channel.inbox.close()
            return
        if channel.control.is_stopped:
            channel.inbox.detach()
        else:
            channel.inbox.end(failure)
        if self.ended is None:
            self._remove_relay(channel.relay, failure.record)
        if isinstance(failure, SupersededError) or not self.channels:
            self.end(failure)
        elif isinstance(failure, WrongRelayError):
            # the others go on; the warning tells what its user can do
            self._warn(failure)
        self.on_connection_change()

    def end(self, failure: AgentError) -> None:
        """End the agent: everyone who waits gets the reason."""
        if self.ended is None:
            self.ended = failure
            self._on_end(failure)
            for one in self.channels:
                one.requests.end(failure)
            self._over.set()
            self.on_connection_change()

    # ------------------------------------------------------------ which channels

    def _add(self, origin: Origin, relay: Did | None) -> None:
        """Add a channel for an origin, or the origin to the channel of its relay."""
        known = self.channel_at(relay) if relay is not None else None
        if known is not None:
            _add_origin(known, origin)
            return
        channel = Channel(
            self._key,
            self._state,
            self._outbox,
            self._inbox,
            self._own_record,
            self._claim_relay,
            self.on_connection_change,
            self._wait_records_known,
            [origin],
            relay,
        )
        if self._state.migration.is_paused_at(relay, str(origin)):
            channel.control.pause()
        self.channels.append(channel)
        if self._tasks is not None:
            self._start(self._tasks, channel)

    def _remove_relay(self, relay: Did | None, record: str | None) -> None:
        """Dial a relay no more, except for a newer record; ``record`` may name other homes."""
        try:
            if record is not None:
                self._own_record.merge(record)
        except RelayError as exc:
            _log.warning("%s shows a record that is none of ours: %s", relay, exc)
        if relay is not None:
            self._gone[relay] = self._state.record
        if record is not None:
            self._add_homes()

    async def _follow_record(self) -> None:
        """Keep a channel for each home that the newest record names."""
        while True:
            changed = self._own_record.changed.upcoming()
            self._add_homes()
            self.on_connection_change()
            await changed.wait()

    def _add_homes(self) -> None:
        newest = self._own_record.newest
        for home in newest.relays if newest else ():
            # one that was left under this very record would only refuse again
            is_gone = home.did in self._gone and self._gone[home.did] == self._state.record
            if not is_gone and not self.is_ours(home.did):
                self._add_home(home)

    def _add_home(self, home: Home) -> None:
        try:
            origin = origins.parse(home.url, insecure_networks=self._insecure_networks)
        except (ValueError, AgentError) as exc:
            _log.warning("the record names a home that cannot be dialled: %s", exc)
            return
        # a channel at this origin may not know its relay yet
        if not any(origin in one.origins and one.relay is None for one in self.channels):
            self._add(origin, home.did)

    def follow_migration(self) -> None:
        """Add the homes that the newest record names, and stop the channels that it leaves."""
        self._add_homes()
        newest = self._own_record.newest
        for one in self.channels if newest is not None else ():
            if newest is not None and any(left.did == one.relay for left in newest.drain):
                one.control.stop()
            else:
                one.control.resume()
        self._own_record.changed.notify()

    def resume_all(self) -> None:
        """Dial all relays again: a migration was cancelled."""
        for one in self.channels:
            one.control.resume()
        self._own_record.changed.notify()

    # ------------------------------------------------------------ for the channels

    def _claim_relay(self, channel: Channel, relay: Did) -> bool:
        known = self.channel_at(relay)
        if known is None:
            holder = self._claims.get(relay, channel)
            known = holder if holder in self.channels else None
        if known is not None and known is not channel:
            _add_origin(known, channel.origin)
            return False
        self._claims[relay] = channel
        return True

    def on_connection_change(self) -> None:
        """Choose the active channel, and wake everyone who waits for a change."""
        connected = [one for one in self.channels if one.connection is not None]
        # not chosen at each envelope: that would read the record each time
        self.active = min(connected, key=self._rank, default=None)
        self.current = self.active or self.current
        for one in self.channels:
            one.is_active = one is self.active
        self._direct.set_connected(is_connected=self.active is not None)
        self.changed.notify()
        self.wake()

    def _rank(self, one: Channel) -> tuple[bool, tuple[int, int]]:
        rank = self._own_record.rank(one.relay or Did(""), str(one.origin))
        return (not one.is_home, rank)

    async def _wait_records_known(self) -> None:
        """Wait until each reachable relay has shown the record that it holds, but not long."""
        await self._wait_all(lambda one: one.record_known or one.last_failure is not None)

    async def _wait_all(self, holds: Callable[[Channel], bool]) -> None:
        try:
            async with asyncio.timeout(WAIT_OTHERS_S):
                while not all(map(holds, self.channels)):
                    await self.changed.wait()
        except TimeoutError:
            return

    # ------------------------------------------------------------ for the agent

    def wake(self) -> None:
        """Tell all channels to look for something to write."""
        for one in self.channels:
            one.wake()
        if self.active is None:
            self._direct.wake()

    def is_ours(self, relay: Did) -> bool:
        """Return whether the agent has a channel to ``relay``."""
        return self.channel_at(relay) is not None

    def channel_at(self, relay: Did) -> Channel | None:
        """Return the channel to a relay, if there is one."""
        return next((one for one in self.channels if one.relay == relay), None)

    def connected_relays(self) -> list[Did]:
        """Return the relays with a connection just now."""
        return [one.relay for one in self.channels if one.connection is not None and one.relay]

    @property
    def last_failure(self) -> AgentError | None:
        """The reason why a relay could not be reached the last time."""
        return next((one.last_failure for one in self.channels if one.last_failure), None)

    async def wait_opened(self) -> None:
        """Wait for the first login, its record included, and a moment for the other relays.

        Raises:
            AgentError: the agent ended before it.
        """
        while not any(one.is_ready for one in self.channels) and self.ended is None:
            await self.changed.wait()
        if self.ended is not None:
            raise self.ended
        await self._wait_all(lambda one: one.has_answered)


def _add_origin(channel: Channel, origin: Origin) -> None:
    if origin not in channel.origins:
        channel.origins.append(origin)
