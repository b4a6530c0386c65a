"""The relay's end of a conversation: both state machines, joined as the WebSocket edge does it."""

from __future__ import annotations

from collections.abc import Sequence

from relay.inbox.model.conversation import Conversation, ConversationPhase
from relay.inbox.model.delivery import InboxDelivery
from relay.inbox.model.effects import Effect, EndSession
from relay.inbox.model.permissions import Identity
from relay.inbox.model.types import AckResult, InboxAck, Page, PageItem
from relay.protocol import frames
from relay.protocol.errors import Refusal, RelayError
from relay.protocol.ids import Epoch, Fence, Seq, Timestamp
from relay.protocol.types import Window


class RelaySide:
    """A conversation and its delivery; an effect that ends the session ends the conversation."""

    def __init__(
        self,
        hello: frames.Hello,
        window: Window,
        now: Timestamp,
        delivery: type[InboxDelivery] = InboxDelivery,
    ) -> None:
        self.delivery = delivery(window)
        self.conversation = Conversation(hello, self.delivery, now)

    @property
    def phase(self) -> ConversationPhase:
        return self.conversation.phase

    @property
    def who(self) -> Identity | None:
        return self.conversation.who

    @property
    def epoch(self) -> Epoch:
        return self.delivery.epoch

    def _carried(self, effects: Sequence[Effect]) -> list[Effect]:
        carried: list[Effect] = []
        for effect in effects:
            if isinstance(effect, EndSession):
                carried += self.conversation.fail(effect.refusal.code, effect.refusal.detail)
            else:
                carried.append(effect)
        return carried

    # ------------------------------------------------------------ conversation

    def start(self) -> list[Effect]:
        return self.conversation.start()

    def receive(
        self, frame: frames.Frame, _: Timestamp | None = None, *, is_handoff_peer: bool = False
    ) -> list[Effect]:
        return self._carried(self.conversation.receive(frame, is_handoff_peer=is_handoff_peer))

    def opened(self, who: Identity, welcome: frames.Welcome) -> list[Effect]:
        return self.conversation.opened(who, welcome)

    def refused(self, exc: RelayError) -> list[Effect]:
        return self.conversation.refused(exc)

    def lost(self) -> list[Effect]:
        return self.conversation.lost()

    def drain(self) -> list[Effect]:
        return self.conversation.drain()

    def next_timer(self) -> Timestamp | None:
        return self.conversation.next_timer()

    def on_timer(self, now: Timestamp) -> list[Effect]:
        return self._carried(self.conversation.on_timer(now))

    # ------------------------------------------------------------ delivery

    def on_page(self, page: Page | Refusal, now: Timestamp) -> list[Effect]:
        return self._carried(self.delivery.on_page(page, now))

    def on_acked(
        self, asked: InboxAck, result: AckResult | Refusal, _: Timestamp | None = None
    ) -> list[Effect]:
        return self._carried(self.delivery.on_acked(asked, result))

    def on_stored(self, fence: Fence, items: Sequence[PageItem]) -> list[Effect]:
        return self._carried(self.delivery.on_stored(fence, items))

    def on_superseded(self) -> list[Effect]:
        return self._carried(self.delivery.on_superseded())

    def on_wakeup(self) -> list[Effect]:
        return self._carried(self.delivery.on_wakeup())

    def is_current(self, fence: Fence, head: Seq) -> bool:
        return self.delivery.is_current(fence, head)
