"""Keys at rest: plain and encrypted files, blocks to carry, and being killed meanwhile."""

from __future__ import annotations

import fcntl
import json
import os
import re
import stat
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest

from relay.client import KeyFileError, PassphraseError
from relay.client.identity import key_file, key_format
from relay.client.identity.key_format import KDF_DEFAULT, KDF_MIN, EncryptedKey
from relay.protocol import jws
from relay.protocol.did import SigningKey
from tests.client.scripted_relay import new_key

ROOT = Path(__file__).parents[2]
PASSPHRASE = "correct horse Zürich"  # noqa: S105  of no real key


def names(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]


def shows(text: object, key: SigningKey) -> bool:
    """Whether a secret can be read in it."""
    secrets = (PASSPHRASE, key.seed.hex(), jws.b64encode(key.seed), str(key.seed)[2:-1])
    return any(secret in str(text) for secret in secrets)


def test_a_key_file_is_for_its_owner_and_holds_the_key(tmp_path):
    path = tmp_path / "new" / "agent.key"
    key = key_file.generate(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert key_file.load(path).did == key.did
    assert names(path.parent) == ["agent.key"]
    assert key.seed.hex() not in repr(key)


def test_a_key_is_never_overwritten(tmp_path):
    path = tmp_path / "agent.key"
    key = key_file.generate(path)
    with pytest.raises(KeyFileError, match="never overwritten"):
        key_file.generate(path)
    assert key_file.load(path).did == key.did
    assert names(tmp_path) == ["agent.key"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o601])
def test_a_key_file_that_others_may_touch_is_refused(tmp_path, mode):
    path = tmp_path / "agent.key"
    key_file.generate(path)
    path.chmod(mode)
    with pytest.raises(KeyFileError, match="chmod 600"):
        key_file.load(path)


def test_what_is_no_key_file_is_named_and_not_shown(tmp_path):
    path = tmp_path / "agent.key"
    key = key_file.generate(path)
    good = path.read_text()
    for bad in ("", "{}", "SECRET", good.replace(key.did, new_key().did), good.replace("1,", "2,")):
        path.write_text(bad)
        with pytest.raises(KeyFileError, match="not a key file") as caught:
            key_file.load(path)
        assert caught.value.__cause__ is None
        assert "SECRET" not in str(caught.value)
    with pytest.raises(KeyFileError, match="no key at"):
        key_file.load(tmp_path / "nowhere")
    with pytest.raises(KeyFileError):
        key_file.load(tmp_path)
    with pytest.raises(KeyFileError):
        key_file.generate(path / "below" / "a.key")


# ---------------------------------------------------------------- encrypted


def test_an_encrypted_key_opens_with_its_passphrase_alone(tmp_path):
    path = tmp_path / "agent.key"
    key = key_file.generate(path, PASSPHRASE, kdf=KDF_MIN)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert names(tmp_path) == ["agent.key"]
    assert key_file.load(path, PASSPHRASE).seed == key.seed
    # as another keyboard writes it
    assert key_file.load(path, unicodedata.normalize("NFD", PASSPHRASE)).did == key.did
    for wrong in (None, "correct horse", PASSPHRASE + " ", "", "x" * 1025, "\udc80"):
        with pytest.raises(PassphraseError) as caught:
            key_file.load(path, wrong)
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__ or caught.value.__context__ is None
        assert not shows(caught.value, key)


def test_an_encrypted_file_tells_the_did_and_no_secret(tmp_path):
    path = tmp_path / "agent.key"
    key = key_file.generate(path, PASSPHRASE, kdf=KDF_MIN)
    found = key_file.read(path)
    assert isinstance(found, EncryptedKey)
    assert found.did == key.did
    assert not shows(path.read_text(), key)
    assert not shows(repr(found), key)
    assert json.loads(path.read_text())["box"] not in repr(found)
    plain = key_file.generate(tmp_path / "plain.key")
    assert shows((tmp_path / "plain.key").read_text(), plain), "else this test sees nothing"


def test_two_files_of_one_key_and_passphrase_have_nothing_secret_in_common():
    key = new_key()
    one, two = (json.loads(key_format.encode(key, PASSPHRASE, KDF_MIN)) for _ in range(2))
    assert {name for name in one if one[name] == two[name]} == {"v", "did", "kdf", "ops", "memory"}


@pytest.mark.timeout(30)
def test_without_a_word_about_it_a_guess_costs_256_mib():
    key = new_key()
    made = key_format.encode(key, PASSPHRASE)
    assert (json.loads(made)["ops"], json.loads(made)["memory"]) == (3, 256 * 2**20)
    assert (KDF_DEFAULT.ops, KDF_DEFAULT.memory) == (3, 256 * 2**20)
    found = key_format.parse(made)
    assert isinstance(found, EncryptedKey)
    assert found.open(PASSPHRASE).seed == key.seed


@pytest.mark.parametrize(
    "change",
    [
        {"ops": 9}, {"ops": 0}, {"ops": 2**40}, {"memory": 10 * 2**30}, {"memory": 1}, {"v": 3},
        {"kdf": "md5"}, {"salt": "AAAA"}, {"box": "AAAA"}, {"nonce": ""}, {"did": "did:web:x"},
        {"must_ask": 1},
    ],
    ids=str,
)  # fmt: skip
def test_a_file_that_asks_too_much_or_too_little_is_refused_before_anything_is_derived(
    tmp_path, change
):
    path = tmp_path / "agent.key"
    key_file.generate(path, PASSPHRASE, kdf=KDF_MIN)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(KeyFileError, match="not a key file"):
        key_file.read(path)


def test_altered_bytes_or_another_did_never_give_a_key(tmp_path):
    path = tmp_path / "agent.key"
    key_file.generate(path, PASSPHRASE, kdf=KDF_MIN)
    good = json.loads(path.read_text())
    for name in ("salt", "nonce", "box"):
        altered = bytearray(jws.b64decode(good[name]))
        altered[0] ^= 1
        path.write_text(json.dumps({**good, name: jws.b64encode(bytes(altered))}))
        with pytest.raises(PassphraseError, match="wrong, or"):
            key_file.load(path, PASSPHRASE)
    path.write_text(json.dumps({**good, "did": new_key().did}))
    with pytest.raises(KeyFileError, match="not the one of its DID"):
        key_file.load(path, PASSPHRASE)


def test_too_little_memory_is_said_and_is_not_a_wrong_passphrase():
    script = (
        "import resource\n"
        "from relay.client import KeyFileError, PassphraseError\n"
        "from relay.client.identity import key_format as keytext\n"
        "from relay.protocol.did import SigningKey\n"
        "resource.setrlimit(resource.RLIMIT_AS, (200 * 2**20,) * 2)\n"
        "try:\n"
        "    keytext.encode(SigningKey(bytes(32)), 'x')\n"
        "except PassphraseError:\n"
        "    print('passphrase')\n"
        "except KeyFileError as exc:\n"
        "    print(exc)\n"
    )
    done = subprocess.run(  # noqa: S603  our own interpreter
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "too little memory: a passphrase needs 256 MiB for a second\n"


# ---------------------------------------------------------------- another passphrase


def test_a_passphrase_can_be_set_changed_and_removed(tmp_path):
    path = tmp_path / "agent.key"
    key = key_file.generate(path)
    for passphrase in ("one", "two", None, "three"):
        key_file.replace(path, key, passphrase, kdf=KDF_MIN)
        assert key_file.load(path, passphrase).seed == key.seed
        assert isinstance(key_file.read(path), EncryptedKey) == (passphrase is not None)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert names(tmp_path) == ["agent.key"]
    with pytest.raises(PassphraseError):
        key_file.load(path, "two")


def test_only_the_same_key_takes_the_place_of_a_key(tmp_path):
    path, other = tmp_path / "agent.key", new_key()
    key = key_file.generate(path)
    with pytest.raises(KeyFileError, match="another key"):
        key_file.replace(path, other, "x", kdf=KDF_MIN)
    with pytest.raises(PassphraseError, match="1 to"):
        key_file.replace(path, key, "", kdf=KDF_MIN)
    with pytest.raises(KeyFileError, match="no key at"):
        key_file.replace(tmp_path / "nowhere", other, None)
    assert key_file.load(path).did == key.did
    assert names(tmp_path) == ["agent.key"]


def test_two_who_change_one_file_do_not_meet(tmp_path):
    path = tmp_path / "agent.key"
    key = key_file.generate(path)
    with path.open("rb") as held:
        # the weakest lock there is: it must be in the way
        fcntl.flock(held, fcntl.LOCK_SH)
        with pytest.raises(KeyFileError, match="another process"):
            key_file.replace(path, key, "x", kdf=KDF_MIN)
    key_file.replace(path, key, "x", kdf=KDF_MIN)
    assert key_file.load(path, "x").did == key.did


def test_a_link_to_a_key_file_stays_a_link(tmp_path):
    path, link = tmp_path / "keys" / "agent.key", tmp_path / "link"
    key = key_file.generate(path)
    link.symlink_to(path)
    key_file.replace(link, key, "x", kdf=KDF_MIN)
    assert link.is_symlink()
    assert key_file.load(path, "x").did == key.did


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_that_root_changes_stays_its_owners(tmp_path):
    path = tmp_path / "agent.key"
    key = key_file.generate(path)
    os.chown(path, 12345, 54321)
    key_file.replace(path, key, "x", kdf=KDF_MIN)
    assert (path.stat().st_uid, path.stat().st_gid) == (12345, 54321)


KILLED = """
import os, signal, sys
from pathlib import Path

from relay.client import KeyFileError
from relay.client.identity import key_file as keystore, key_format as keytext

path, old, new = Path(sys.argv[1]), sys.argv[2] or None, sys.argv[3] or None
key = keystore.generate(path, old, kdf=keytext.KDF_MIN)


def killed_at(line):
    left = line

    def trace(frame, event, arg):
        nonlocal left
        file = frame.f_code.co_filename
        if file != keystore.__file__ and "pathlib" not in file:
            return None
        left -= event == "line"
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    return trace


def found():
    for name, passphrase in (("old", old), ("new", new)):
        try:
            held = isinstance(keystore.read(path), keytext.EncryptedKey) == (passphrase is not None)
            if held and keystore.load(path, passphrase).seed == key.seed:
                return name
        except KeyFileError:
            pass
    return "lost"


for line in range(1, 2000):
    child = os.fork()
    if not child:
        sys.settrace(killed_at(line))
        keystore.replace(path, key, new, kdf=keytext.KDF_MIN)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    after, beside = found(), len(os.listdir(path.parent)) - 1
    if after != "old" or beside:
        keystore.replace(path, key, old, kdf=keytext.KDF_MIN)
    print(after, beside, found(), len(os.listdir(path.parent)) - 1)
    if not os.WIFSIGNALED(status):
        break
"""


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    ("old", "new"), [("", "new"), ("old", "new"), ("old", "")], ids=["set", "change", "remove"]
)
def test_killed_at_any_line_it_leaves_the_old_or_the_new_key(tmp_path, old, new):
    done = subprocess.run(  # noqa: S603  our own interpreter
        [sys.executable, "-c", KILLED, str(tmp_path / "agent.key"), old, new],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    rows = [line.split() for line in done.stdout.splitlines()]
    assert [after for after, *_ in rows] == sorted((after for after, *_ in rows), reverse=True)
    assert {after for after, *_ in rows} == {"old", "new"}
    assert {beside for _, beside, *_ in rows} == {"0", "1"}, "it was never killed in the middle"
    # whoever comes next finds a file that can be changed, and removes what was left
    assert {tuple(row[2:]) for row in rows} == {("old", "0")}
    assert len(rows) > 25


# ---------------------------------------------------------------- blocks


@pytest.mark.parametrize("passphrase", [None, PASSPHRASE])
def test_a_block_carries_a_key_through_mail_and_terminals(passphrase):
    key = new_key()
    block = key_format.encode_pem(key, passphrase, KDF_MIN)
    assert block.isascii()
    assert max(map(len, block.splitlines())) <= 64
    assert ("ENCRYPTED" in block) == (passphrase is not None)
    pasted = "  here it is:\r\n\r\n" + block.replace("\n", "\r\n  ") + "\r\n-- \r\nbye"
    for text in (block, pasted):
        found = key_format.parse_pem(text)
        opened = found.open(PASSPHRASE) if isinstance(found, EncryptedKey) else found
        assert isinstance(found, EncryptedKey) == (passphrase is not None)
        assert opened.seed == key.seed


def test_a_block_that_is_not_whole_is_refused_without_showing_it():
    key = new_key()
    block = key_format.encode_pem(key, None)
    lines = block.splitlines()
    for text in (
        "",
        block + block,
        "\n".join(lines[:-1]),
        "\n".join([lines[0], *lines[2:]]),
        block.replace(" RELAY", " ENCRYPTED RELAY"),
        block.replace(" RELAY", " ENCRYPTED RELAY", 1),
        re.sub(r"\n[\w-]", "\n!", block, count=1),
        block + " " * 20_000,
        " " * 20_000 + block,
    ):
        with pytest.raises(KeyFileError) as caught:
            key_format.parse_pem(text)
        assert caught.value.__cause__ is None
        assert not any(line in str(caught.value) for line in lines)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_cannot_keep_a_reader_waiting(tmp_path, make):
    make(tmp_path / "agent.key", 0o600)
    for use in (key_file.load, lambda path: key_file.replace(path, new_key(), None)):
        with pytest.raises(KeyFileError):
            use(tmp_path / "agent.key")
