"""Laws of anti-entropy: two indexes come together, whatever differs and whatever a peer sends."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import random
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.directory.model import anti_entropy
from relay.directory.model import index as record_index
from relay.directory.model.anti_entropy import Index, Pull, answer
from relay.directory.model.index import place
from relay.protocol import frames
from relay.protocol.endpoint_record import RecordVersion
from relay.protocol.errors import ErrorCode, ProtocolError
from relay.protocol.frames import BucketDigest, Digest, Digests, Gossip, Have, HaveItem, Want
from relay.protocol.ids import AgentKey
from relay.protocol.jws import b64encode

Store = dict[AgentKey, RecordVersion]
AGENTS = [AgentKey(f"key:z6Mk{n:044d}") for n in range(60)]
agents = st.sampled_from(AGENTS)
orders = st.tuples(st.just(1), st.integers(0, 3), st.binary(min_size=16, max_size=16))
stores = st.dictionaries(agents, orders)


def index_of(store: Store) -> Index:
    made = Index()
    for agent, order in store.items():
        made.put(agent, order)
    return made


def contents(index: Index) -> Store:
    found: Store = {}
    for item in index.digests(10):
        after, more = "", True
        while more:
            page, more = index.have(10, item.bucket, after)
            after = page[-1].agent
            found.update({it.agent: index.version(it.agent) or (0, 0, b"") for it in page})
    return found


def joined(*parts: Store) -> Store:
    whole: Store = {}
    for agent, order in itertools.chain.from_iterable(part.items() for part in parts):
        whole[agent] = max(order, whole.get(agent, order))
    return whole


def many(count: int, start: int = 0) -> Store:
    return {
        AgentKey(f"key:z6Mk{n:044d}"): (1, n, hashlib.sha256(str(n).encode()).digest()[:16])
        for n in range(start, start + count)
    }


def names() -> Callable[[], str]:
    numbers = itertools.count()
    return lambda: f"q{next(numbers)}"


class Exchange:
    """A pull over a wire: every frame passes through the codec, gossip fills the index."""

    def __init__(self, here: Index, there: Index, max_wanted: int = 256) -> None:
        self.here, self.there = here, there
        self.pull = Pull(here, names(), max_wanted)
        self.open: deque[Digest | Want] = deque(self.pull.start())
        self.asked: list[Digest | Want] = []
        self.max_open = 0

    def step(self, at: int = 0) -> None:
        """Answer one of the open questions."""
        self.max_open = max(self.max_open, len(self.open))
        self.open.rotate(-(at % len(self.open)))
        question = frames.parse(frames.encode(self.open.popleft()), "agent")
        assert isinstance(question, Digest | Want)
        self.asked.append(question)
        self.open.extend(self.pull.receive(self.reply(question)))

    def reply(self, question: Digest | Want) -> Digests | Have | Gossip:
        if isinstance(question, Want) and question.agents:
            assert self.pull.agents_asked(question.ref) == question.agents
            held = [(agent, self.there.version(agent)) for agent in question.agents]
            for agent, order in held:
                if order:
                    self.here.put(agent, order)
            return Gossip(tuple(agent for agent, order in held if order), ref=question.ref)
        found = frames.parse(frames.encode(answer(self.there, question)), "relay")
        assert isinstance(found, Digests | Have)
        return found

    def run(self) -> Exchange:
        while self.open:
            self.step()
        assert self.pull.is_done
        return self


def test_an_index_follows_its_store_to_a_lower_order_only_when_the_store_says_so() -> None:
    agent, void, held = AGENTS[0], (1, 9, b"v" * 16), (1, 5, b"h" * 16)
    index = index_of({agent: void})
    assert not index.put(agent, RecordVersion(*held))
    assert index.version(agent) == void
    assert index.set(agent, RecordVersion(*held))
    assert not index.set(agent, RecordVersion(*held))
    assert index.version(agent) == held
    assert index.digests(10) == index_of({agent: held}).digests(10)


def test_however_many_deep_digests_are_asked_for_only_some_are_cached(monkeypatch) -> None:
    monkeypatch.setattr(record_index, "MAX_CACHED_PARTS", 5)
    index = index_of(dict.fromkeys(AGENTS, RecordVersion(1, 1, b"h" * 16)))
    places = [(bits, place(agent.encode(), bits)) for agent in AGENTS for bits in (16, 22, 28)]
    for bits, bucket in places:
        steps = sum(1 for _ in index.prepare(bits, (bucket,)))
        assert steps == 1
        assert [one.bucket for one in index.digests(bits, (bucket,))] == [bucket]
    assert len(index._parts) == 5


def test_all_of_the_top_is_computed_in_steps() -> None:
    index = index_of(dict.fromkeys(AGENTS, RecordVersion(1, 1, b"h" * 16)))
    assert sum(1 for _ in index.prepare(10)) == 32
    assert index.digests(10) == index_of(
        dict.fromkeys(AGENTS, RecordVersion(1, 1, b"h" * 16))
    ).digests(10)
    with pytest.raises(ProtocolError):
        next(index.prepare(16, range(0, 2**16, 64)))


# ---------------------------------------------------------------- the index


@given(st.lists(st.tuples(agents, orders)))
def test_an_index_holds_the_greatest_order_of_each_agent_in_whatever_order_they_come(puts):
    index = Index()
    held: Store = {}
    for agent, order in puts:
        changes = agent not in held or order > held[agent]
        assert index.put(agent, order) is changes
        held[agent] = max(order, held.get(agent, order))
    assert (contents(index), len(index)) == (held, len(held))


@given(stores, st.lists(agents))
def test_what_is_removed_is_gone_and_the_rest_stays(store, gone):
    index = index_of(store)
    for agent in gone:
        assert index.remove(agent) is (agent in store)
        store.pop(agent, None)
        assert index.version(agent) is None
    assert contents(index) == store
    assert index.digests(10) == index_of(store).digests(10)


@given(stores, stores)
def test_digests_are_equal_exactly_where_the_contents_are(one, other):
    assert (index_of(one).digests(10) == index_of(other).digests(10)) is (one == other)


@settings(max_examples=30)
@given(stores, agents, orders, st.sampled_from([10, 16, 22, 28]))
def test_a_change_is_seen_in_digests_that_were_asked_for_before(store, agent, order, bits):
    index = index_of(store)
    bucket = place(agent.encode(), bits)
    index.digests(bits, (bucket,))
    index.have(bits, bucket)
    index.put(agent, order)
    fresh = index_of(joined(store, {agent: order}))
    assert index.digests(bits, (bucket,)) == fresh.digests(bits, (bucket,))
    assert index.have(bits, bucket) == fresh.have(bits, bucket)


def test_a_digest_is_what_the_protocol_says_it_is():
    agent, digest = AGENTS[0], bytes(range(32))
    index = index_of({agent: (1, 7, digest)})
    row = agent.encode() + b"\0" + (1).to_bytes(8, "big") + (7).to_bytes(8, "big") + digest[:16]
    bucket = int.from_bytes(hashlib.sha256(agent.encode()).digest()[:2], "big") >> 6
    reply = b64encode(hashlib.sha256(row).digest()[:16])
    assert index.digests(10) == (BucketDigest(bucket, 1, reply),)


def test_a_bucket_is_read_page_by_page_from_where_the_last_one_ended():
    index = index_of(many(3000))
    found: list[HaveItem] = []
    for item in index.digests(10):
        after, more = "", True
        while more:
            page, more = index.have(10, item.bucket, after, limit=2)
            assert 0 < len(page) <= 2
            after = page[-1].agent
            found += page
    assert len(found) == len({item.agent for item in found}) == 3000


def test_parts_of_a_bucket_hold_together_what_it_holds():
    index = index_of(many(3000))
    top = index.digests(10)[0]
    for bits in (16, 22, 28):
        parts = {place(item.agent.encode(), bits) for item in index.have(10, top.bucket)[0]}
        reply = index.digests(bits, sorted(parts))
        assert [item.bucket for item in reply] == sorted(parts)
        pages = [index.have(bits, part)[0] for part in sorted(parts)]
        assert sorted(itertools.chain(*pages)) == sorted(index.have(10, top.bucket)[0])


def test_a_key_with_a_zero_byte_is_not_taken_for_another():
    index = index_of({AGENTS[0]: (1, 7, bytes(16))})
    strange = [AgentKey(AGENTS[0] + "\0" * n) for n in (1, 8, 33)]
    assert [index.version(agent) for agent in strange] == [None] * 3


@pytest.mark.parametrize(
    ("bits", "buckets"),
    [(0, ()), (11, (1,)), (30, (1,)), (16, ()), (10, (1024,)), (10, (-1,)), (16, (2**16,)),
     (16, tuple(n << 6 for n in range(17)))],
)  # fmt: skip
def test_a_question_of_another_depth_or_about_too_much_is_refused(bits, buckets):
    with pytest.raises(ProtocolError) as caught:
        answer(index_of(many(3)), Digest("r", bits, buckets))
    assert caught.value.code is ErrorCode.BAD_FRAME


def test_a_wish_for_something_else_is_not_answered_here():
    with pytest.raises(ProtocolError):
        answer(Index(), Want("r", relays=True))


def test_a_cleared_index_is_empty():
    index = index_of(many(10))
    index.digests(10)
    index.clear()
    assert (len(index), index.digests(10), contents(index)) == (0, (), {})


# ---------------------------------------------------------------- pulls


@given(stores, stores, st.integers(1, 5), st.data())
def test_a_pull_brings_the_asker_everything_in_any_interleaving(one, other, max_wanted, data):
    exchange = Exchange(index_of(one), index_of(other), max_wanted)
    while exchange.open:
        exchange.step(data.draw(st.integers(0, 7)))
    assert exchange.pull.is_done
    assert exchange.pull.error is None
    assert contents(exchange.here) == joined(one, other)
    assert contents(exchange.there) == other
    assert exchange.pull.received == exchange.pull.wanted


@settings(max_examples=50)
@given(st.lists(stores, min_size=2, max_size=5), st.randoms(use_true_random=False))
def test_relays_that_pull_from_each_other_at_random_all_come_to_hold_the_join(parts, chance):
    indexes = [index_of(part) for part in parts]
    pairs = list(itertools.permutations(indexes, 2)) * 2
    chance.shuffle(pairs)
    ring = list(itertools.pairwise([*indexes, *indexes, indexes[0]]))
    for here, there in pairs + ring:
        Exchange(here, there).run()
    assert [contents(index) for index in indexes] == [joined(*parts)] * len(indexes)


@settings(max_examples=30)
@given(stores, stores, st.lists(st.tuples(agents, orders), max_size=8), st.data())
def test_what_changes_during_a_pull_does_no_harm(one, other, changes, data):
    exchange = Exchange(index_of(one), index_of(other), 2)
    for agent, order in changes:
        if exchange.open:
            exchange.step(data.draw(st.integers(0, 7)))
        data.draw(st.sampled_from([exchange.here, exchange.there])).put(agent, order)
    while exchange.open:
        exchange.step()
    assert (exchange.pull.is_done, exchange.pull.error) == (True, None)
    Exchange(exchange.here, exchange.there).run()
    assert contents(exchange.here) == joined(contents(exchange.here), contents(exchange.there))


def test_equal_relays_ask_once():
    exchange = Exchange(index_of(many(500)), index_of(many(500))).run()
    assert exchange.asked == [Digest("q0", 10)]


def test_only_the_buckets_that_differ_are_listed():
    exchange = Exchange(index_of(many(5000)), index_of(many(5003))).run()
    kinds = [type(one).__name__ for one in exchange.asked]
    assert (kinds.count("Digest"), exchange.pull.wanted) == (1, 3)
    assert sum(1 for one in exchange.asked if isinstance(one, Want) and one.agents) <= 3
    assert len(exchange.asked) <= 1 + 3 + 3


@pytest.mark.parametrize("held", ["none", "all but few", "other ones"])
def test_a_bucket_that_is_too_full_is_asked_about_by_its_parts(held, monkeypatch):
    monkeypatch.setattr(anti_entropy, "SPLIT_ABOVE", 4)
    theirs = many(6000)
    ours = {"none": {}, "all but few": dict(list(theirs.items())[:-30]),
            "other ones": many(6000, start=6000)}[held]  # fmt: skip
    exchange = Exchange(index_of(ours), index_of(theirs)).run()
    assert contents(exchange.here) == joined(ours, theirs)
    assert {one.bits for one in exchange.asked if isinstance(one, Digest)} >= {10, 16}
    assert exchange.max_open <= anti_entropy.MAX_OUTSTANDING


def test_splitting_is_what_keeps_a_small_difference_cheap(monkeypatch):
    theirs = many(6000)
    ours = dict(list(theirs.items())[:-5])

    def listed() -> int:
        exchange = Exchange(index_of(ours), index_of(theirs)).run()
        pages = [answer(exchange.there, one) for one in exchange.asked
                 if isinstance(one, Want) and not one.agents]  # fmt: skip
        return sum(len(page.items) for page in pages if isinstance(page, Have))

    whole = listed()
    monkeypatch.setattr(anti_entropy, "SPLIT_ABOVE", 2)
    assert listed() < whole / 2


def test_a_list_of_several_pages_goes_on_behind_the_last_agent(monkeypatch):
    monkeypatch.setattr(frames, "MAX_HAVE_ITEMS", 2)
    theirs = many(4000)

    class Short(Exchange):
        def reply(self, question):
            if isinstance(question, Want) and question.bits:
                items, more = self.there.have(10, question.bucket, question.after or "", limit=2)
                return Have(question.ref, 10, question.bucket, items, more)
            return super().reply(question)

    exchange = Short(index_of({}), index_of(theirs)).run()
    assert exchange.pull.error is None
    assert contents(exchange.here) == theirs
    assert any(isinstance(one, Want) and one.after for one in exchange.asked)


def test_what_was_wanted_and_did_not_come_is_not_asked_for_again():
    class Silent(Exchange):
        def reply(self, question):
            if isinstance(question, Want) and question.agents:
                return Gossip(ref=question.ref)
            return super().reply(question)

    exchange = Silent(Index(), index_of(many(300))).run()
    assert (exchange.pull.wanted, exchange.pull.received, exchange.pull.error) == (300, 0, None)
    asked = [one.agents for one in exchange.asked if isinstance(one, Want) and one.agents]
    assert sum(map(len, asked)) == 300


def test_a_question_that_is_skipped_leaves_the_others():
    exchange = Exchange(Index(), index_of(many(300)))
    exchange.step()
    skipped = exchange.open.popleft()
    assert isinstance(skipped, Want)
    exchange.open.extend(exchange.pull.skip(skipped.ref))
    exchange.run()
    assert (exchange.pull.is_done, exchange.pull.error) == (True, None)
    left = {agent for agent in many(300) if place(agent.encode(), 10) == skipped.bucket}
    assert left
    assert contents(exchange.here).keys() == many(300).keys() - left


def test_who_claims_much_and_brings_nothing_new_is_left_alone_for_this_time():
    class Vain(Exchange):
        def step(self, _: int = 0) -> None:
            question = self.open.popleft()
            self.asked.append(question)
            merged = 0 if isinstance(question, Want) and question.agents else None
            self.open.extend(self.pull.receive(self.reply(question), gained=merged))

        def reply(self, question):
            if isinstance(question, Want) and question.agents:
                return Gossip(("old",) * len(question.agents), ref=question.ref)
            return super().reply(question)

    exchange = Vain(Index(), index_of(many(20_000))).run()
    assert (exchange.pull.error, exchange.pull.is_done) == (None, True)
    assert exchange.pull.wanted < 4_000


def test_who_brings_as_much_news_as_anything_else_is_asked_to_the_end():
    class Half(Exchange):
        def step(self, _: int = 0) -> None:
            question = self.open.popleft()
            self.asked.append(question)
            merged = len(question.agents) // 2 if isinstance(question, Want) else None
            reply = self.reply(question)
            merged = merged if isinstance(reply, Gossip) else None
            self.open.extend(self.pull.receive(reply, gained=merged))

    exchange = Half(Index(), index_of(many(5_000))).run()
    assert (exchange.pull.wanted, exchange.pull.error) == (5_000, None)


@pytest.mark.parametrize("first", [0, 1, 700, 1023])
def test_a_pull_begins_with_its_first_bucket(first):
    pull = Pull(Index(), names(), first=first)
    pull.start()
    digests = answer(index_of(many(20_000)), Digest("q0", 10))
    assert [one.bucket for one in pull.receive(digests)] == [
        (first + n) % 1024 for n in range(anti_entropy.MAX_OUTSTANDING)
    ]


# ---------------------------------------------------------------- a peer that lies


def started(store: Store | None = None) -> Pull:
    pull = Pull(index_of(store or {}), names())
    assert pull.start() == [Digest("q0", 10)]
    return pull


SOME = b64encode(bytes(16))


def listing(agent: AgentKey, bits: int = 10, bucket: int | None = None, **more: Any) -> Have:
    where = place(agent.encode(), bits) if bucket is None else bucket
    return Have("q1", bits, where, (HaveItem(agent, 1, 1, SOME),), **more)


def asked_for_a_list() -> tuple[Pull, int]:
    pull = started()
    bucket = place(AGENTS[0].encode(), 10)
    assert pull.receive(Digests("q0", 10, (BucketDigest(bucket, 1, SOME),))) == [
        Want("q1", bits=10, bucket=bucket)
    ]
    return pull, bucket


@pytest.mark.parametrize(
    "reply",
    [
        Digests("q9", 10, ()),
        Digests("q0", 16, ()),
        Digests("q0", 10, (BucketDigest(1024, 1, SOME),)),
        Digests("q0", 10, (BucketDigest(1, 1, SOME), BucketDigest(1, 2, SOME))),
        Have("q0", 10, 0, ()),
        Gossip(("record",)),
        Gossip(("record",), ref="q0"),
    ],
    ids=str,
)
def test_a_wrong_answer_to_the_first_question_ends_the_pull(reply):
    pull = started()
    assert pull.receive(reply) == []
    assert pull.error is not None
    assert (pull.error.code, pull.is_done) == (ErrorCode.BAD_FRAME, True)


def test_a_right_answer_does_not():
    pull, _ = asked_for_a_list()
    assert pull.receive(listing(AGENTS[0])) == [Want("q2", agents=(AGENTS[0],))]
    assert pull.receive(Gossip(("record",), ref="q2")) == []
    assert (pull.error, pull.is_done) == (None, True)


OTHER = next(
    agent for agent in AGENTS if place(agent.encode(), 10) != place(AGENTS[0].encode(), 10)
)


@pytest.mark.parametrize(
    "reply",
    [
        listing(OTHER),
        listing(OTHER, bucket=place(AGENTS[0].encode(), 10)),
        listing(AGENTS[0], bits=16),
        Have("q1", 10, place(AGENTS[0].encode(), 10), (HaveItem(AGENTS[0], 1, 1, SOME),) * 2),
        Have("q1", 10, place(AGENTS[0].encode(), 10), (), more=True),
        Gossip(("record",), ref="q1"),
    ],
    ids=str,
)
def test_a_wrong_list_ends_the_pull(reply):
    pull, _ = asked_for_a_list()
    assert pull.receive(reply) == []
    assert pull.error is not None


def test_more_records_than_were_asked_for_end_it():
    pull, _ = asked_for_a_list()
    pull.receive(listing(AGENTS[0]))
    pull.receive(Gossip(("record", "another"), ref="q2"))
    assert pull.error is not None


def test_a_list_without_an_end_ends_the_pull():
    bucket, wanted = 5, 0
    inside = (AgentKey(f"k{n:08d}") for n in itertools.count() if place(b"k%08d" % n, 10) == bucket)
    pull = started()
    questions = pull.receive(Digests("q0", 10, (BucketDigest(bucket, 1, SOME),)))
    for _ in range(100):
        if pull.error:
            break
        lists = [one for one in questions if one.bucket is not None]
        item = HaveItem(next(inside), 1, 1, SOME)
        questions = pull.receive(Have(lists[0].ref, 10, bucket, (item,), more=True))
        wanted += 1
    assert pull.error is not None
    assert wanted <= anti_entropy.MAX_PAGES


def test_a_peer_that_always_differs_is_asked_a_bounded_number_of_times(monkeypatch):
    monkeypatch.setattr(anti_entropy, "MAX_QUESTIONS", 500)
    pull = started()
    asked = 1
    questions = deque(
        pull.receive(Digests("q0", 10, tuple(BucketDigest(n, 600, SOME) for n in range(1024))))
    )
    while questions:
        question = questions.popleft()
        asked += 1
        lies = [BucketDigest(bucket, 600, SOME) for bucket in question.buckets] if isinstance(
            question, Digest) else []  # fmt: skip
        reply = Digests(question.ref, question.bits, tuple(lies)) if lies else Have(
            question.ref, question.bits, question.bucket, ())  # fmt: skip
        questions.extend(pull.receive(reply))
        assert len(pull._waiting) <= 12 * 1024
    assert pull.is_done
    assert asked <= 500


hostile = st.one_of(
    st.builds(Digests, st.sampled_from(["q0", "q1", "q2"]), st.sampled_from([10, 16, 22, 28, 7]),
              st.lists(st.builds(BucketDigest, st.integers(0, 2**30), st.integers(0, 2**53),
                                 st.just(SOME)), max_size=4).map(tuple)),
    st.builds(Have, st.sampled_from(["q0", "q1", "q2"]), st.sampled_from([10, 16]),
              st.integers(0, 2**16),
              st.lists(st.builds(HaveItem, agents, st.integers(1, 2**53), st.integers(0, 2**53),
                                 st.just(SOME)), max_size=4).map(tuple), st.booleans()),
    st.builds(Gossip, st.lists(st.text(min_size=1), max_size=3).map(tuple),
              ref=st.sampled_from(["q0", "q1", None])),
)  # fmt: skip


@given(stores, st.lists(hostile, max_size=12))
def test_whatever_a_peer_says_nothing_is_raised_and_little_is_asked(store, reply):
    pull = started(store)
    for frame in reply:
        asked = pull.receive(frame)
        assert len(asked) <= anti_entropy.MAX_OUTSTANDING
        for question in asked:
            assert frames.parse(frames.encode(question), "agent") == question
    assert pull.error is None or pull.is_done


@given(stores, st.integers(0, 30), st.lists(st.integers(0, 2**30 - 1), max_size=20))
def test_a_hostile_question_gets_the_named_error_or_an_answer(store, bits, buckets):
    index = index_of(store)
    for question in (Digest("r", bits, tuple(buckets)), Want("r", bits=bits, bucket=len(buckets))):
        with contextlib.suppress(ProtocolError):
            reply = answer(index, question)
            assert frames.parse(frames.encode(reply), "relay") == reply


def test_a_hundred_thousand_records_fit_into_20_mb():
    import tracemalloc  # noqa: PLC0415  slows down whatever runs after its import is started

    chance = random.Random(1)  # noqa: S311
    tracemalloc.start()
    try:
        index = Index()
        for n in range(20_000):
            index.put(AgentKey(f"key:z6Mk{n:044d}"), RecordVersion(1, n, chance.randbytes(32)))
        index.digests(10)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held / 20_000 < 200
