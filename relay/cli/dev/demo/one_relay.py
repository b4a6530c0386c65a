"""``relay demo``: two agents, one envelope, and a relay that is killed in between.

The demo checks each claim before it prints it. A claim that does not hold ends the demo.
"""

from __future__ import annotations

import asyncio
from typing import Final

from relay.cli.dev.demo import relays
from relay.cli.dev.demo.relays import DemoError, RelayProcess, Story, check, relay_process
from relay.client import Agent, Sent, SigningKey

STEP_S: Final = 15.0
TEXT: Final = "The train leaves at 9. Bring the map."


async def tell(story: Story) -> int:
    """Run it and return the number of envelopes that were accepted and delivered."""
    async with relay_process(story.home) as first:
        await _tell(story, first)
    return 1


async def _tell(story: Story, first: RelayProcess) -> None:
    alice, bob = relays.new_key(), relays.new_key()
    story.tell(f"A relay runs at {first.url} (process {first.process.pid}, its own store).")
    async with asyncio.timeout(STEP_S), Agent.open(bob, first.url):
        story.tell("Bob came once, so that he has an inbox, and went offline.")
    sent = await _send(first, alice, bob)
    story.tell(f"Alice sent Bob a sealed envelope; the relay signed: {sent.durability}.")
    await first.kill()
    story.tell("The relay was killed: kill -9, no goodbye. Bob has still seen nothing.")
    async with relay_process(story.home, first.address) as second:
        check(second.did == first.did, "another relay came back")
        story.tell(f"The relay was started again (process {second.process.pid}).")
        async with asyncio.timeout(STEP_S), Agent.open(bob, second.url) as agent:
            message = await anext(agent.inbox())
            relays.check_message(message, sent, TEXT)
            check(message.sender == alice.did, "it is not from Alice")
            story.tell(f"Bob came online, got it, and checked Alice's signature: {TEXT!r}")
            await message.ack()
            story.tell("Bob acked it; the relay answered when the ack was on its disk.")
        story.tell(await _second_look(second, alice, bob, sent))


async def _send(relay: RelayProcess, alice: SigningKey, bob: SigningKey) -> Sent:
    async with asyncio.timeout(STEP_S), Agent.open(alice, relay.url) as agent:
        sent = await agent.send(bob.did, TEXT)
    relays.check_receipt(sent, relay, bob)
    return sent


async def _second_look(relay: RelayProcess, alice: SigningKey, bob: SigningKey, sent: Sent) -> str:
    async with asyncio.timeout(STEP_S), Agent.open(bob, relay.url) as agent:
        welcome = agent.welcome
    async with asyncio.timeout(STEP_S), Agent.open(alice, relay.url) as agent:
        state = await agent.status(bob.did, sent.id)
    if welcome is None:
        raise DemoError("the relay did not say where Bob's inbox stands")
    pending = welcome.pending
    check(pending.count == 0, f"{pending.count} still wait in Bob's inbox")
    check(pending.refused_count == 0, f"{pending.refused_count} were turned away")
    check(welcome.head == 1, f"Bob's inbox was given {welcome.head} envelopes instead of 1")
    check(welcome.cursor == welcome.head, f"the cursor stands at {welcome.cursor}")
    check(state == "acked", f"the relay tells Alice that her envelope is {state}")
    return (
        f"Bob looked again: empty, and rightly so: cursor {welcome.cursor} = head {welcome.head} "
        f"(all that was ever stored was acked), 0 wait, 0 turned away; "
        f"and Alice, who asked, was told: {state}."
    )
