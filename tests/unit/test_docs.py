"""The docs say what the code does: examples, tables, links, commands and names are checked."""

from __future__ import annotations

import ast
import asyncio
import importlib
import json
import os
import re
import time
import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
import typer.main

from relay import metrics
from relay.cli.app import app
from relay.cli.exit_codes import MEANING
from relay.client import Agent
from relay.http.errors import STATUS
from relay.protocol import (
    did,
    endpoint_record,
    envelope,
    frames,
    handshake,
    jws,
    migration_order,
    receipts,
    sealing,
)
from relay.protocol.errors import CLOSE_CODE, ERROR_CLASS, OUTCOME_UNKNOWN, ErrorCode
from relay.settings import Settings
from tests.federation.linked_nodes import places, relay_at
from tests.support import doc_examples
from tests.support.doc_examples import BLOCK, BOB, CLAIMS, NOW, RELAY, URL
from tests.support.nodes import make_envelope, new_key, running_node
from tests.support.patience import within

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
SOURCES = sorted([*(ROOT / "relay").rglob("*.py"), *(ROOT / "relay").rglob("*.lua")])
TESTS = sorted((ROOT / "tests").rglob("*.py"))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
COMPACT = re.compile(r"\beyJ[\w-]+\.[\w-]+\.[\w-]{86}(?![\w-])")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HOSTS = {"127.0.0.1", "localhost", "host", "your.name", "keepachangelog.com", "semver.org"}
HOSTS |= {"docs.astral.sh"}  # how to get uv
OTHER_URL = "http://127.0.0.1:8090"

PROTOCOL = (DOCS / "PROTOCOL.md").read_text()


def ids(path: Path) -> str:
    return str(path.relative_to(ROOT))


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text())


def fenced(page: Path, kind: str) -> list[str]:
    return [body for found, body in FENCE.findall(page.read_text()) if found == kind]


def rows(page: Path, first: str) -> list[list[str]]:
    """Cells of the table whose head begins with ``first``, without back-ticks."""
    lines = page.read_text().splitlines()
    start = next(at for at, line in enumerate(lines) if line.startswith(f"| {first} |")) + 2
    table = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        table.append([cell.strip().strip("`") for cell in line.strip("|").split("|")])
    return table


# ---------------------------------------------------------------- examples


def test_every_example_is_what_the_code_makes_today():
    blocks = doc_examples.examples()
    for page in PAGES:
        made = doc_examples.fill(page.read_text(), blocks)
        assert page.read_text() == made, "run: python -m tests.support.doc_examples"


def test_every_example_is_shown_once():
    shown = [name for page in PAGES for name, _ in BLOCK.findall(page.read_text())]
    assert sorted(shown) == sorted(doc_examples.examples())


def test_every_json_frame_in_the_protocol_parses_and_every_frame_is_shown():
    shown = {"relay": set(), "agent": set()}
    for body in fenced(DOCS / "PROTOCOL.md", "json"):
        kind = json.loads(body).get("t")
        for side in [side for side in ("relay", "agent") if kind in frames.BY_SIDE[side]]:
            frames.parse(body.encode(), side)
            shown[side].add(kind)
        assert kind is None or any(kind in kinds for kinds in shown.values()), kind
    assert shown == {side: set(frames.BY_SIDE[side]) for side in shown}


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_every_jws_in_the_docs_verifies_under_the_did_in_its_kid(page: Path):
    compacts = COMPACT.findall(page.read_text())
    if page.name == "PROTOCOL.md":
        assert len(compacts) > 10, "the pattern finds nothing"
    for compact in compacts:
        header = doc_examples.header_of(compact)
        key = did.parse_did(header["kid"].partition("#")[0])
        parsed = jws.parse(compact, typ=header["typ"], max_bytes=100_000)
        assert jws.is_signed_by(parsed, key.public_key)
        assert f"`{header['typ']}`" in PROTOCOL


def test_the_examples_convince_the_code_that_judges_them():
    block = dict(BLOCK.findall(PROTOCOL))

    def shown(name: str) -> Any:
        return json.loads(FENCE.search(block[name])[2])

    relay, bob = did.parse_did(RELAY.did), did.parse_did(BOB.did)
    auth = handshake.parse_auth(shown("auth")["jws"])
    assert handshake.verify_auth(auth, bob, relay=RELAY.did, url=URL, now=NOW) == CLAIMS
    welcome = frames.parse(json.dumps(shown("welcome")).encode(), "relay")
    standing = handshake.InboxPosition(welcome.epoch, welcome.cursor, welcome.head)
    handshake.verify_proof(welcome.proof, CLAIMS, standing)
    receipt = receipts.verify_receipt(shown("submitted")["receipt"], RELAY.did)
    plain, sealed = (envelope.parse(item) for item in shown("submit")["envelopes"])
    for item in (plain, sealed):
        envelope.verify(item, item.sender)
    assert [item.eid for item in receipt.items] == [plain.eid, sealed.eid]
    content = sealing.open_body(sealed, BOB)
    assert content.body == jws.b64decode(shown("sealed-inside")["body"])
    record = endpoint_record.parse(shown("resolved")["record"])
    assert endpoint_record.verify(record, bob, NOW) is None
    bounced = receipts.sign_bounce(RELAY, [])
    assert doc_examples.header_of(bounced)["kid"] == relay.kid


def test_an_altered_example_would_be_noticed():
    compact = COMPACT.search(PROTOCOL)[0]
    head, payload, signature = compact.split(".")
    swapped = signature[:10] + ("A" if signature[10] != "A" else "B") + signature[11:]
    header = doc_examples.header_of(compact)
    parsed = jws.parse(f"{head}.{payload}.{swapped}", typ=header["typ"], max_bytes=100_000)
    key = did.parse_did(header["kid"].partition("#")[0])
    assert not jws.is_signed_by(parsed, key.public_key)


@pytest.mark.timeout(30)
async def test_the_readme_examples_run_as_they_are_printed():
    source, without_a_loop, _ = fenced(ROOT / "README.md", "python")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module:
            module = importlib.import_module(node.module)
            assert all(hasattr(module, name.name) for name in node.names)
    said: asyncio.Queue[tuple[Any, ...]] = asyncio.Queue()
    async with running_node() as node:
        example: dict[str, Any] = {"print": lambda *words: said.put_nowait(words)}
        exec(source.replace(URL, node.url), example)  # noqa: S102  our own page
        seed = os.urandom(32)
        myself = did.SigningKey(seed).did
        running = asyncio.create_task(example["main"](seed, myself))
        async with within(10):
            assert (await said.get())[2] == "memory"
            sender, question, redelivered = await said.get()
        running.cancel()
        await asyncio.wait([running])
        waiting = {"print": lambda *words: loop.call_soon_threadsafe(said.put_nowait, words)}
        exec(without_a_loop.replace(URL, node.url), waiting)  # noqa: S102  our own page
        loop = asyncio.get_running_loop()
        other = os.urandom(32)
        await asyncio.to_thread(waiting["remind"], other, did.SigningKey(other).did)
        assert await said.get() == (did.SigningKey(other).did, "Don't forget the train!")
    assert (sender, list(question), redelivered) == (myself, ["question"], False)


async def test_the_readme_example_of_a_move_moves():
    *_, source = fenced(ROOT / "README.md", "python")
    here, there = places(2)
    said: list[tuple[Any, ...]] = []
    async with relay_at(here, [there]) as one, relay_at(there, [here]) as two:
        seed = os.urandom(32)
        async with Agent.open(did.SigningKey(seed), one.url) as me:
            await me.send(me.did, "waits")
        example: dict[str, Any] = {"print": lambda *words: said.append(words)}
        exec(source.replace(URL, one.url).replace(OTHER_URL, two.url), example)  # noqa: S102  our own page
        async with within(20):
            await example["move"](seed)
    assert said == [(1, "moved,", 0, "still wait,", 0, "are missing")]


def shape(value: Any) -> Any:
    """Names of members, all the way down."""
    if isinstance(value, dict):
        return {name: shape(inner) for name, inner in value.items()}
    return [shape(inner) for inner in value[:1]] if isinstance(value, list) else "…"


@pytest.mark.timeout(30)
async def test_http_answers_have_the_members_that_the_protocol_page_shows():
    block = dict(BLOCK.findall(PROTOCOL))
    shown = {name: json.loads(FENCE.search(block[name])[2]) for name in block if "http-" in name}
    alice, bob = new_key(), new_key()
    async with running_node() as node, httpx2.AsyncClient(base_url=node.url) as http:

        async def check(name: str, method: str, path: str, **options: Any) -> Any:
            answer = (await http.request(method, path, **options)).json()
            assert shape(answer) == shape(shown[name]), name
            return answer

        nonce = await check("http-nonce", "POST", "/v1/session/nonce")
        own = jws.b64encode(os.urandom(32))
        claims = handshake.LoginClaims(
            bob.did, nonce["relay"], node.url, nonce["nonce"], own, "agent"
        )
        login = {"jws": handshake.sign_auth(bob, claims, time.time())}
        assert login.keys() == shown["http-session-request"].keys()
        opened = await check("http-session", "POST", "/v1/session", json=login)
        token = {"headers": {"Authorization": f"Bearer {opened['token']}"}}
        wires = [json.loads(make_envelope(alice, to.did).wire) for to in (bob, alice)]
        sent = {"envelopes": wires}
        await check("http-envelopes", "POST", "/v1/envelopes", json=sent)
        page = {**shown["http-inbox"], "gaps": []}
        taken = (await http.get("/v1/inbox", **token)).json()
        assert shape(taken) == shape(page)
        ack = {"epoch": taken["epoch"], "upto": taken["upto"]}
        await check("http-ack", "POST", "/v1/inbox/ack", json=ack, **token)
        home = endpoint_record.Home(nonce["relay"], node.url)
        record = {"record": endpoint_record.sign(bob, [home], now=time.time())}
        assert record.keys() == shown["http-publish-request"].keys()
        await check("http-publish", "PUT", f"/v1/agents/{bob.did}", json=record)
        await check("http-resolve", "GET", f"/v1/agents/{bob.did}")
        path = f"/v1/agents/{bob.did}/envelopes/{jws_id(wires[0]['jws'])}"
        await check("http-status", "GET", path, **token)
        await check("http-error", "GET", "/v1/inbox")
        info = await check("http-info", "GET", "/.well-known/agent-relay.json")
        said = doc_examples.payload_of(info["jws"])
        assert said.keys() == doc_examples.payload_of(shown["http-info"]["jws"]).keys()


@pytest.mark.timeout(30)
async def test_a_step_of_a_move_is_answered_as_the_protocol_page_shows():
    block = dict(BLOCK.findall(PROTOCOL))
    asked, shown = (
        json.loads(FENCE.search(block[name])[2])
        for name in ("http-migration-request", "http-migration")
    )
    bob, now = new_key(), time.time()
    async with running_node() as node, httpx2.AsyncClient(base_url=node.url) as http:
        source = endpoint_record.Home(node.parts.key.did, node.url)
        target = endpoint_record.Home(doc_examples.PEER.did, "http://127.0.0.1:8081")
        following = endpoint_record.sign(bob, [target], now=now)
        order = migration_order.sign(bob, source, target, following, now=now, entropy=os.urandom)
        step = {"order": order, "step": "state"}
        assert step.keys() == asked.keys()
        answer = (await http.post("/v1/migrations", json=step)).json()
    assert answer.keys() == shown.keys()
    said, told = (doc_examples.payload_of(one["statement"]) for one in (answer, shown))
    assert shape(said) == shape(told)


def jws_id(compact: str) -> str:
    return doc_examples.payload_of(compact)["id"]


# ---------------------------------------------------------------- tables


def test_the_settings_page_has_every_field_and_no_other():
    variables = [row[0] for row in rows(DOCS / "settings.md", "variable")]
    assert variables == [f"RELAY_{name.upper()}" for name in Settings.model_fields]


def test_the_error_page_is_total_and_agrees_with_the_tables_of_the_edges():
    table = rows(DOCS / "errors.md", "code")
    assert [row[0] for row in table] == [str(code) for code in ErrorCode]
    fault = {"ProtocolError": "yours", "RejectedError": "a policy", "StateError": "the state",
             "UnavailableError": "nobody's", "RelayError": "the relay's"}  # fmt: skip
    for row in table:
        code = ErrorCode(row[0])
        kind = ERROR_CLASS[code].__name__
        stored = "unknown" if code in OUTCOME_UNKNOWN else "no"
        close = str(CLOSE_CODE[code] or "—")
        assert row[1:6] == [kind, fault[kind], str(STATUS[code]), close, stored], code
        assert all(row[6:8]), code


def test_the_protocol_page_lists_every_close_code():
    shown = re.findall(r"\| (4\d\d\d) \| `(\w+)`", PROTOCOL)
    assert {code: int(number) for number, code in shown} == {
        str(code): number for code, number in CLOSE_CODE.items() if number
    }


def test_the_command_page_lists_every_exit_code():
    table = {int(row[0]): row[1] for row in rows(DOCS / "cli.md", "code")}
    assert set(table) == {int(code) for code in MEANING}
    assert all(table[code].startswith(meaning) for code, meaning in MEANING.items())


def test_every_metric_and_code_that_the_operations_page_names_exists():
    text = (DOCS / "OPERATIONS.md").read_text()
    names = set(re.findall(r"`(relay_\w+)", text))
    exposed = metrics.render().decode()
    assert names
    assert all(f"# TYPE {name} " in exposed for name in names)
    assert {ErrorCode(code) for code in re.findall(r'code="(\w+)"', text)}


# ---------------------------------------------------------------- links, commands, names


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_every_relative_link_leads_somewhere(page: Path):
    for link in LINK.findall(prose(page)):
        parts = urlsplit(link)
        if parts.scheme:
            continue
        target = (page.parent / parts.path).resolve() if parts.path else page
        assert target.exists(), link
        if parts.fragment:
            assert parts.fragment in anchors(target), link


def anchors(page: Path) -> set[str]:
    """Headings as the usual renderers name them."""
    heads = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head).strip().lower().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_no_page_names_a_host_that_is_not_expected_or_a_place_on_somebodys_machine(page: Path):
    text = page.read_text()
    assert set(re.findall(r"(?:https?|wss?)://([\w.\-]+)", text)) <= HOSTS
    assert not re.search(r"(?<![\w.])/(home|root|work|workspace|users)/", text, re.IGNORECASE)
    assert not re.search(r"\b(lorem ipsum|as an ai|language model)\b", text.lower())


def commands_in(page: Path) -> set[str]:
    """What follows ``relay`` or ``./run`` in code."""
    text = page.read_text()
    code = [body for kind, body in FENCE.findall(text) if kind in {"sh", "text", ""}]
    code += re.findall(r"`([^`\n]+)`", FENCE.sub("", text))
    lines = [line.partition("#")[0] for part in code for line in part.splitlines()]
    found = [re.search(r"(?:^|\s)(?:relay|\./run) ([a-z].*)", line) for line in lines]
    return {match[1] for match in found if match}


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_every_command_that_a_page_names_exists_with_its_options(page: Path):
    for line in commands_in(page):
        words = line.split()
        if words[0] in {"test", "check", "bench", "dev"}:  # of ./run
            continue
        command: Any = typer.main.get_command(app)
        while words and words[0] in getattr(command, "commands", ()):
            command = command.commands[words.pop(0)]
        assert not hasattr(command, "commands"), line
        options = {name for param in command.params for name in param.opts}
        given = {word.strip("[]") for word in words if word.startswith(("--", "[--"))}
        assert given <= options, line


def test_every_command_is_on_the_command_page():
    text = (DOCS / "cli.md").read_text()

    def walk(command: Any, path: str) -> None:
        inner = getattr(command, "commands", {})
        for name in inner:
            walk(inner[name], f"{path} {name}")
        assert inner or f"`{path}" in text, path

    walk(typer.main.get_command(app), "relay")


def test_every_test_that_the_docs_name_exists():
    named = {name for page in PAGES for name in re.findall(r"`(tests/\S+::\w+)`", page.read_text())}
    assert named
    for name in sorted(named):
        path, _, function = name.partition("::")
        assert f"def {function}(" in (ROOT / path).read_text(), name


@pytest.mark.parametrize("name", ["PROTOCOL", "GUARANTEES", "ARCHITECTURE"])
def test_every_section_that_the_code_cites_is_there(name: str):
    page = (DOCS / f"{name}.md").read_text()
    cited = {
        section
        for path in (*SOURCES, *TESTS)
        for section in re.findall(rf"{name}(?:\.md)? §(\d+(?:\.\d+)?)", path.read_text())
    }
    assert cited
    for section in sorted(cited):
        assert re.search(rf"^(#+ |\*\*){re.escape(section)}[. *]", page, re.MULTILINE), section


def test_every_promise_that_the_code_cites_is_there():
    page = (DOCS / "GUARANTEES.md").read_text()
    assert set(re.findall(r"^\*\*([RS]\d) ", page, re.MULTILINE)) == {
        "S1", "S2", "S3", "R1", "R2", "R3", "R4", "R5", "R6", "R7",
    }  # fmt: skip


def test_every_decision_is_listed_and_every_one_that_the_code_cites_is_there():
    files = sorted(path.name for path in (DOCS / "adr").glob("0*.md"))
    index = (DOCS / "adr" / "README.md").read_text()
    assert files == re.findall(r"\]\((0\d+[\w-]*\.md)\)", index)
    assert [name[:4] for name in files] == [f"{n:04}" for n in range(1, len(files) + 1)]
    for path in (*SOURCES, *TESTS):
        for number in re.findall(r"docs/adr/(\d{4})", path.read_text()):
            assert any(name.startswith(number) for name in files), path
    for name in files:
        text = (DOCS / "adr" / name).read_text()
        assert text.startswith(f"# {name[:4]} ")
        assert all(f"**{part}.**" in text for part in ("Context", "Decision", "Consequences"))


def test_the_changelog_knows_the_version():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text()


def test_every_path_of_the_code_that_the_docs_name_is_there():
    named = {
        path
        for page in (*DOCS.glob("*.md"), *(DOCS / "adr").glob("*.md"))
        for path in re.findall(r"`((?:[\w]+/)+[\w]+\.(?:py|lua|conf))`", page.read_text())
    }
    places = [ROOT, ROOT / "relay", ROOT / "relay" / "store" / "redis"]
    places += [ROOT / "relay" / "store" / "redis" / "scripts"]
    missing = {path for path in named if not any((place / path).exists() for place in places)}
    assert named
    assert missing == set()
