"""``relay id`` and passphrases, as processes: files, variables, pipes, and a person who types."""

from __future__ import annotations

import json
import os
import signal
import stat
from pathlib import Path

import pytest

from relay.cli.exit_codes import Exit
from relay.client.identity import key_file
from relay.client.identity.key_format import KDF_MIN, EncryptedKey
from relay.protocol import jws
from relay.protocol.did import SigningKey
from tests.cli.terminal import Done, Terminal, line_with
from tests.cli.terminal_user import at_a_terminal
from tests.support.nodes import running_node

pytestmark = pytest.mark.timeout(60)

PASSPHRASE = "correct horse Zürich"  # noqa: S105  of no real key
ANOTHER = "battery staple"


@pytest.fixture
def here(tmp_path) -> Terminal:
    (tmp_path / "words").write_text(f"{PASSPHRASE}\n")
    (tmp_path / "others").write_text(f"{ANOTHER}\r\n")
    (tmp_path / "wrong").write_text("x")
    return Terminal(tmp_path)


def locked(here: Terminal, name: str = "bob.key") -> SigningKey:
    """A key file that opens with the passphrase, and quickly."""
    return key_file.generate(here.home / name, PASSPHRASE, kdf=KDF_MIN)


def load(here: Terminal, name: str, passphrase: str | None = None) -> SigningKey:
    return key_file.load(here.home / name, passphrase)


def is_encrypted(here: Terminal, name: str) -> bool:
    return isinstance(key_file.read(here.home / name), EncryptedKey)


def tells_no_secret(key: SigningKey, *all_done: Done) -> bool:
    secrets = (PASSPHRASE, ANOTHER, key.seed.hex(), jws.b64encode(key.seed))
    return not any(one in done.out + done.err for one in secrets for done in all_done)


# ---------------------------------------------------------------- new and show


@pytest.mark.parametrize(
    ("words", "more"),
    [
        (["--passphrase-file", "words"], {"RELAY_AGENT_PASSPHRASE_FILE": "wrong"}),
        ([], {"RELAY_AGENT_PASSPHRASE_FILE": "words", "RELAY_AGENT_PASSPHRASE": "x"}),
        (["--encrypt"], {"RELAY_AGENT_PASSPHRASE": PASSPHRASE, "RELAY_AGENT_PASSPHRASE_FILE": ""}),
    ],
    ids=["option", "variable names a file", "variable"],
)
async def test_a_passphrase_that_is_given_encrypts_a_new_key(here, words, more):
    made = await here.run("id", "new", "--key", "bob.key", *words, **more)
    assert made.code == 0, made.err
    assert "encrypted" in made.err
    key = load(here, "bob.key", PASSPHRASE)
    assert made.out == f"{key.did}\n"
    assert is_encrypted(here, "bob.key")
    assert tells_no_secret(key, made)


async def test_the_did_of_an_encrypted_key_is_shown_without_its_passphrase(here):
    key = locked(here)
    shown = await here.run("id", "show", "--key", "bob.key", "--json")
    assert shown.json == {"did": key.did, "file": "bob.key", "encrypted": True}
    words = await here.run("id", "show", "--key", "bob.key")
    assert (words.out, "encrypted" in words.err) == (f"{key.did}\n", True)


async def test_a_passphrase_is_never_an_argument(here):
    for words in (["id", "new"], ["id", "passwd"], ["listen"]):
        done = await here.run(*words, "--passphrase", PASSPHRASE)
        assert (done.code, done.out) == (Exit.USAGE, "")


# ---------------------------------------------------------------- opening


@pytest.mark.parametrize(
    ("passphrase_file", "said"),
    [
        ("wrong", "wrong, or the key is damaged"),
        ("nowhere", "No such file"),
        ("empty", "one line"),
        ("two-lines", "one line"),
        ("latin-1", "not UTF-8"),
        ("long", "one line"),
        (".", "Is a directory"),
    ],
)
async def test_a_passphrase_that_does_not_open_the_key_has_its_own_exit_code(
    here, passphrase_file, said
):
    key = locked(here)
    (here.home / "empty").write_text("\n")
    (here.home / "two-lines").write_text(f"{PASSPHRASE}\nand more\n")
    (here.home / "latin-1").write_bytes(PASSPHRASE.encode("latin-1"))
    (here.home / "long").write_text("x" * 5000)
    more = {"RELAY_AGENT_PASSPHRASE_FILE": passphrase_file, "RELAY_AGENT_KEY": "bob.key"}
    done = await here.run("listen", **more)
    assert (done.code, done.out) == (Exit.LOCKED, "")
    assert said in done.err
    shape = await here.run("send", key.did, "x", "--json", **more)
    assert shape.code == Exit.LOCKED
    told = json.loads(shape.err)
    assert (told["error"], said in told["detail"]) == ("wrong_state", True)
    assert tells_no_secret(key, done, shape)


@pytest.mark.parametrize("command", ["send", "listen", "inbox", "status", "rules"])
async def test_with_nobody_to_ask_it_says_what_to_name(here, command):
    did = locked(here).did
    words = [did, "x"] if command == "send" else []
    done = await here.run(command, *words, "--key", "bob.key")
    assert done.code == Exit.LOCKED
    assert "--passphrase-file" in done.err
    assert "RELAY_AGENT_PASSPHRASE_FILE" in done.err
    wrong = await here.run(command, *words, "--key", "bob.key", "--passphrase-file", "wrong")
    assert (wrong.code, "passphrase is wrong" in wrong.err) == (Exit.LOCKED, True)


async def test_agents_with_encrypted_keys_exchange_an_envelope(here):
    key = locked(here)
    async with running_node() as node:
        terminal = Terminal(here.home, node.url)
        mine = ("--key", "bob.key", "--passphrase-file", "words")
        listening = await terminal.start("listen", "--once", *mine)
        try:
            await line_with(listening.stderr, f"Listening as {key.did}")
            sent = await terminal.run("send", key.did, "hello", *mine)
            assert sent.code == 0, sent.err
            out, err = await listening.communicate()
        finally:
            if listening.returncode is None:
                listening.kill()
                await listening.wait()
        assert (listening.returncode, out) == (0, b"hello\n"), err


async def test_a_first_use_with_a_passphrase_makes_an_encrypted_key(here):
    did = locked(here).did
    done = await here.run("send", did, "x", "--timeout", "0.3", RELAY_AGENT_PASSPHRASE=PASSPHRASE)
    assert (done.code, "first use" in done.err) == (Exit.UNAVAILABLE, True)
    assert is_encrypted(here, ".config/did-relay/agent.key")


# ---------------------------------------------------------------- export and import


async def test_an_encrypted_key_is_carried_with_its_passphrase(here):
    key = locked(here)
    mine = ("--passphrase-file", "words")
    out = await here.run("id", "export", "block", "--key", "bob.key", *mine)
    assert (out.code, out.out) == (0, ""), out.err
    block = here.home / "block"
    assert stat.S_IMODE(block.stat().st_mode) == 0o600
    assert block.read_text().startswith("-----BEGIN ENCRYPTED RELAY PRIVATE KEY-----\n")
    wrong = await here.run("id", "import", "block", "--key", "c.key", "--passphrase-file", "wrong")
    assert (wrong.code, (here.home / "c.key").exists()) == (Exit.LOCKED, False)
    assert "block: the passphrase is wrong" in wrong.err
    came = await here.run("id", "import", "block", "--key", "c.key", *mine, "--json")
    assert came.json == {"did": key.did, "file": "c.key", "encrypted": True}
    assert load(here, "c.key", PASSPHRASE).seed == key.seed
    again = await here.run("id", "import", "block", "--key", "c.key", *mine)
    assert (again.code, "never overwritten" in again.err) == (Exit.FAILED, True)
    twice = await here.run("id", "export", "block", "--key", "bob.key", *mine)
    assert (twice.code, "never overwritten" in twice.err) == (Exit.FAILED, True)
    assert tells_no_secret(key, out, wrong, came, again, twice)


async def test_a_key_without_a_passphrase_gets_one_for_its_way_through_a_pipe(here):
    key = key_file.generate(here.home / "bob.key")
    nobody = await here.run("id", "export", "-", "--key", "bob.key")
    assert (nobody.code, nobody.out) == (Exit.LOCKED, "")
    out = await here.run("id", "export", "-", "--key", "bob.key", "--passphrase-file", "words")
    assert "BEGIN ENCRYPTED" in out.out
    assert tells_no_secret(key, out)
    came = await here.run(
        "id", "import", "-", "--key", "c.key", text=out.out.encode(),
        RELAY_AGENT_PASSPHRASE=PASSPHRASE,
    )  # fmt: skip
    assert (came.code, came.out) == (0, f"{key.did}\n"), came.err
    assert "one place at a time" in came.err
    assert load(here, "c.key", PASSPHRASE).seed == key.seed


async def test_a_block_may_have_a_passphrase_of_its_own(here):
    key = locked(here)
    out = await here.run(
        "id", "export", "-", "--key", "bob.key", "--json",
        "--passphrase-file", "words", "--new-passphrase-file", "others",
    )  # fmt: skip
    assert (out.json["did"], out.json["encrypted"]) == (key.did, True)
    block = out.json["block"].encode()
    came = await here.run(
        *("id", "import", "-", "--key", "c.key", "--passphrase-file", "others"), text=block
    )
    assert came.code == 0, came.err
    assert load(here, "c.key", ANOTHER).seed == key.seed


async def test_an_unencrypted_block_needs_two_words_and_no_passphrase(here):
    key = key_file.generate(here.home / "bob.key")
    for words in (["--plain"], ["--plain", "--yes", "--new-passphrase-file", "words"]):
        no = await here.run("id", "export", "block", "--key", "bob.key", *words)
        assert (no.code, (here.home / "block").exists()) == (Exit.USAGE, False)
    out = await here.run("id", "export", "block", "--key", "bob.key", "--plain", "--yes", "--json")
    assert out.json == {"did": key.did, "file": "block", "encrypted": False}
    came = await here.run("id", "import", "block", "--key", "c.key")
    assert (came.code, is_encrypted(here, "c.key")) == (0, False)
    kept = await here.run("id", "import", "block", "--key", "d.key", "--passphrase-file", "words")
    assert (kept.code, is_encrypted(here, "d.key")) == (0, True)
    assert load(here, "c.key").seed == load(here, "d.key", PASSPHRASE).seed == key.seed


async def test_what_is_no_block_is_said_and_not_shown(here):
    (here.home / "words.txt").write_text("SECRET of another kind")
    for source, said in (("words.txt", "one block"), ("nowhere", "No such file")):
        done = await here.run("id", "import", source, "--key", "c.key", "--json")
        assert (done.code, said in json.loads(done.err)["detail"]) == (Exit.FAILED, True)
        assert "SECRET" not in done.err
    assert not (here.home / "c.key").exists()


# ---------------------------------------------------------------- passwd


async def test_a_passphrase_is_set_changed_and_removed(here):
    key = key_file.generate(here.home / "bob.key")
    mine = ("id", "passwd", "--key", "bob.key")
    done = [await here.run(*mine, "--passphrase-file", "words", "--json")]
    assert done[0].json == {"did": key.did, "file": "bob.key", "encrypted": True}
    done.append(await here.run(*mine, "--passphrase-file", "wrong", "--remove"))
    assert (done[1].code, is_encrypted(here, "bob.key")) == (Exit.LOCKED, True)
    nobody = await here.run(*mine, "--passphrase-file", "words")
    assert (nobody.code, "name --new-passphrase-file" in nobody.err) == (Exit.LOCKED, True)
    both = ("--passphrase-file", "words", "--new-passphrase-file", "others")
    assert (await here.run(*mine, *both, "--remove")).code == Exit.USAGE
    done.append(await here.run(*mine, *both))
    assert (done[2].code, done[2].out) == (0, f"{key.did}\n")
    assert load(here, "bob.key", ANOTHER).seed == key.seed
    done.append(await here.run(*mine, "--passphrase-file", "others", "--remove"))
    assert (done[3].code, load(here, "bob.key").seed) == (0, key.seed)
    assert tells_no_secret(key, *done)


def test_a_person_is_asked_for_the_old_one_and_twice_for_the_new_one(here):
    key = locked(here)
    mine = ("id", "passwd", "--key", "bob.key")
    with at_a_terminal(here, *mine) as person:
        person.reads("Passphrase of bob.key: ")
        person.types(f"{PASSPHRASE}\n")
        person.reads("New passphrase: ")
        person.types(f"{ANOTHER}\n")
        person.reads("The same again: ")
        person.types(f"{ANOTHER} or so\n")
        done = person.waits()
    assert (done.code, "nothing was changed" in done.err) == (Exit.LOCKED, True)
    assert load(here, "bob.key", PASSPHRASE).seed == key.seed
    with at_a_terminal(here, *mine, RELAY_AGENT_PASSPHRASE=PASSPHRASE) as person:
        for prompt in ("New passphrase: ", "The same again: "):
            person.reads(prompt)
            person.types(f"{ANOTHER}\n")
        assert person.waits().code == 0
        assert ANOTHER not in person.seen
        assert person.shows_what_is_typed()
    assert load(here, "bob.key", ANOTHER).seed == key.seed


def test_a_person_who_makes_an_encrypted_key_types_it_twice(here):
    with at_a_terminal(here, "id", "new", "--encrypt", "--key", "bob.key") as person:
        for prompt in ("New passphrase: ", "The same again: "):
            person.reads(prompt)
            person.types(f"{PASSPHRASE}\n")
        made = person.waits()
        assert PASSPHRASE not in person.seen
    assert (made.code, made.out) == (0, f"{load(here, 'bob.key', PASSPHRASE).did}\n")


def test_an_agents_command_asks_at_the_terminal_though_its_input_is_elsewhere(here):
    did = locked(here).did
    (here.home / "text").write_text("hello")
    words = ("send", did, "--file", "text", "--key", "bob.key", "--timeout", "0.3")
    for typed, code in ((PASSPHRASE, Exit.UNAVAILABLE), ("x", Exit.LOCKED), ("", Exit.LOCKED)):
        with at_a_terminal(here, *words) as person:
            person.reads("Passphrase of bob.key: ")
            person.types(f"{typed}\n")
            assert person.waits().code == code


@pytest.mark.parametrize("words", [["inbox"], ["id", "passwd"]])
@pytest.mark.parametrize("how", ["Ctrl-C", "SIGTERM", "Ctrl-D"])
def test_a_prompt_can_be_left_at_once_and_the_terminal_is_as_before(here, words, how):
    locked(here)
    before = (here.home / "bob.key").read_bytes()
    with at_a_terminal(here, *words, "--key", "bob.key") as person:
        person.reads("Passphrase of bob.key: ")
        assert not person.shows_what_is_typed()
        if how == "SIGTERM":
            os.kill(person.process.pid, signal.SIGTERM)
        else:
            person.types("\x03" if how == "Ctrl-C" else "\x04")
        done = person.waits()
        assert person.shows_what_is_typed()
    assert done.code == (Exit.LOCKED if how == "Ctrl-D" else Exit.INTERRUPTED)
    assert (here.home / "bob.key").read_bytes() == before
    assert sorted(path.name for path in Path(here.home).glob(".bob*")) == []
