"""A node that has started reads nothing of its package: an upgrade below it changes nothing."""

from __future__ import annotations

import os
import re
import signal

import pytest

from relay.protocol.frames import (
    Ack,
    Acked,
    Deliver,
    Resolve,
    Rules,
    Status,
    StatusItem,
    Submit,
    Submitted,
)
from relay.protocol.ids import Did, Seq
from tests.node.test_http import client, log_in, submit
from tests.support.nodes import dial, make_envelope, new_key, running_node, speaker
from tests.support.patience import wait_until
from tests.support.relay_process import RelayProcess, relay_process

pytestmark = pytest.mark.timeout(60)


async def test_after_the_start_no_file_of_a_package_is_opened_and_nothing_imported(tmp_path):
    async with running_node(federation="open", dial_networks=("127.0.0.0/8",)) as other:
        settings = {
            "RELAY_FEDERATION": "open",
            "RELAY_DIAL_NETWORKS": "127.0.0.0/8",
            "RELAY_RETURN_WAIT_S": "0",
        }
        async with relay_process(
            tmp_path / "data", module="tests.support.watched_relay", **settings
        ) as relay:
            await converse(relay.url, other.url)
            await ask_over_http(relay.url, relay.admin, other.url)
            await kill_the_store(relay)
    said = relay.said.decode()
    before, started, after = said.partition('"event": "node_started"')
    assert "LATE import" in before, said
    assert started
    late = [line for line in after.splitlines() if line.startswith("LATE")]
    # FastAPI looks up in which line a route is written, for texts of errors that nobody is shown
    late = [line for line in late if not re.fullmatch(r"LATE open .*/relay/http/\w+\.py", line)]
    assert not late, "\n".join(late)


async def converse(url: str, other: str) -> None:
    """What an agent says over a socket, also to one that lives elsewhere, and to one it is not."""
    async with speaker(other) as carol, speaker(url) as alice, speaker(url) as bob:
        for to in (bob.key.did, carol.key.did, new_key().did):
            await alice.say(Submit("s", [make_envelope(alice.key, to).wire]))
            await alice.hear(Submitted)
        page = await bob.hear(Deliver)
        await bob.say(Ack(page.epoch, upto=Seq(1)))
        await bob.hear(Acked)
        await alice.say(Rules("r"))
        await alice.say(Resolve("q", did=carol.key.did))
        await alice.say(Resolve("h", handle="alice@nowhere.invalid"))
        await alice.say(Status("t", (StatusItem(Did(bob.key.did), "x"),)))
        await alice.socket.send("no frame")
        await alice.socket.wait_closed()
    silent = await dial(url)
    await silent.close()


async def ask_over_http(url: str, admin: str, other: str) -> None:
    """Each route once, right or wrong."""
    async with client(url) as http:
        agent = await log_in(http, new_key())
        await submit(http, make_envelope(agent.key, agent.key.did).wire)
        assert (await agent.inbox(wait=1))["items"]
        await agent.ack(upto=1)
        bearer = {"headers": agent.bearer}
        for path in (
            "/v1/inbox/rules", f"/v1/agents/{agent.key.did}", "/.well-known/agent-relay.json",
            "/.well-known/webfinger?resource=acct:x@127.0.0.1", "/v1/handles/x@nowhere.invalid",
            f"/v1/agents/{agent.key.did}/envelopes/x", "/v1/inbox?wait=99", "/none",
            "/openapi.json",
        ):  # fmt: skip
            await http.get(path, **bearer)
        for path in ("/v1/migrations", "/v1/envelopes", "/v1/session"):
            assert (await http.post(path, content=b"{")).status_code == 400
        await http.patch("/v1/inbox/rules", json={"first_contact": "refuse"}, **bearer)
        await http.put(f"/v1/agents/{agent.key.did}", json={"record": "x"})
    async with client(admin) as http:
        assert (await http.post("/v1/admin/peers", json={"url": other})).status_code == 200
        for path in ("/livez", "/readyz", "/metrics", "/v1/admin/clock", "/v1/admin/peers"):
            assert (await http.get(path)).status_code == 200


async def kill_the_store(relay: RelayProcess) -> None:
    """Its supervisor starts it again."""
    async with speaker(relay.url) as alice:
        os.kill(relay.store_pid(), signal.SIGKILL)

        async def stored() -> bool:
            await alice.say(Submit("a", [make_envelope(alice.key, alice.key.did).wire]))
            return (await alice.hear(Submitted)).receipt is not None

        await wait_until(stored, 20, "the store is back")
