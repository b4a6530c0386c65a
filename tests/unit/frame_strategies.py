"""Hypothesis strategies: every frame that this version can say, within its bounds."""

from __future__ import annotations

from hypothesis import strategies as st

from relay.protocol import frames
from relay.protocol.errors import ErrorCode
from relay.protocol.jws import MAX_SAFE_INTEGER, b64encode
from relay.protocol.relay_info import LIMIT_NAMES
from relay.protocol.types import FirstContact, MovedRules, Range, Reason

names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
refs = st.text("abc-0é", min_size=1, max_size=64)
numbers = st.integers(0, MAX_SAFE_INTEGER)
seqs = st.integers(1, MAX_SAFE_INTEGER)
nonces = st.binary(min_size=32, max_size=32).map(b64encode)
codes = st.sampled_from(ErrorCode)
maybe = st.none() | names
retry = st.none() | numbers
first_contacts = st.sampled_from(FirstContact.__args__)
many_seqs = st.lists(seqs, max_size=4).map(tuple)
envelopes = st.fixed_dictionaries({"jws": names, "body": names})
ranges = st.tuples(seqs, seqs, st.sampled_from(Reason)).map(
    lambda t: Range(min(t[0], t[1]), max(t[0], t[1]), t[2])
)
pendings = st.builds(
    frames.WelcomePending,
    count=numbers,
    bytes=numbers,
    oldest_age=retry,
    refused_count=numbers,
    refused_first_at=retry,
    refused_last_at=retry,
)


def _welcomes(*, inbox: bool) -> st.SearchStrategy[frames.Welcome]:
    return st.builds(
        frames.Welcome,
        inbox=st.just(inbox),
        session=seqs if inbox else st.none(),
        epoch=names if inbox else st.none(),
        cursor=numbers,
        head=numbers,
        pending=pendings,
        window_count=seqs,
        window_bytes=seqs,
        proof=names,
    )


def _listed(strategy: st.SearchStrategy, least: int = 1) -> st.SearchStrategy[tuple]:
    return st.lists(strategy, min_size=least, max_size=3).map(tuple)


hashes = st.binary(min_size=16, max_size=16).map(b64encode)
wholes = st.binary(min_size=32, max_size=32).map(b64encode)
receipts = st.binary(min_size=32, max_size=32).map(b64encode)
bits = st.integers(10, 30)
buckets = st.integers(0, 1023)
gossips = st.builds(frames.Gossip, _listed(names, 0), _listed(names, 0), st.none() | refs)


from_agent = st.one_of(
    st.builds(frames.Auth, names, maybe, maybe),
    st.builds(frames.Submit, refs, st.lists(envelopes, min_size=1, max_size=3)),
    st.builds(
        frames.Submit,
        refs,
        st.lists(envelopes, min_size=1, max_size=3),
        _listed(names, 0),
        st.sampled_from([(), (0,)]),
        st.just("") | names,
    ),
    st.builds(
        frames.Migrate,
        ref=refs,
        agent=names,
        handoff=names,
        authorization=names,
        digest_id=wholes,
        number=st.just(0),
        total=st.integers(1, frames.MAX_DIGEST_PAGES),
        awaiting_digests=_listed(names, 0),
        dedup_horizon_hour=st.integers(-1, 2**32),
        maybe_seen=st.integers(0, 3).flatmap(lambda n: st.binary(min_size=36 * n, max_size=36 * n)),
        rules=st.none()
        | st.builds(
            MovedRules, first_contacts, _listed(names, 0), _listed(names, 0), _listed(names, 0)
        ),
    ),
    gossips,
    st.builds(frames.Digest, refs, bits, _listed(buckets, 0)),
    st.builds(frames.Want, refs, bits, buckets, maybe),
    st.builds(frames.Want, refs, agents=_listed(names)),
    st.builds(frames.Want, refs, relays=st.just(True)),
    st.builds(frames.Want, refs, view=st.just(True)),
    st.builds(frames.Ack, names, numbers, many_seqs, _listed(st.tuples(seqs, names), 0)),
    st.builds(
        frames.Status,
        refs,
        _listed(
            st.builds(frames.StatusItem, names, st.text("0af-", min_size=1, max_size=36), maybe)
        ),
    ),
    st.builds(frames.Resolve, refs, names, st.none()),
    st.builds(frames.Resolve, refs, st.none(), names),
    st.builds(frames.Publish, refs, names),
    st.builds(
        frames.Rules, refs, st.none() | first_contacts, *[_listed(names, 0) for _ in range(3)]
    ),
    st.builds(frames.Error, codes, names, retry, st.none() | refs),
    st.builds(frames.Bye, codes, names, retry, maybe),
)
from_relay = st.one_of(
    gossips,
    st.builds(frames.Migrated, refs, names, wholes, st.integers(0, 64)),
    st.builds(
        frames.Digests,
        refs,
        bits,
        _listed(st.builds(frames.BucketDigest, buckets, numbers, hashes), 0),
    ),
    st.builds(
        frames.Have,
        refs,
        bits,
        buckets,
        _listed(st.builds(frames.HaveItem, names, seqs, numbers, hashes), 0),
        st.booleans(),
    ),
    st.builds(
        frames.View,
        refs,
        st.sampled_from(frames.Membership.__args__),
        numbers,
        numbers,
        retry,
        maybe,
    ),
    st.builds(
        frames.Hello,
        relay=names,
        url=names,
        nonce=nonces,
        limits=st.dictionaries(st.sampled_from(LIMIT_NAMES), numbers),
        time=numbers,
    ),
    _welcomes(inbox=True),
    _welcomes(inbox=False),
    st.builds(
        frames.Submitted,
        _listed(refs),
        maybe,
        _listed(
            st.builds(
                frames.Rejection,
                ref=refs,
                i=st.integers(0, 255),
                error=codes,
                stored=st.sampled_from(["no", "unknown"]),
                detail=names,
                retry_after=retry,
                record=maybe,
            ),
            0,
        ),
    ),
    st.builds(
        frames.Deliver,
        names,
        _listed(st.builds(frames.DeliverItem, seqs, st.booleans(), envelopes)),
    ),
    st.builds(frames.Gap, names, _listed(ranges)),
    st.builds(frames.Acked, names, numbers, many_seqs, many_seqs),
    st.builds(
        frames.Statuses,
        refs,
        _listed(
            st.builds(
                frames.StatusAnswer,
                names,
                st.text("0af-", min_size=1, max_size=36),
                st.sampled_from(frames.State.__args__),
                maybe,
                st.none() | receipts,
            )
        ),
    ),
    st.builds(
        frames.Resolved, refs, st.sampled_from(frames.Resolution.__args__), maybe, st.booleans()
    ),
    st.builds(frames.Published, refs, st.booleans(), seqs, numbers, maybe),
    st.builds(frames.Ruled, refs, first_contacts, _listed(names, 0), _listed(names, 0), numbers),
    st.builds(frames.Error, codes, names, retry, st.none() | refs),
    st.builds(frames.Bye, codes, names, retry, maybe),
)
