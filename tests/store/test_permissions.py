"""The user of an external store: what docs/OPERATIONS.md gives it is enough, and needed.

That it is enough is shown by every other test here: their stores are used by that user.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from relay.health import ProblemReason
from relay.inbox.model.types import (
    InboxLimits,
)
from relay.protocol.errors import (
    ErrorCode,
    UnavailableError,
)
from relay.store.redis import RedisStore
from relay.store.redis.permissions import needed
from tests.store.worlds import ME, NODE, RELAY, code, entry, opened
from tests.support.patience import wait_until
from tests.support.relay_process import start_relay
from tests.support.servers import RedisServer
from tests.support.store_user import (
    documented,
    make_user,
    url_of,
)

pytestmark = pytest.mark.timeout(60)
NOT_NEEDED = {"config|get"}
"""Without it a store starts, and nothing is verified."""


async def started(url: str) -> RedisStore:
    store = RedisStore(url, InboxLimits())
    try:
        await store.start(relay=RELAY, node=NODE)
    except UnavailableError:
        await store.stop()
        raise
    return store


def test_the_document_names_what_is_needed_and_nothing_else() -> None:
    commands = {word.removeprefix("+") for word in documented() if word.startswith("+")}
    assert commands == {name.lower() for name in needed(cluster=False)} | NOT_NEEDED
    assert needed(cluster=True) - needed(cluster=False) == {"CLUSTER SLOTS"}


async def test_each_command_that_is_missing_is_named_and_nothing_is_written(
    server: RedisServer,
) -> None:
    for name in sorted(needed(cluster=False)):
        await make_user(server, f"-{name}")
        with pytest.raises(UnavailableError, match=r"may not run|denies a command") as caught:
            await started(url_of(server))
        assert name.lower() in caught.value.detail.lower()
    await make_user(server, "-getrange", "-smembers", "-unlink")
    with pytest.raises(UnavailableError, match="may not run GETRANGE, SMEMBERS, UNLINK on keys"):
        await started(url_of(server))
    await make_user(server)
    store = await started(url_of(server))
    assert store.inboxes.durability == "fsync"
    await store.stop()


@pytest.mark.parametrize("rules", [("resetkeys", "~other:*"), ("resetchannels", "&other:*")])
async def test_keys_and_channels_that_are_not_open_are_named(
    server: RedisServer, rules: tuple[str, ...]
) -> None:
    await make_user(server, *rules)
    with pytest.raises(UnavailableError, match=r"on keys and channels relay:\*"):
        await started(url_of(server))


async def test_without_config_get_a_store_starts_and_is_unverified(server: RedisServer) -> None:
    await make_user(server, "-config|get")
    store = await started(url_of(server))
    assert store.inboxes.durability == "unverified"
    await store.stop()


async def test_what_is_taken_away_later_is_a_named_reason_until_it_is_given_back(
    server: RedisServer,
) -> None:
    await make_user(server, "-config|get")
    store = await started(url_of(server))
    running = asyncio.ensure_future(store.run())
    seen: list[str] = []
    found = store.health.found

    def noted(reason: ProblemReason, detail: str | None) -> None:
        seen.extend([reason] if detail is not None else [])
        found(reason, detail)

    store.health.found = noted  # type: ignore[method-assign]
    try:
        for taken in ("-xadd", "-info"):
            await make_user(server, "-config|get", taken)
            await wait_until(lambda: store.health.has(ProblemReason.STORE_DENIES), 8, taken)
            [denied] = [
                one for one in store.health.problems if one.reason is ProblemReason.STORE_DENIES
            ]
            assert f"may not run {taken[1:].upper()} on keys" in denied.detail
            await make_user(server, "-config|get")
            await wait_until(lambda: not store.health.has(ProblemReason.STORE_DENIES), 8, "mended")
        # it answers, all the time
        assert set(seen) == {ProblemReason.STORE_DENIES, ProblemReason.STORE_UNVERIFIED}
    finally:
        running.cancel()
        await asyncio.wait([running])
        await store.stop()


async def test_a_permission_that_is_taken_away_later_is_no_bug_of_the_relay(
    server: RedisServer,
) -> None:
    await make_user(server)
    store = await started(url_of(server))
    session = await opened(store)
    await make_user(server, "-evalsha", "-eval")
    [answer] = await store.inboxes.append([entry(1)])
    assert code(answer) is ErrorCode.STORAGE_UNAVAILABLE
    await make_user(server)
    assert await store.inboxes.close(ME, session.fence, session.head)
    await store.stop()


async def test_a_node_says_what_is_missing_and_ends_with_1(
    server: RedisServer, tmp_path: Path
) -> None:
    await make_user(server, "-zadd")
    url = url_of(server)
    with pytest.raises(AssertionError, match="may not run ZADD on keys") as refused:
        await start_relay(tmp_path / "data", RELAY_REDIS_URL=url)
    assert "ended with 1" in str(refused.value)
    assert "Traceback" not in str(refused.value)
