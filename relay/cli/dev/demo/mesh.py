"""``relay demo mesh``: a handle, three relays, and one of them is killed.

A has no peers, B starts with A, C with B; gossip does the rest. The demo asks only the relay's
own store for a record, so that no relay fetches it for the answer.

::

    alice ── A ◀── B ── dave           A, B, C: a process and a store each
                   ▲
                   C ── carol@C
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Final

from relay import clock
from relay.cli.dev.demo import relays
from relay.cli.dev.demo.relays import RelayProcess, Story, check, relay_process
from relay.client import Agent, Sent, SigningKey
from relay.client.http.origin import parse as parse_origin
from relay.client.http.transport import request_json
from relay.protocol.ids import Did

STEP_S: Final = 15.0
LOOK_S: Final = 0.05
TEXTS: Final = ("Meet me at the bridge.", "Bring the boat instead.")
OPEN: Final = {"RELAY_FEDERATION": "open", "RELAY_DIAL_NETWORKS": "127.0.0.0/8"}


async def tell(story: Story) -> int:
    """Run it and return the number of envelopes that were accepted and arrived."""
    async with AsyncExitStack() as stack:
        a = await stack.enter_async_context(relay_process(story.home / "A", settings=OPEN))
        b = await stack.enter_async_context(relay_process(story.home / "B", settings=OPEN, knows=a))
        alice, carol, dave = (relays.new_key() for _ in range(3))
        c_home = story.home / "C"
        async with relay_process(c_home, settings=OPEN, knows=b) as c:
            story.tell(
                f"Three relays run, each a process with its own store: A {a.url}, B {b.url}, "
                f"C {c.url}. B was told of A, C of B; nobody was told of C."
            )
            await _first_envelope(story, (a, c), alice, carol)
            await c.kill()
        story.tell("C was killed: kill -9, no goodbye.")
        sent = await _second_envelope(story, a, alice, carol)
        await _news(story, (a, b), dave)
        again = await stack.enter_async_context(relay_process(c_home, c.address, OPEN, knows=b))
        check(again.did == c.did, "another relay came back")
        story.tell(f"C was started again (process {again.process.pid}).")
        back_at = clock.monotonic()
        await _arrival(story, again, carol, sent)
        await _until_known(again, dave.did)
        story.tell(
            f"C knows where Dave lives, {clock.monotonic() - back_at:.1f} s after it was back: "
            "what it missed it was told."
        )
        await _last_look(story, a, alice, carol, sent)
    return len(TEXTS)


async def _first_envelope(
    story: Story, ends: tuple[RelayProcess, RelayProcess], alice: SigningKey, carol: SigningKey
) -> None:
    a, c = ends
    handle = f"carol@{c.url.removeprefix('http://')}"
    async with asyncio.timeout(STEP_S), Agent.open(carol, c.url) as listener:
        await listener.publish(handles=[handle])
        story.tell(f"Carol lives at C and is called {handle}.")
        took = await _until_known(a, carol.did)
        story.tell(f"A, which nobody told of C, knows where Carol lives, {took:.1f} s later.")
        async with Agent.open(alice, a.url) as writer:
            began = clock.monotonic()
            sent = await writer.send(handle, TEXTS[0])
            _check_receipt(sent, a, carol)
            message = await anext(listener.inbox())
            arrived = clock.monotonic() - began
            relays.check_message(message, sent, TEXTS[0])
            check(message.sender == alice.did, "it is not from who it should be")
            await message.ack()
            story.tell(
                "Alice at A wrote to that handle, and checked herself where it leads. "
                f"A signed: {sent.durability}, {sent.custody}; {arrived * 1000:.0f} ms later Carol "
                f"had it at C, checked Alice's signature, and acked: {TEXTS[0]!r}"
            )


async def _second_envelope(
    story: Story, a: RelayProcess, alice: SigningKey, carol: SigningKey
) -> Sent:
    async with asyncio.timeout(STEP_S), Agent.open(alice, a.url) as writer:
        sent = await writer.send(carol.did, TEXTS[1])
        _check_receipt(sent, a, carol)
        state = await writer.status(carol.did, sent.id)
    check(state == "stored", f"A says that the second envelope is {state}")
    story.tell("Alice wrote again. A signed for it and keeps it, since C cannot be reached.")
    return sent


async def _news(story: Story, ends: tuple[RelayProcess, RelayProcess], dave: SigningKey) -> None:
    a, b = ends
    async with asyncio.timeout(STEP_S), Agent.open(dave, b.url):
        took = await _until_known(a, dave.did)
    story.tell(f"Meanwhile Dave came to B; A knew it {took:.1f} s later. C does not.")


async def _arrival(story: Story, c: RelayProcess, carol: SigningKey, sent: Sent) -> None:
    began = clock.monotonic()
    async with asyncio.timeout(STEP_S), Agent.open(carol, c.url) as listener:
        message = await anext(listener.inbox())
        took = clock.monotonic() - began
        relays.check_message(message, sent, TEXTS[1])
        await message.ack()
    story.tell(f"A brought it over by itself; Carol had it {took:.1f} s after: {TEXTS[1]!r}")


async def _last_look(
    story: Story, a: RelayProcess, alice: SigningKey, carol: SigningKey, sent: Sent
) -> None:
    async with asyncio.timeout(STEP_S), Agent.open(alice, a.url) as writer:
        state = await writer.status(carol.did, sent.id)
        while state in {"stored", "forwarded"}:
            await asyncio.sleep(LOOK_S)
            state = await writer.status(carol.did, sent.id)
    check(state == "acked", f"A tells Alice that her envelope is {state}")
    story.tell(f"Alice asked A what became of it, and was told: {state}.")


def _check_receipt(sent: Sent, relay: RelayProcess, to: SigningKey) -> None:
    relays.check_receipt(sent, relay, to)
    check(sent.custody == "outbox", f"the receipt speaks of custody {sent.custody}")


async def _until_known(relay: RelayProcess, did: Did) -> float:
    """Wait until a relay's own store has an agent's record; return the seconds it took."""
    origin, began = parse_origin(relay.url), clock.monotonic()
    async with asyncio.timeout(STEP_S):
        while True:
            answer = await request_json(origin, "GET", f"/v1/agents/{did}")
            if answer.text("state", limit=16) == "found":
                return clock.monotonic() - began
            await asyncio.sleep(LOOK_S)
