"""Who a client is behind proxies, and that nothing but RELAY_TRUSTED_PROXIES decides it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from pathlib import Path

import pytest
from websockets.exceptions import InvalidStatus

from relay import variables
from relay.inbox.client_ip import client_ip, strangers_network
from relay.node.serve import bind, listen
from relay.protocol.dial_allowlist import Networks
from relay.protocol.frames import Submit, Submitted
from tests.support.nodes import dial, get, make_envelope, new_key, running_node, speaker
from tests.support.patience import within
from tests.support.ports import free_port
from tests.support.relay_process import relay_process

pytestmark = pytest.mark.timeout(60)


def seen(trusted: str, *said: str, client: str = "127.0.0.1") -> str:
    """Who dialled, with these X-Forwarded-For lines."""
    headers = [(b"x-forwarded-for", line.encode("latin-1")) for line in said]
    scope = {"client": (client, 5), "headers": [(b"host", b"x"), *headers]}
    return client_ip(scope, Networks.of(trusted.split()))


def test_only_a_trusted_proxys_word_counts():
    assert seen("127.0.0.1", "203.0.113.9, 192.0.2.7") == "192.0.2.7"
    assert seen("", "203.0.113.9, 192.0.2.7") == "127.0.0.1"
    assert seen("127.0.0.2", "192.0.2.7") == "127.0.0.1"
    assert seen("127.0.0.1") == "127.0.0.1"


def test_a_network_is_trusted_and_so_is_each_spelling_of_an_address():
    assert seen("127.0.0.0/8", "192.0.2.7", client="127.9.9.9") == "192.0.2.7"
    assert seen("0:0:0:0:0:0:0:1", "192.0.2.7", client="::1") == "192.0.2.7"
    assert seen("127.0.0.1", "192.0.2.7", client="::ffff:127.0.0.1") == "192.0.2.7"
    assert seen("::ffff:127.0.0.0/104", "192.0.2.7") == "192.0.2.7"
    assert seen("::/0", "192.0.2.7", client="2001:db8::1") == "192.0.2.7"
    assert seen("::/0", "192.0.2.7") == "127.0.0.1"


def test_proxies_in_a_row_are_walked_past_and_what_the_client_wrote_is_not_reached():
    trusted = "127.0.0.1 10.0.0.0/8"
    assert seen(trusted, "192.0.2.7, 10.0.0.5, 10.0.0.6") == "192.0.2.7"
    assert seen(trusted, "10.0.0.9, 192.0.2.7, 10.0.0.5") == "192.0.2.7"
    assert seen(trusted, "203.0.113.9", "192.0.2.7", "10.0.0.5") == "192.0.2.7"
    # a client in a trusted network is one that nobody else speaks for
    assert seen(trusted, "10.0.0.9, 10.0.0.5") == "10.0.0.9"


@pytest.mark.parametrize(
    ("word", "client"),
    [
        ("192.0.2.7:40001", "192.0.2.7"),
        ("[2001:db8::1]:40001", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("2001:DB8:0::1", "2001:db8::1"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("[::ffff:192.0.2.7]:1", "192.0.2.7"),
        # no address: the proxy itself counts as the client
        *[(word, "127.0.0.1") for word in ("unknown", "", "_hidden", "192.0.2.7:x", "[::1", "é")],
        *[(word, "127.0.0.1") for word in ("192.0.2.256", "192.0.2.7/24", "1" * 5_000)],
    ],
)
def test_one_client_has_one_spelling(word: str, client: str):
    assert seen("127.0.0.1", word) == client
    assert seen("127.0.0.1", f"203.0.113.9, {word}") == client


def test_strangers_behind_a_proxy_are_limited_by_their_own_network():
    assert strangers_network(seen("127.0.0.1", "192.0.2.7:9")) == "192.0.2.0/24"


async def test_the_web_server_believes_no_header_where_nobody_is_trusted():
    async with running_node(max_connections_per_ip=1) as node, claiming(node.url, "203.0.113.1"):
        assert await refusal(node.url, "203.0.113.2") == 429


async def test_behind_a_trusted_proxy_each_client_has_its_own_limit():
    trusted = ("127.0.0.0/8",)
    async with (
        running_node(max_connections_per_ip=1, trusted_proxies=trusted) as node,
        claiming(node.url, "203.0.113.1:1"),
        claiming(node.url, "203.0.113.2:1"),
    ):
        assert await refusal(node.url, "203.0.113.1:2") == 429


def test_a_node_on_all_ipv6_addresses_takes_ipv4_too():
    with bind("[::]:0") as bound:
        listen(bound)
        port = bound.getsockname()[1]
        for host in ("127.0.0.1", "::1"):
            socket.create_connection((host, port), timeout=5).close()


@contextlib.asynccontextmanager
async def claiming(url: str, client: str):
    """A connection that says where it comes from."""
    made = await dial(url, additional_headers={"X-Forwarded-For": client})
    try:
        yield
    finally:
        await made.close()


async def refusal(url: str, client: str) -> int:
    with pytest.raises(InvalidStatus) as caught:
        async with claiming(url, client):
            pass
    return caught.value.response.status_code


async def test_hostile_variables_change_nothing(tmp_path: Path):
    """A node with a bad value for each variable that must have no effect."""
    (tmp_path / ".env").write_text("RELAY_MAX_CONNECTIONS_PER_IP=50\nRELAY_LISTEN=nonsense\n")
    metrics, keylog = tmp_path / "metrics", tmp_path / "keylog"
    metrics.mkdir()
    hostile = dict.fromkeys(variables.WITHOUT_EFFECT, "nonsense") | {
        "FORWARDED_ALLOW_IPS": "*",
        "FASTAPI_OTEL_AUTO_CONFIGURE": "true",
        "PROMETHEUS_MULTIPROC_DIR": str(metrics),
        "prometheus_multiproc_dir": str(metrics),
        "SSLKEYLOGFILE": str(keylog),
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{free_port()}",
    }
    proxies = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")
    hostile |= dict.fromkeys(proxies, f"http://127.0.0.1:{free_port()}")
    with listening() as (peer, greeted):
        settings = {
            "RELAY_PEERS": f"{new_key().did}@https://127.0.0.1:{peer}",
            "RELAY_DIAL_NETWORKS": "127.0.0.0/8",
            "RELAY_MAX_CONNECTIONS_PER_IP": "2",
            "RELAY_RETURN_WAIT_S": "0",
            "RELAY_PORT_8080_TCP": "tcp://10.0.0.1:8080",
        }
        async with relay_process(tmp_path / "data", cwd=tmp_path, **hostile, **settings) as relay:
            async with speaker(relay.url) as agent:
                await agent.say(Submit("r", [make_envelope(agent.key, agent.key.did).wire]))
                assert (await agent.hear(Submitted)).receipt
                async with claiming(relay.url, "203.0.113.1"):
                    assert await refusal(relay.url, "203.0.113.2") == 429
            status, said = await get(relay.admin, "/metrics")
            assert status == 200
            assert "relay_envelopes_accepted_total 1.0" in said
            # dialled with TLS, past all proxies
            async with within(20):
                assert (await greeted)[:1] == b"\x16"
    assert b'{"name": "RELAY_PORT_8080_TCP", "event": "unknown_variable"' in relay.said
    assert list(metrics.iterdir()) == []
    assert not keylog.exists()


def test_the_control_a_client_context_of_python_would_write_the_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keylog"))
    assert ssl.create_default_context().keylog_filename == str(tmp_path / "keylog")
    assert (tmp_path / "keylog").exists()


@contextlib.contextmanager
def listening():
    """A port, and what the first one who dials it says."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        greeted = asyncio.ensure_future(first_words(server))
        try:
            yield server.getsockname()[1], greeted
        finally:
            greeted.cancel()


async def first_words(server: socket.socket) -> bytes:
    loop = asyncio.get_running_loop()
    dialled, _ = await loop.sock_accept(server)
    with dialled:
        return await loop.sock_recv(dialled, 1024)
