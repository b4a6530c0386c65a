"""``relay check`` and ``relay bench`` as a person runs them."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import shutil
import ssl
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from relay.cli.exit_codes import Exit
from relay.cli.node.check import clock_finding
from tests.cli.terminal import ROOT, Terminal, stalling
from tests.support.nodes import running_node
from tests.support.ports import free_port
from tests.support.relay_process import relay_process

pytestmark = pytest.mark.timeout(60)

ALL = [
    "address", "information", "origin", "durability", "registration", "contact", "operator",
    "login", "same relay", "clock", "limits", "stored", "delivered", "acked",
]  # fmt: skip


def levels(done) -> dict[str, str]:
    return {item["name"]: item["level"] for item in done.json["findings"]}


async def test_a_good_relay_passes_every_check(tmp_path):
    async with relay_process(tmp_path / "relay", RELAY_CONTACT="mailto:op@example.org") as relay:
        terminal = Terminal(tmp_path)
        done = await terminal.run("check", relay.url, "--json")
        assert (done.code, done.json["ok"], done.json["relay"]) == (0, True, relay.did)
        assert levels(done) == dict.fromkeys(ALL, "ok")
        assert all(
            item["ms"] is not None
            for item in done.json["findings"]
            if item["name"] in {"information", "login", "stored", "delivered", "acked"}
        )
        said = await terminal.run("check", relay.url)
        assert (said.code, said.err) == (0, "")
        assert [line[6:].split("  ")[0] for line in said.out.splitlines()] == ALL
        assert "promises fsync (" in said.out
        # a key made for it: nothing of the user's is touched, and none is made
        assert not (tmp_path / ".config").exists()


async def test_a_relay_in_memory_works_and_is_warned_of(tmp_path):
    async with running_node() as node:
        done = await Terminal(tmp_path).run("check", node.url, "--json")
        assert (done.code, levels(done)["durability"], levels(done)["contact"]) == (
            0,
            "warn",
            "warn",
        )
        quiet = await Terminal(tmp_path).run("check", node.url, "--no-send", "--json")
    assert list(levels(quiet)) == ALL[:-3]


async def test_a_relay_behind_another_name_fails_and_says_why(tmp_path):
    listen = f"127.0.0.1:{free_port()}"
    async with running_node(listen=listen, public_url="http://127.0.0.1:1"):
        done = await Terminal(tmp_path).run("check", f"http://{listen}")
    assert done.code == Exit.REFUSED
    assert "FAIL  origin        it says that agents dial it at http://127.0.0.1:1" in done.out
    assert "FAIL  login         wrong_relay" in done.out


async def test_a_relay_that_admits_only_some_is_looked_at_as_far_as_that_goes(tmp_path):
    async with running_node(registration="allow") as node:
        done = await Terminal(tmp_path).run("check", node.url, "--json")
    assert (done.code, levels(done)["login"], "stored" in levels(done)) == (0, "warn", False)


async def test_nobody_there_and_one_that_never_answers_are_unavailable(tmp_path):
    terminal = Terminal(tmp_path)
    nobody = await terminal.run("check", f"http://127.0.0.1:{free_port()}", "--json")
    assert (nobody.code, levels(nobody)["information"]) == (Exit.UNAVAILABLE, "FAIL")
    async with stalling() as quiet:
        silent = await terminal.run("check", quiet.url)
    assert (silent.code, "FAIL  information" in silent.out) == (Exit.UNAVAILABLE, True)


@pytest.mark.parametrize("answer", [b"<html>", b'{"jws":"a.b.c"}', b'{"jws":1}', b"{}"])
async def test_what_is_no_relay_fails(tmp_path, answer):
    async with stalling(answer) as other:
        other.go.set()
        done = await Terminal(tmp_path).run("check", other.url, "--json")
    assert done.code in {Exit.REFUSED, Exit.UNAVAILABLE}
    assert levels(done) == {"address": "ok", "information": "FAIL"}


async def test_information_that_somebody_else_signed_fails(tmp_path):
    async with running_node() as node:
        reader, writer = await asyncio.open_connection(*node.url.removeprefix("http://").split(":"))
        writer.write(b"GET /.well-known/agent-relay.json HTTP/1.0\r\n\r\n")
        answer = (await reader.read()).partition(b"\r\n\r\n")[2]
        writer.close()
    head, payload, signature = json.loads(answer)["jws"].split(".")
    forged = f"{head}.{payload}.{signature[:40]}{'A' * (len(signature) - 40)}"
    async with stalling(json.dumps({"jws": forged}).encode()) as other:
        other.go.set()
        done = await Terminal(tmp_path).run("check", other.url)
    assert (done.code, "bad_signature" in done.out) == (Exit.REFUSED, True)


async def test_a_plain_address_beyond_this_machine_fails_before_anything_is_sent(tmp_path):
    done = await Terminal(tmp_path).run("check", "http://relay.example")
    assert (done.code, "use https://" in done.out) == (Exit.REFUSED, True)
    wrong = await Terminal(tmp_path).run("check", "relay.example")
    assert (wrong.code, wrong.out) == (Exit.USAGE, "")


def certificate(directory: Path, days: int = 1) -> Path:
    """A key and a certificate of its own for localhost."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.UTC)
    until = now + dt.timedelta(days, hours=1)
    built = x509.CertificateBuilder(name, name, key.public_key(), 1, now, until)
    names = x509.SubjectAlternativeName([x509.DNSName("localhost")])
    built = built.add_extension(names, critical=False)
    built = built.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    built = built.add_extension(identifier, critical=False)
    pem = built.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    kind = serialization.PrivateFormat.PKCS8
    (directory / "cert").write_bytes(pem)
    pem += key.private_bytes(serialization.Encoding.PEM, kind, serialization.NoEncryption())
    (directory / "pem").write_bytes(pem)
    return directory / "pem"


@dataclass
class Front:
    """What stands before a relay, perhaps with TLS, and answers some paths by itself."""

    target: int
    answers: dict[str, bytes] = field(default_factory=dict)

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            writer.close()
            return
        answer = self.answers.get(head.split()[1].decode())
        if answer is not None:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(answer))
            writer.write(answer)
            writer.close()
            return
        away, out = await asyncio.open_connection("127.0.0.1", self.target)
        out.write(head)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(pour(reader, out))
            tasks.create_task(pour(away, writer))


async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Hand on until one side ends; a client may end by a reset."""
    with contextlib.closing(writer), contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()


@contextlib.asynccontextmanager
async def fronted(pem: Path | None = None):
    """A real node behind a front of its public origin."""
    near, far = free_port(), free_port()
    url = f"https://localhost:{near}" if pem else f"http://127.0.0.1:{near}"
    context = None
    if pem is not None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(pem)
    front = Front(far)
    async with running_node(listen=f"127.0.0.1:{far}", public_url=url):
        server = await asyncio.start_server(front.handle, "127.0.0.1", near, ssl=context)
        try:
            yield front, url
        finally:
            server.close()
            await server.wait_closed()


async def test_a_certificate_that_nobody_vouches_for_is_named(tmp_path):
    async with fronted(certificate(tmp_path)) as (_, url):
        done = await Terminal(tmp_path).run("check", url)
    assert done.code == Exit.UNAVAILABLE
    assert "TLS: self-signed certificate" in done.out


@pytest.mark.parametrize(("days", "level"), [(3, "warn"), (90, "ok")])
async def test_a_certificate_that_ends_soon_is_warned_of(tmp_path, days, level):
    async with fronted(certificate(tmp_path, days)) as (_, url):
        trusting = {"SSL_CERT_FILE": str(tmp_path / "cert")}
        done = await Terminal(tmp_path).run("check", url, "--json", **trusting)
    assert (done.code, levels(done)["certificate"], levels(done)["acked"]) == (0, level, "ok")
    [found] = [item for item in done.json["findings"] if item["name"] == "certificate"]
    assert found["detail"] == f"good for {days} days more"


@pytest.mark.parametrize("path", ["/metrics", "/readyz"])
async def test_an_operators_side_that_is_public_fails(tmp_path, path):
    async with fronted() as (front, url):
        front.answers[path] = b"for everybody"
        done = await Terminal(tmp_path).run("check", url, "--json")
    assert (done.code, levels(done)["operator"], levels(done)["acked"]) == (
        Exit.REFUSED,
        "FAIL",
        "ok",
    )


@pytest.mark.parametrize(
    ("ahead", "level"), [(0, "ok"), (-4, "ok"), (60, "warn"), (-299, "warn"), (301, "FAIL")]
)
def test_a_clock_that_is_off_is_told_before_logins_fail(ahead, level):
    found, detail = clock_finding(ahead)
    assert found == level
    assert level == "ok" or f"{abs(ahead)} s {'ahead of' if ahead > 0 else 'behind'}" in detail


async def test_bench_hands_its_words_to_the_driver(tmp_path):
    terminal = Terminal(tmp_path)
    told = await terminal.run("bench", "--help")
    assert (told.code, "--sockets" in told.out) == (0, True)
    assert (await terminal.run("bench", "moon")).code == Exit.USAGE


async def test_without_a_checkout_bench_says_so(tmp_path):
    shutil.copytree(
        ROOT / "relay", tmp_path / "relay", ignore=shutil.ignore_patterns("__pycache__")
    )
    process = await Terminal(tmp_path).start("bench", "--json", PYTHONPATH=str(tmp_path))
    out, err = await process.communicate()
    assert (process.returncode, out) == (Exit.FAILED, b"")
    assert b"comes with a checkout" in err
