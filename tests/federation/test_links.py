"""Links over real sockets: who is let in, who answers, what an end tells those who wait."""

from __future__ import annotations

import asyncio

import pytest

from relay import clock, metrics
from relay.peering import link as link_module
from relay.peering import links as links_module
from relay.peering.link import log_in
from relay.peering.links import Links
from relay.protocol import frames
from relay.protocol import jws as jose
from relay.protocol.errors import ErrorCode, RejectedError, RelayError, UnavailableError
from relay.protocol.frames import (
    Ack,
    Bye,
    Error,
    Gossip,
    Publish,
    Resolve,
    Resolved,
    Rules,
    Status,
    StatusItem,
    Submit,
    Submitted,
)
from relay.protocol.ids import Epoch
from relay.protocol.receipts import ReceiptItem
from tests.federation.linked_nodes import (
    Chooser,
    Dialler,
    peer,
    places,
    relay_at,
    running_links,
    until,
)
from tests.support.nodes import dial, make_envelope, new_key, running_node, speaker

CLOSED = {"federation": "closed"}


# ---------------------------------------------------------------- who is let in


async def test_a_relay_that_the_operator_added_logs_in_and_gets_no_inbox():
    key = new_key()
    async with (
        running_node(peers=(f"{key.did}@http://127.0.0.1:1",)) as node,
        peer(node.url, node.parts.key.did, key) as there,
    ):
        assert there.ready.welcome.inbox is False
        assert node.parts.peers.inbound == {key.did: 1}
        await there.socket.close()
        await until(lambda: not node.parts.peers.inbound)


@pytest.mark.parametrize(
    ("mode", "denied", "code"),
    [
        ("closed", False, ErrorCode.NOT_FEDERATED),
        ("off", False, ErrorCode.NOT_FEDERATED),
        ("open", True, ErrorCode.BLOCKED),
    ],
)
async def test_a_relay_that_this_one_does_not_deal_with_is_refused_by_name(mode, denied, code):
    key = new_key()
    deny = (key.did,) if denied else ()
    async with running_node(federation=mode, deny=deny) as node:
        with pytest.raises(RelayError) as caught:
            async with peer(node.url, node.parts.key.did, key):
                pass
        assert caught.value.code is code


async def test_open_federation_takes_a_relay_that_nobody_has_blocked():
    async with (
        running_node(federation="open") as node,
        peer(node.url, node.parts.key.did) as there,
    ):
        assert there.ready.welcome.session is None


async def test_a_dialler_that_expects_another_relay_there_goes_no_further():
    async with running_node(federation="open") as node:
        with pytest.raises(RelayError) as caught:
            async with peer(node.url, new_key().did):
                pass
        assert caught.value.code is ErrorCode.WRONG_RELAY
        assert not node.parts.peers.inbound


# ---------------------------------------------------------------- who may say what


@pytest.mark.parametrize(
    "frame",
    [Ack(Epoch("e")), Publish("p", "x"), Rules("r"), Gossip(ref="g", records=("x",))],
    ids=lambda frame: type(frame).__name__,
)
async def test_a_peer_that_sends_an_agents_frame_gets_an_error_and_is_cut_off(frame):
    async with (
        running_node(federation="open") as node,
        peer(node.url, node.parts.key.did) as there,
    ):
        await there.say(frame)
        assert (await there.hear(Bye)).error is ErrorCode.BAD_FRAME


@pytest.mark.parametrize(
    "frame",
    [
        Gossip(("x",)),
        Submit("s", [{"jws": "a.b.c", "body": ""}], hops=(new_key().did,)),
        Submit("s", [{"jws": "a.b.c", "body": ""}], marked=(0,)),
        Status("q", (StatusItem(new_key().did, "i", new_key().did),)),
    ],
    ids=["gossip", "hops", "marked", "from"],
)
async def test_an_agent_that_sends_a_peers_frame_gets_an_error_and_is_cut_off(frame):
    async with running_node(federation="open") as node, speaker(node.url) as agent:
        await agent.say(frame)
        assert (await agent.hear(Bye)).error is ErrorCode.BAD_FRAME


@pytest.mark.parametrize("count", [1, 3, 4])
async def test_envelopes_that_were_here_or_at_too_many_relays_go_no_further(count):
    wire = jose.loads(make_envelope(new_key(), new_key().did).wire)
    async with (
        running_node(federation="open") as node,
        peer(node.url, node.parts.key.did) as there,
    ):
        hops = tuple(new_key().did for _ in range(count))
        here = (*hops[1:], node.parts.key.did)
        await there.say(Submit("circle", [wire], here))
        assert (await there.hear(Error)).ref == "circle"
        await there.say(Submit("far", [wire], hops))
        reply = await there.hear(Error, Submitted)
        if count > 3:
            assert (reply.error, reply.ref) == (ErrorCode.TOO_MANY_HOPS, "far")
        else:
            assert reply.rejected[0].error is ErrorCode.UNKNOWN_INBOX


# ---------------------------------------------------------------- a link at work


async def test_a_link_carries_submits_and_questions_and_tells_answers_apart():
    alice, bob, nobody = new_key(), new_key(), new_key()
    async with (
        running_node(federation="open") as node,
        speaker(node.url, bob),
        running_links(Links(new_key(), Dialler(), Chooser())) as links,
    ):
        link = await links.reach(node.parts.key.did, node.url)
        wires = [make_envelope(alice, to.did).wire for to in (bob, nobody)]
        good, bad, found = await asyncio.gather(
            link.submit(wires[:1]),
            link.submit(wires[1:]),
            link.ask(lambda ref: Resolve(ref, bob.did)),
        )
        assert good.receipt is not None
        assert [type(one) for one in good.outcomes] == [ReceiptItem]
        assert [no.error for no in bad.outcomes] == [ErrorCode.UNKNOWN_INBOX]
        assert isinstance(found, Resolved)
        assert found.state == "absent"


async def test_many_who_want_one_relay_share_one_dial():
    dialler = Dialler()
    async with (
        running_node(federation="open") as node,
        running_links(Links(new_key(), dialler, Chooser())) as links,
    ):
        did = node.parts.key.did
        found = await asyncio.gather(*(links.reach(did, node.url) for _ in range(20)))
        assert len(set(map(id, found))) == 1
        assert dialler.dialled == [node.url]


async def test_a_wrong_relay_at_a_host_does_not_keep_the_right_one_from_being_dialled():
    dialler = Dialler()
    async with (
        running_node(federation="open") as node,
        running_links(Links(new_key(), dialler, Chooser())) as links,
    ):
        wrong = new_key().did
        for _ in range(3):
            with pytest.raises(UnavailableError) as caught:
                await links.reach(wrong, node.url)
            assert caught.value.retry_after
        assert len(dialler.dialled) == 1, "and is itself not dialled again at once"
        assert await links.reach(node.parts.key.did, node.url)


class Slow(Dialler):
    """A dialler that is slow if nobody answers."""

    async def websocket(self, origin):
        if "slow" in origin:
            await asyncio.sleep(60)
        return await super().websocket(origin)


async def test_dials_that_records_ask_for_leave_room_for_the_relays_that_are_chosen(monkeypatch):
    monkeypatch.setattr(links_module, "MAX_UNKNOWN_DIALS", 3)
    chooser = Chooser()
    async with (
        running_node(federation="open") as node,
        running_links(Links(new_key(), Slow(), chooser), chooser) as links,
        asyncio.TaskGroup() as tasks,
    ):
        slow = [
            tasks.create_task(links.reach(new_key().did, f"https://slow{n}.example"))
            for n in range(3)
        ]
        await asyncio.sleep(0)
        with pytest.raises(UnavailableError) as caught:
            await links.reach(new_key().did, "https://slow.example")
        assert "too many" in caught.value.detail
        chooser.wanted = [(node.parts.key.did, node.url)]
        await until(links.live)
        for task in slow:
            task.cancel()


class Nobody(Dialler):
    """No dial comes through."""

    async def websocket(self, origin):
        raise UnavailableError(ErrorCode.PEER_UNREACHABLE, f"nobody is at {origin}")


async def test_a_record_that_names_a_wrong_place_says_nothing_of_the_relay():
    chooser = Chooser()
    async with running_links(Links(new_key(), Nobody(), chooser), chooser) as links:
        relay = new_key().did
        chooser.wanted = [(relay, "http://127.0.0.1:1")]
        await until(lambda: chooser.notes == [("missed", relay, ErrorCode.PEER_UNREACHABLE)])
        with pytest.raises(UnavailableError):
            await links.reach(relay, "http://127.0.0.1:2")
        assert links.backoff(relay, "http://127.0.0.1:2")
        assert len(chooser.notes) == 1


async def test_a_peers_refusal_is_reported_as_one():
    async with (
        running_node(**CLOSED) as node,
        running_links(Links(new_key(), Dialler(), Chooser())) as links,
    ):
        with pytest.raises(RejectedError) as caught:
            await links.reach(node.parts.key.did, node.url)
        assert caught.value.code is ErrorCode.NOT_FEDERATED


async def test_the_end_of_a_link_ends_all_waits_and_a_desired_link_comes_back():
    key, chooser = new_key(), Chooser()
    async with running_links(Links(new_key(), Dialler(), chooser), chooser) as links:
        async with running_node(federation="open", key=key) as node:
            chooser.wanted = [(key.did, node.url)]
            await until(links.live)
            port = node.url.rpartition(":")[2]
            link = links.live()[0]
        await until(lambda: not links.live())
        with pytest.raises(UnavailableError):
            await link.submit([make_envelope(new_key(), key.did).wire])
        assert ("went", key.did, ErrorCode.DRAINING) in chooser.notes
        async with running_node(federation="open", key=key, listen=f"127.0.0.1:{port}"):
            await until(links.live)
            assert chooser.notes[-1] == ("came", key.did)


async def test_a_push_into_a_full_queue_returns_that_it_was_dropped():
    async with (
        running_node(federation="open") as node,
        running_links(Links(new_key(), Dialler(), Chooser())) as links,
    ):
        link = await links.reach(node.parts.key.did, node.url)
        taken = [link.push(Gossip(("x",))) for _ in range(100)]
        assert taken[0]
        assert not taken[-1]


async def test_who_says_goodbye_and_hangs_up_at_once_is_no_bug_of_the_relay():
    before = metrics.INTERNAL._value.get()
    async with running_node(federation="open") as node:
        for _ in range(10):
            async with running_links(Links(new_key(), Dialler(), Chooser())) as links:
                await links.reach(node.parts.key.did, node.url)
                await links.drain()
        await until(lambda: not node.parts.peers.inbound)
    assert metrics.INTERNAL._value.get() == before


async def test_an_answer_that_nobody_waits_for_any_more_does_no_harm():
    alice, bob = new_key(), new_key()
    async with (
        running_node(federation="open") as node,
        speaker(node.url, bob),
        running_links(Links(new_key(), Dialler(), Chooser())) as links,
    ):
        link = await links.reach(node.parts.key.did, node.url)
        async with asyncio.TaskGroup() as tasks:
            given_up = tasks.create_task(link.submit([make_envelope(alice, bob.did).wire]))
            await asyncio.sleep(0)
            given_up.cancel()
        taken = await link.submit([make_envelope(alice, bob.did).wire])
        assert len(taken.outcomes) == 1
        assert link.ended is None


class Flooding:
    """A connection on which frames come that nobody asked for, without end."""

    def __init__(self, frame: bytes) -> None:
        self.transport = self
        self.read = 0
        self._frame = frame

    async def recv(self, *, decode: bool) -> bytes:
        assert not decode
        self.read += 1
        return self._frame

    async def close(self) -> None:
        pass

    def abort(self) -> None:
        pass


async def test_what_a_relay_pushes_without_being_asked_is_read_at_a_rate(monkeypatch):
    frame = frames.encode(Gossip(("x",) * 500))
    monkeypatch.setattr(link_module, "MAX_UNASKED_BYTES_PER_S", 10 * len(frame))
    async with running_node(federation="open") as node:
        socket = await dial(node.url)
        link = await log_in(socket, new_key(), node.url, node.parts.key.did)
        flood = link._socket = Flooding(frame)
        began = clock.monotonic()
        running = asyncio.create_task(link.run())
        await until(lambda: flood.read == 6)
        assert clock.monotonic() - began > 0.4
        assert link.ended is None
        link.close()
        await running
        await socket.close()


class Stall:
    """A way to a relay on which, after a call, nothing comes through any more."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.stalled = asyncio.Event()

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._port)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._pump(reader, far_writer))
            tasks.create_task(self._pump(far_reader, writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                if not self.stalled.is_set():
                    writer.write(data)
        except ConnectionError:
            pass
        finally:
            writer.close()


async def test_a_line_on_which_nothing_comes_back_is_given_up_long_before_its_ping_dies(
    monkeypatch,
):
    monkeypatch.setattr(link_module, "ASK_S", 0.3)
    [back] = places(1)
    stall = Stall(back.port)
    server = await asyncio.start_server(stall.carry, "127.0.0.1", 0)
    way = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with (
        server,
        relay_at(back, federation="open", public_url=way),
        running_links(Links(new_key(), Dialler(), Chooser())) as links,
    ):
        link = await links.reach(back.did, way)
        stall.stalled.set()
        with pytest.raises(UnavailableError):
            await link.ask(lambda ref: Resolve(ref, new_key().did))
        assert link.ended
        stall.stalled.clear()
        await until(lambda: not links.live())
