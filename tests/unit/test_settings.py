"""Settings: what is refused at start, and by which name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from relay import settings, variables
from relay.protocol.errors import StateError
from tests.unit.builders import ALICE

DOCUMENT = Path(__file__).parents[2] / "docs" / "settings.md"


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in settings.os.environ:
        if name.upper().startswith("RELAY_"):
            monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("RELAY_INBOXCOUNT", "RELAY_INBOX_COUNT"),
        ("RELAY_TRUSTED_PROXY", "RELAY_TRUSTED_PROXIES"),
        ("RELAY_REDIS_URL_FIL", "RELAY_REDIS_URL_FILE"),
        ("RELAY_CONFG", "RELAY_CONFIG"),
        ("relay_max_connection", "RELAY_MAX_CONNECTIONS"),
        ("relay_inbox_count_file", "RELAY_INBOX_COUNT_FILE"),
        ("Relay_Config", "RELAY_CONFIG"),
    ],
)
def test_a_misspelt_variable_ends_the_start_and_names_the_right_one(
    monkeypatch: pytest.MonkeyPatch, written: str, meant: str
) -> None:
    monkeypatch.setenv(written, "5")
    with pytest.raises(StateError, match=f"no setting {written}; did you mean {meant}[?]"):
        settings.load()


def test_the_case_of_a_setting_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("relay_inbox_count", "5")
    monkeypatch.setenv("relay_key_file", "/relay.key")
    made = settings.load()
    assert (made.inbox_count, made.key_file) == (5, Path("/relay.key"))


def test_variables_of_agents_and_of_kubernetes_end_no_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made_for_a_service = [
        "RELAY_PORT", "RELAY_PORT_8080_TCP", "RELAY_PORT_8080_TCP_ADDR", "RELAY_SERVICE_HOST",
        "RELAY_SERVICE_PORT", "RELAY_ADMIN_PORT", "RELAY_REDIS_SERVICE_HOST", "RELAY_REDIS_PORT",
    ]  # fmt: skip
    for name in (*made_for_a_service, *variables.AGENTS, "RELAY_KEY"):
        monkeypatch.setenv(name, "tcp://10.0.0.1:8080")
    assert settings.load().inbox_count == 10_000
    assert settings.unknown_variables() == dict.fromkeys([*made_for_a_service, "RELAY_KEY"])


def test_an_unknown_field_of_the_file_is_named_with_the_right_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "relay.toml"
    monkeypatch.setenv("RELAY_CONFIG", str(file))
    file.write_text("inboxcount = 5")
    with pytest.raises(StateError, match="no setting inboxcount; did you mean inbox_count"):
        settings.load()
    file.write_text("weather = 5")
    with pytest.raises(StateError, match=r"no setting weather$"):
        settings.load()


@pytest.mark.parametrize("word", ["proxy.example", "10.0.0.5/8", "127.0.0.1:80", "*", "[::1]"])
def test_a_trusted_proxy_that_is_no_address_or_network_ends_the_start(word: str) -> None:
    with pytest.raises(StateError, match="setting trusted_proxies: ") as caught:
        settings.load({"trusted_proxies": f"127.0.0.1, {word}"})
    assert word in caught.value.detail


@pytest.mark.parametrize("name", ["allow", "deny"])
def test_a_did_that_nobody_can_have_ends_the_start(name: str) -> None:
    did = ALICE.did
    assert getattr(settings.load({name: did}), name) == (did,)
    with pytest.raises(StateError, match=f"setting {name}: .*{did[:-1]}") as caught:
        settings.load({name: did[:-1]})
    assert "did:key" in caught.value.detail


def test_the_document_lists_the_variables_without_effect_and_those_of_agents() -> None:
    text = DOCUMENT.read_text()
    without = listed(text, "<!-- without effect -->", "Nor have")
    assert without == set(variables.WITHOUT_EFFECT)
    assert listed(text, "<!-- of agents -->", "") == variables.AGENTS


def listed(text: str, begin: str, end: str) -> set[str]:
    """Words in code between two marks, or to the end."""
    part = text.partition(begin)[2]
    return set(re.findall("`([^`]+)`", part.partition(end)[0] if end else part))
