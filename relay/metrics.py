"""Every metric of a node; labels are few and bounded: codes and kinds, never DIDs or addresses."""

from __future__ import annotations

from typing import Final

from prometheus_client import REGISTRY, Counter, Gauge, Histogram, generate_latest

ACCEPTED: Final = Counter("relay_envelopes_accepted_total", "Envelopes stored, duplicates aside.")
DUPLICATES: Final = Counter("relay_envelopes_duplicate_total", "Envelopes found stored before.")
REJECTED: Final = Counter("relay_envelopes_rejected_total", "Envelopes not stored.", ["code"])
DELIVERED: Final = Counter(
    "relay_envelopes_delivered_total", "Envelopes handed over.", ["redelivered"]
)
DELIVERED_FIRST: Final = DELIVERED.labels(False)
DELIVERED_AGAIN: Final = DELIVERED.labels(True)
ACKED: Final = Counter("relay_envelopes_acked_total", "Envelopes durably acked.")
REFUSED: Final = Counter("relay_envelopes_refused_total", "Envelopes refused by their recipient.")
EXPIRED: Final = Counter("relay_envelopes_expired_total", "Envelopes ended by a sweep.")
BOUNCES: Final = Counter("relay_bounces_total", "Bounce envelopes by outcome.", ["outcome"])
FORWARDED: Final = Counter("relay_envelopes_forwarded_total", "Envelopes taken over by peers.")
FORWARD_FAILURES: Final = Counter(
    "relay_forward_failures_total", "Submits to peers without an answer, by code.", ["code"]
)
DEAD_LETTERS: Final = Counter(
    "relay_dead_letters_total", "Envelopes that a peer will never take, by code.", ["code"]
)
FORWARDERS: Final = Gauge("relay_couriers", "Inboxes that couriers of this node carry.")
OUTBOX_ENVELOPES: Final = Gauge(
    "relay_outbox_envelopes", "Envelopes in this relay's store that wait for other relays."
)
OUTBOX_BYTES: Final = Gauge("relay_outbox_bytes", "Wire bytes of those.")
OUTBOX_PEERS: Final = Gauge("relay_outbox_peers", "Relays for which some of those wait.")
COMMITS: Final = Counter("relay_commits_total", "Commits of accepts.")
COMMIT_SECONDS: Final = Histogram(
    "relay_commit_seconds",
    "Time of one commit, as the node sees it.",
    buckets=(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 2.0),
)
COMMIT_SIZE: Final = Histogram(
    "relay_commit_envelopes", "Envelopes in one commit.", buckets=(1, 4, 16, 64, 256, 512)
)
CONNECTIONS: Final = Gauge("relay_connections", "Open WebSocket connections.")
SESSIONS: Final = Gauge("relay_sessions", "Logged-in conversations.")
SESSION_ENDS: Final = Counter("relay_session_ends_total", "Ended conversations.", ["code"])
LOGINS: Final = Counter("relay_logins_total", "Logins by outcome.", ["outcome"])
LINKS: Final = Gauge("relay_links", "Links to other relays that stand.")
DIALS: Final = Counter("relay_dials_total", "Dials of other relays by outcome.", ["outcome"])
GOSSIP_DROPPED: Final = Counter(
    "relay_gossip_dropped_total", "Gossip given up, by where; pulls repair it.", ["where"]
)
GOSSIP: Final = Counter(
    "relay_gossip_records_total", "Records passed between relays.", ["way", "outcome"]
)
PULLS: Final = Counter("relay_pulls_total", "Comparisons of directories.", ["outcome"])
STRIKES: Final = Counter("relay_peer_strikes_total", "Forged records that peers passed on.")
RECORDS: Final = Gauge("relay_directory_records", "Endpoint records held, as this node knows.")
RETURNING: Final = Gauge(
    "relay_returning", "1 while other relays are asked where the agents of this one live now."
)
UNASKED: Final = Gauge(
    "relay_unasked", "1 where agents were let in and no other relay has told where they live."
)
PROBLEM: Final = Gauge(
    "relay_problem", "1 while this is wrong around the node; /readyz has the sentence.", ["reason"]
)
CLOCK_AHEAD: Final = Gauge(
    "relay_store_clock_ahead_seconds", "How far the store's clock is ahead of the node's."
)
READY: Final = Gauge("relay_ready", "1 where /readyz says yes.")
STORE_UP: Final = Gauge("relay_store_up", "1 where the store answers.")
CLOCK_OK: Final = Gauge("relay_clock_ok", "1 where the clock is believed.")
HANDOFFS: Final = Gauge("relay_handoffs", "Inboxes that change relays and are not done.")
DIGEST_FAILURES: Final = Counter(
    "relay_digest_failures_total", "Digests that a target did not take, by code.", ["code"]
)
LOOP_FAILURES: Final = Counter("relay_loop_failures_total", "Failed turns of loops.", ["loop"])
INTERNAL: Final = Counter("relay_internal_errors_total", "Bugs.")


def render() -> bytes:
    """All metrics in Prometheus' text format."""
    return generate_latest(REGISTRY)
