"""Handles: one spelling, what each source says, and what they say together."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.protocol import handles
from relay.protocol.handles import Handle, LookupResult, combine, parse
from tests.unit.builders import ALICE, BOB

A, B = ALICE.did, BOB.did
FOUND_A, FOUND_B = LookupResult("found", A), LookupResult("found", B)
ABSENT, SILENT = LookupResult("absent", why="none"), LookupResult("unreadable", why="no answer")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("alice@relay.example", Handle("alice", "relay.example")),
        ("Alice@Relay.Example", Handle("alice", "relay.example")),
        ("a@relay.example:8443", Handle("a", "relay.example", 8443)),
        ("a.b-c_d9@relay", Handle("a.b-c_d9", "relay")),
        ("a@127.0.0.1:8080", Handle("a", "127.0.0.1", 8080)),
        ("a@[::1]:8080", Handle("a", "::1", 8080)),
        ("agent.example", Handle(None, "agent.example")),
        ("localhost:8080", Handle(None, "localhost", 8080)),
    ],
)
def test_a_handle_has_one_spelling(text: str, wanted: Handle):
    assert parse(text) == wanted
    assert parse(str(wanted)) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "", "@", "alice@", "@relay.example", "alice", "a@b@relay.example", ".a@relay.example",
        "a.@relay.example", "a b@relay.example", "a+b@relay.example", "\u00e1@relay.example",
        "a@relay.example/", "a@relay.example:0", "a@relay.example:x", "a@relay.example:",
        "a@0x7f.1", "a@127.1", "a@relay.example.", "a@re_lay.example", "acct:a@relay.example",
        "a@[::1", "a@::1", f"{'a' * 65}@relay.example", f"a@{'a' * 400}", A, f"{A}@relay.example",
        "a@relay.example\n", "a@x.onion",
    ],
)  # fmt: skip
def test_what_is_no_handle_is_refused(text: str):
    with pytest.raises(ValueError, match=r"."):
        parse(text)


@given(st.text(max_size=40))
def test_whatever_is_read_is_read_the_same_again(text: str):
    try:
        handle = parse(text)
    except ValueError:
        return
    assert parse(str(handle)) == handle
    assert str(handle).isascii()


def test_where_a_handle_is_asked_about():
    assert parse("a@relay.example:1").path == (
        "/.well-known/webfinger?resource=acct%3Aa%40relay.example%3A1&rel=self"
    )
    assert parse("agent.example").path == "/.well-known/agent-did"
    assert parse("agent.example").text_name == "_agent.agent.example"
    for text in ("a@relay.example", "agent.example:8443", "localhost", "127.0.0.1"):
        assert parse(text).text_name is None


def finger(*links: object) -> LookupResult:
    return handles.read_webfinger(200, json.dumps({"subject": "x", "links": links}).encode())


def test_webfinger_says_the_did_of_its_self_link():
    other = {"rel": "avatar", "href": "https://x.example/a.png"}
    me = {"rel": "self", "type": "application/activity+json", "href": "https://x.example/a"}
    assert finger(other, me, {"rel": "self", "href": A}) == FOUND_A
    assert finger({"rel": "self", "href": A}, {"rel": "self", "href": A}) == FOUND_A
    assert finger(other, me).state == "absent"
    assert finger({"rel": "self", "href": A}, {"rel": "self", "href": B}).state == "unreadable"
    assert finger({"rel": "self", "href": "did:web:x.example"}).state == "unreadable"
    assert finger("no link").state == "unreadable"


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"links":1}', b'{"links":[],"links":[]}'])
def test_an_answer_that_is_no_jrd_is_unreadable(body: bytes):
    assert handles.read_webfinger(200, body).state == "unreadable"


def test_a_well_known_file_holds_one_did():
    assert handles.read_well_known(200, f" {A}\r\n".encode()) == FOUND_A
    for wrong in (b"", b"<html>", f"{A}\n{B}".encode(), b"\xff", b"did:key:z6Mk"):
        assert handles.read_well_known(200, wrong).state == "unreadable"


def test_texts_are_those_that_begin_with_did():
    assert handles.read_txt(["v=spf1 -all", f"did={A}"]) == FOUND_A
    assert handles.read_txt([f"did={A}", f"did={A}"]) == FOUND_A
    assert handles.read_txt(["v=spf1 -all", f"xdid={A}"]).state == "absent"
    assert handles.read_txt([f"did={A}", f"did={B}"]).state == "unreadable"
    assert handles.read_txt(["did=x"]).state == "unreadable"


@pytest.mark.parametrize("read", [handles.read_webfinger, handles.read_well_known])
def test_only_not_found_is_absent(read: object):
    assert callable(read)
    states = {status: read(status, b"").state for status in (404, 410, 301, 302, 403, 429, 500)}
    assert [status for status, state in states.items() if state == "absent"] == [404, 410]


def test_sources_that_answer_must_agree():
    assert combine([FOUND_A, FOUND_A]) == FOUND_A
    assert combine([FOUND_A, ABSENT]) == FOUND_A
    assert combine([FOUND_A, SILENT]) == FOUND_A
    assert combine([FOUND_A, FOUND_B]).state == "unreadable"
    assert combine([ABSENT, ABSENT]).state == "absent"
    assert combine([ABSENT, SILENT]).state == "unreadable"
    assert combine([SILENT]).state == "unreadable"


def test_the_order_of_sources_changes_nothing():
    for some in itertools.combinations_with_replacement([FOUND_A, FOUND_B, ABSENT, SILENT], 3):
        said = {(combine(one).state, combine(one).did) for one in itertools.permutations(some)}
        assert len(said) == 1


def test_the_way_back_is_a_handle_of_the_record_in_any_case():
    listed = ["not a handle at all", "ALICE@relay.example"]
    assert handles.is_listed(parse("alice@relay.example"), listed)
    assert not handles.is_listed(parse("alice@relay.example:8443"), listed)
    assert not handles.is_listed(parse("bob@relay.example"), listed)
    assert not handles.is_listed(parse("alice@relay.example"), [])
