"""The SDK with nothing installed but its three packages."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.nodes import running_node

ROOT = Path(__file__).parents[2]
ALONE = """
import asyncio, sys

ALLOWED = {"relay", "orjson", "nacl", "websockets", "cffi", "_cffi_backend", "pycparser"}


class OnlyTheSdk:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in ALLOWED or top in sys.stdlib_module_names:
            return None
        raise ModuleNotFoundError(f"{name} is not part of the SDK", name=top)


sys.meta_path.insert(0, OnlyTheSdk())
from pathlib import Path

from relay.client import Agent, SigningKey, sync
from relay.client.identity import key_file as keystore, key_format as keytext


async def main(url):
    async with Agent.open(SigningKey(b"a" * 32), url) as me:
        await me.send(me.did, "alone")
        message = await anext(me.inbox())
        await message.ack()
        print(message.text())


def main_without_a_loop(url):
    with sync.Agent.open(SigningKey(b"b" * 32), url) as me:
        me.send(me.did, "without a loop", wait="stored")
        for message in me.inbox(timeout=5):
            message.ack()
            print(message.text())
            break


def keys_at_rest(path):
    key = keystore.generate(path, "a passphrase", kdf=keytext.KDF_MIN)
    keystore.replace(path, key, None)
    print(keystore.load(path).did == key.did)


keys_at_rest(Path(sys.argv[2]))
asyncio.run(main(sys.argv[1]))
main_without_a_loop(sys.argv[1])
print(*sorted({name.partition(".")[0] for name in sys.modules} - sys.stdlib_module_names))
"""


@pytest.mark.timeout(30)
async def test_the_sdk_works_with_its_three_packages_alone(tmp_path):
    async with running_node() as node:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", ALONE, node.url, str(tmp_path / "agent.key")),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    *said, packages = out.decode().splitlines()
    assert said == ["True", "alone", "without a loop"]
    # Debian gives every interpreter a sitecustomize
    ours = {"relay", "orjson", "nacl", "websockets", "cffi", "sitecustomize"}
    assert {name for name in packages.split() if not name.startswith("_")} <= ours
