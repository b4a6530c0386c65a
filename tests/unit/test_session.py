"""The relay's side of a session: each frame in each phase, and its effects."""

from __future__ import annotations

from typing import Any

import pytest

from relay.inbox.model.conversation import ConversationPhase as Phase
from relay.inbox.model.effects import (
    AckRequest,
    AnswerQuestion,
    CheckLogin,
    CloseInbox,
    Read,
    StoreEnvelopes,
)
from relay.inbox.model.permissions import Identity
from relay.inbox.model.types import AckResult, InboxAck, Page, PageItem
from relay.protocol import frames
from relay.protocol.client_session import Close, Send
from relay.protocol.errors import CLOSES, ErrorCode, Refusal, error
from relay.protocol.frames import (
    Ack,
    Auth,
    Bye,
    Deliver,
    Gap,
    Hello,
    Submit,
    Welcome,
    WelcomePending,
)
from relay.protocol.ids import AgentKey, Epoch, Fence, Seq, Timestamp
from relay.protocol.types import Range, Reason, Window
from tests.support.relay_side import RelaySide
from tests.unit.builders import ALICE, NOW, RELAY

T = Timestamp(100)
SMALL = Window(3, 100)
ME, E1 = AgentKey("key:me"), Epoch("e1")
HELLO = Hello(RELAY.did, "https://r", "n", {}, int(NOW))
WHO = Identity(ALICE.did, ME, Fence(7))
SEND_ONLY = Identity(ALICE.did, ME, None)


def welcome(cursor: int = 0, head: int = 0) -> Welcome:
    return Welcome(
        inbox=True,
        session=Fence(7),
        epoch=E1,
        cursor=Seq(cursor),
        head=Seq(head),
        pending=WelcomePending(),
        window_count=3,
        window_bytes=100,
        proof="p",
    )


def session(window: Window = SMALL) -> RelaySide:
    one = RelaySide(HELLO, window, T)
    assert one.start() == [Send(HELLO)]
    return one


def opened(cursor: int = 0, head: int = 0, **given: Any) -> RelaySide:
    one = session(**given)
    assert one.receive(Auth("jws"), T) == [CheckLogin(Auth("jws"), "n")]
    one.opened(WHO, welcome(cursor, head))
    return one


def item(seq: int, size: int = 10, *, marked: bool = False) -> PageItem:
    return PageItem(Seq(seq), marked, f"e{seq}", b"x" * size)


def a_page(*seqs: int, upto: int = 0, head: int = 0, gaps: tuple = (), size: int = 10) -> Page:
    last = max(seqs, default=0)
    return Page(
        tuple(item(seq, size) for seq in seqs), gaps, Seq(upto or last), Seq(head or upto or last)
    )


def handed(effects: list[Any]) -> list[int]:
    said = [effect.frame for effect in effects if isinstance(effect, Send)]
    return [one.seq for frame in said if isinstance(frame, Deliver) for one in frame.items]


def reads(effects: list[Any]) -> list[Read]:
    return [effect for effect in effects if isinstance(effect, Read)]


def bye(effects: list[Any]) -> ErrorCode:
    (said,) = [effect.frame for effect in effects if isinstance(effect, Send)
               and isinstance(effect.frame, Bye)]  # fmt: skip
    assert effects[-1] == Close(said.error)
    return said.error


def acks(effects: list[Any]) -> InboxAck:
    (effect,) = effects
    assert isinstance(effect, AckRequest)
    return effect.ack


# ---------------------------------------------------------------- login


def test_a_login_opens_the_inbox_and_reads_from_its_cursor():
    one = session()
    one.receive(Auth("jws"), T)
    effects = one.opened(WHO, welcome(cursor=2, head=5))
    assert effects == [
        Send(welcome(cursor=2, head=5)),
        Read(ME, Fence(7), Seq(2), Window(3, 100)),
    ]
    assert one.next_timer() is None


def test_nothing_is_read_where_nothing_waits_or_there_is_no_inbox():
    one = session()
    one.receive(Auth("jws"), T)
    assert one.opened(WHO, welcome(2, 2)) == [Send(welcome(2, 2))]
    other = session()
    other.receive(Auth("jws"), T)
    assert not reads(other.opened(SEND_ONLY, welcome(0, 9)))
    assert not reads(other.on_wakeup())


@pytest.mark.parametrize("frame", [Submit("r", [{}]), Ack(E1), frames.Resolve("r", ALICE.did)])
def test_nothing_else_is_heard_before_the_login_holds(frame: frames.Frame):
    assert bye(session().receive(frame, T)) == ErrorCode.AUTH_REQUIRED
    one = session()
    one.receive(Auth("jws"), T)
    assert bye(one.receive(frame, T)) == ErrorCode.AUTH_REQUIRED


def test_auth_is_said_once():
    one = opened()
    assert bye(one.receive(Auth("jws"), T)) == ErrorCode.BAD_FRAME


def test_without_auth_the_conversation_ends_after_five_seconds():
    one = session()
    assert one.next_timer() == T + 5
    assert one.on_timer(Timestamp(T + 4.9)) == []
    assert bye(one.on_timer(Timestamp(T + 5))) == ErrorCode.AUTH_REQUIRED
    assert one.next_timer() is None


def test_a_login_that_the_store_holds_up_is_not_the_agents_fault():
    one = session()
    one.receive(Auth("jws"), T)
    assert bye(one.on_timer(Timestamp(T + 5))) == ErrorCode.STORAGE_UNAVAILABLE


def test_a_login_that_succeeds_after_the_socket_is_gone_gives_the_inbox_back():
    one = session()
    one.receive(Auth("jws"), T)
    assert one.lost() == []
    assert one.opened(WHO, welcome()) == [CloseInbox(ME, Fence(7), Seq(0))]
    assert one.opened(SEND_ONLY, welcome()) == []


@pytest.mark.parametrize("code", ErrorCode)
def test_a_refused_login_is_told_its_code_and_closes_under_one_that_has_a_number(code: ErrorCode):
    one = session()
    one.receive(Auth("jws"), T)
    effects = one.refused(error(code, "why", retry_after=3))
    said = [effect.frame for effect in effects if isinstance(effect, Send)]
    assert said[0].error == code
    assert (said[0].detail, said[0].retry_after) == ("why", 3)
    assert bye(effects) == (code if code in CLOSES else ErrorCode.AUTH_REQUIRED)
    assert one.phase is Phase.CLOSED


# ---------------------------------------------------------------- reading


def test_a_page_is_said_in_the_order_of_its_seqs_so_that_no_gap_overtakes_an_envelope():
    one = opened(head=4)
    gap = Range(Seq(2), Seq(2), Reason.EXPIRED)
    effects = one.on_page(a_page(1, 3, upto=3, head=4, gaps=(gap,)), T)
    assert handed(effects[:1]) == [1]
    assert effects[1] == Send(Gap(E1, (gap,)))
    assert handed(effects[2:3]) == [3]
    assert reads(effects) == [Read(ME, Fence(7), Seq(3), Window(1, 80))]


def test_no_more_is_read_than_the_window_has_room_for():
    one = opened(head=9)
    effects = one.on_page(a_page(1, 2, 3, head=9), T)
    assert handed(effects) == [1, 2, 3]
    assert not reads(effects)
    assert not reads(one.on_wakeup())
    asked = acks(one.receive(Ack(E1, Seq(2)), T))
    assert asked == InboxAck(Fence(7), E1, (Seq(1), Seq(2)), Seq(2))
    assert not reads(one.on_wakeup())  # only the durable answer opens the window
    effects = one.on_acked(asked, AckResult(Seq(2), asked.seqs, ()), T)
    assert effects[0] == Send(frames.Acked(E1, Seq(2)))
    assert reads(effects) == [Read(ME, Fence(7), Seq(3), Window(2, 90))]


def test_the_window_counts_bytes_and_one_envelope_always_fits():
    one = opened(head=3)
    effects = one.on_page(a_page(1, 2, upto=2, head=3, size=500), T)
    assert handed(effects) == [1]
    assert not reads(effects)
    asked = acks(one.receive(Ack(E1, Seq(1)), T))
    effects = one.on_acked(asked, AckResult(Seq(1), asked.seqs, ()), T)
    assert reads(effects) == [Read(ME, Fence(7), Seq(1), Window(3, 100))]


def test_one_read_is_under_way_at_a_time():
    one = opened(head=5)
    assert one.on_wakeup() == []
    assert one.on_stored(Fence(7), [item(6)]) == []


def test_a_hint_during_a_read_is_not_forgotten():
    one = opened(head=1)
    one.on_page(a_page(1), T)
    assert reads(one.on_wakeup())
    one.on_wakeup()  # the read under way may have been answered before this news
    effects = one.on_page(a_page(upto=1, head=1), T)
    assert reads(effects)
    assert not reads(one.on_page(a_page(upto=1, head=1), T))


def test_a_commit_during_a_read_that_saw_nothing_is_read_once_more():
    one = opened(cursor=5, head=5)
    assert reads(one.on_wakeup())
    assert one.on_stored(Fence(7), [item(6)]) == []
    effects = one.on_page(a_page(upto=5, head=5), T)
    assert reads(effects) == [Read(ME, Fence(7), Seq(5), Window(3, 100))]
    assert handed(one.on_page(a_page(6), T)) == [6]


def test_a_store_whose_head_went_back_is_not_read_in_a_circle():
    one = opened(cursor=5, head=5)
    one.on_wakeup()
    one.on_stored(Fence(7), [item(6)])
    assert reads(one.on_page(a_page(upto=5, head=5), T))
    assert one.on_page(a_page(upto=5, head=5), T) == []


def test_a_commit_while_the_login_is_under_way_is_not_forgotten():
    one = session()
    one.receive(Auth("jws"), T)
    assert one.on_stored(Fence(7), [item(3)]) == []
    assert reads(one.opened(WHO, welcome(2, 2)))
    other = session()
    other.receive(Auth("jws"), T)
    assert other.on_wakeup() == []
    assert reads(other.opened(WHO, welcome(2, 2)))


def test_a_store_that_cannot_answer_is_asked_again_a_second_later():
    one = opened(head=1)
    assert one.on_page(Refusal(ErrorCode.STORAGE_UNAVAILABLE), T) == []
    assert one.next_timer() == T + 1
    assert reads(one.on_timer(Timestamp(T + 1)))
    assert one.on_page(a_page(upto=0, head=1), T) == []  # it cannot read on just now
    assert one.next_timer() == T + 1


def test_a_new_epoch_is_said_by_name_whether_a_read_or_an_ack_finds_it():
    reset = Refusal(ErrorCode.INBOX_RESET, "new")
    one, other = opened(head=1), opened(head=1)
    other.on_page(a_page(1), T)
    asked = acks(other.receive(Ack(E1, Seq(1)), T))
    for effects in (one.on_page(reset, T), other.on_acked(asked, reset, T)):
        assert effects[0] == Send(frames.Error(ErrorCode.INBOX_RESET, "new"))
        assert bye(effects) == ErrorCode.STORAGE_UNAVAILABLE


def test_a_superseded_session_says_so_and_leaves_the_inbox_alone():
    for effects in (
        opened(head=1).on_page(Refusal(ErrorCode.SUPERSEDED), T),
        opened().on_acked(InboxAck(Fence(7), E1, ()), Refusal(ErrorCode.SUPERSEDED), T),
    ):
        assert bye(effects) == ErrorCode.SUPERSEDED
        assert not [effect for effect in effects if isinstance(effect, CloseInbox)]


def test_many_gaps_are_said_in_frames_that_an_agent_takes():
    one = opened(head=3000)
    gaps = tuple(
        Range(Seq(n), Seq(n), Reason.ACKED if n % 2 else Reason.EXPIRED) for n in range(1, 3000)
    )
    effects = one.on_page(a_page(3000, gaps=gaps), T)
    told = [effect.frame.ranges for effect in effects
            if isinstance(effect, Send) and isinstance(effect.frame, Gap)]  # fmt: skip
    assert [len(part) for part in told] == [1024, 1024, 951]
    assert sum(told, ()) == gaps


# ---------------------------------------------------------------- memory


def test_a_session_that_has_caught_up_is_handed_a_commit_of_its_node_at_once():
    one = opened(cursor=5, head=5)
    effects = one.on_stored(Fence(7), [item(6), item(7)])
    assert handed(effects) == [6, 7]
    assert not reads(effects)


@pytest.mark.parametrize(
    ("fence", "seqs", "now"),
    [
        (8, [6], []),  # another session's commit
        (6, [6], []),
        (7, [7], []),  # another node committed 6
        (7, [5], []),
        (7, [6, 8], [6]),
        (7, [6, 7, 8, 9], [6, 7, 8]),  # the window
    ],
)
def test_from_memory_comes_only_what_is_next_in_line_under_the_same_fence(fence, seqs, now):
    one = opened(cursor=5, head=5)
    effects = one.on_stored(Fence(fence), [item(seq) for seq in seqs])
    assert handed(effects) == now
    assert bool(reads(effects)) == (fence == 7 and max(seqs) > 5 and seqs != now and len(now) < 3)


def test_from_memory_comes_only_what_fits_the_bytes_of_the_window():
    one = opened(cursor=5, head=5)
    assert handed(one.on_stored(Fence(7), [item(6, 60), item(7, 60)])) == [6]


def test_a_closed_session_is_handed_nothing():
    one = opened(cursor=5, head=5)
    one.lost()
    assert one.on_stored(Fence(7), [item(6)]) == one.on_wakeup() == one.on_page(a_page(6), T) == []
    assert one.on_acked(InboxAck(Fence(7), E1, ()), AckResult(Seq(0), (), ()), T) == []


# ---------------------------------------------------------------- ack


def test_a_cumulative_ack_covers_only_what_was_handed_over_or_explained():
    one = opened(head=9)
    one.on_page(a_page(1, 2, upto=3, head=9, gaps=(Range(Seq(3), Seq(3), Reason.EXPIRED),)), T)
    assert acks(one.receive(Ack(E1, Seq(3)), T)).seqs == (1, 2)
    assert bye(one.receive(Ack(E1, Seq(4)), T)) == ErrorCode.BAD_FRAME


def test_a_selective_ack_may_name_what_was_not_handed_over_but_not_what_never_was():
    one = opened(head=9)
    assert acks(one.receive(Ack(E1, seqs=(Seq(9),)), T)).seqs == (9,)
    assert bye(one.receive(Ack(E1, seqs=(Seq(10),)), T)) == ErrorCode.BAD_FRAME
    other = opened(head=9)
    assert bye(other.receive(Ack(E1, refuse=((Seq(10), "x"),)), T)) == ErrorCode.BAD_FRAME


def test_what_is_refused_is_not_acked_too():
    one = opened(head=3)
    one.on_page(a_page(1, 2, 3), T)
    asked = acks(one.receive(Ack(E1, Seq(3), (Seq(2),), ((Seq(2), "ugly"),)), T))
    assert (asked.seqs, asked.refuse) == ((1, 3), ((2, "ugly"),))


def test_an_ack_of_another_epoch_changes_nothing_and_closes_nothing():
    one = opened(head=3)
    (effect,) = one.receive(Ack(Epoch("e0"), Seq(1)), T)
    assert isinstance(effect, Send)
    assert isinstance(effect.frame, frames.Error)
    assert effect.frame.error == ErrorCode.INBOX_RESET
    assert one.phase is Phase.OPEN


def test_a_send_only_session_has_nothing_to_ack():
    one = session()
    one.receive(Auth("jws"), T)
    one.opened(SEND_ONLY, welcome())
    assert bye(one.receive(Ack(E1), T)) == ErrorCode.BAD_FRAME


def test_what_was_acked_while_it_was_being_read_is_not_handed_over():
    one = opened(head=3)
    asked = acks(one.receive(Ack(E1, seqs=(Seq(2),)), T))
    one.on_acked(asked, AckResult(Seq(0), asked.seqs, ()), T)
    assert handed(one.on_page(a_page(1, 2, 3), T)) == [1, 3]


def test_the_cursor_carries_the_position_along():
    one = opened(head=3)
    asked = acks(one.receive(Ack(E1, seqs=(Seq(1), Seq(2))), T))
    effects = one.on_acked(asked, AckResult(Seq(2), asked.seqs, ()), T)
    assert effects[0] == Send(frames.Acked(E1, Seq(2)))
    # what the relay has called acked may be acked again
    assert acks(one.receive(Ack(E1, Seq(2)), T)).upto == 2
    assert handed(one.on_page(a_page(1, 2, 3), T)) == [3]


def test_an_ack_whose_outcome_is_unknown_is_asked_for_again_and_opens_no_window():
    one = opened(head=9)
    one.on_page(a_page(1, 2, 3, head=9), T)
    asked = acks(one.receive(Ack(E1, Seq(3)), T))
    (effect,) = one.on_acked(asked, Refusal(ErrorCode.STORAGE_UNAVAILABLE), T)
    assert isinstance(effect, Send)
    assert effect.frame.error == ErrorCode.STORAGE_UNAVAILABLE
    assert not reads(one.on_wakeup())


# ---------------------------------------------------------------- the rest of a conversation


def test_submits_and_questions_are_passed_to_the_shell():
    one = opened()
    submit = Submit("r", [{}])
    assert one.receive(submit, T) == [StoreEnvelopes(submit)]
    for question in (
        frames.Status("r", ()),
        frames.Resolve("r", ALICE.did),
        frames.Publish("r", "x"),
    ):
        assert one.receive(question, T) == [AnswerQuestion(question)]
    assert one.receive(frames.Error(ErrorCode.INTERNAL), T) == []


def test_a_clean_end_says_exactly_what_was_handed_over():
    end = CloseInbox(ME, Fence(7), Seq(2))
    for finish, rest in [
        (lambda one: one.receive(Bye(ErrorCode.DRAINING), T), [end, Close(None)]),
        (lambda one: one.lost(), [end]),
    ]:
        one = opened(head=9)
        one.on_page(a_page(1, 2, upto=3, head=3, gaps=(Range(Seq(3), Seq(3), Reason.ACKED),)), T)
        assert finish(one) == rest
        assert finish(one) == []
    one = opened(cursor=4, head=4)
    effects = one.drain()
    assert bye(effects) == ErrorCode.DRAINING
    assert effects[-2] == CloseInbox(ME, Fence(7), Seq(4))


def test_is_current_until_the_store_has_more_or_another_fence():
    one = opened(cursor=5, head=5)
    assert one.is_current(Fence(7), Seq(5))
    assert not one.is_current(Fence(7), Seq(6))
    assert not one.is_current(Fence(8), Seq(5))
    assert not session().is_current(Fence(7), Seq(0))


@pytest.mark.parametrize("phase", ["hello", "opening", "open"])
def test_what_only_a_relay_says_ends_the_conversation_in_every_phase(phase: str):
    one = opened() if phase == "open" else session()
    if phase == "opening":
        one.receive(Auth("jws"), T)
    effects = one.receive(frames.Submitted(("r",), None), T)
    assert bye(effects) == (
        ErrorCode.BAD_FRAME if phase == "open" else ErrorCode.AUTH_REQUIRED
    )  # fmt: skip
