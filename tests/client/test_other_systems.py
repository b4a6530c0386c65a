"""The SDK on a system that is neither Linux nor macOS: it lacks what only those have."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from tests.support.nodes import running_node

pytestmark = pytest.mark.timeout(30)

PROGRAM = """
import asyncio, os, pathlib, sqlite3, ssl, sys, tempfile, uuid
for name in ("fcntl", "resource", "pwd"):
    sys.modules[name] = None
for name in "fchmod fchown geteuid getuid fork O_DIRECTORY O_NONBLOCK O_CLOEXEC".split():
    delattr(os, name)
url, directory = sys.argv[1], pathlib.Path(sys.argv[2])

from relay.client import Agent, KeyFileError
from relay.client.identity import key_file as keystore

key = keystore.generate(directory / "key")
try:
    keystore.replace(directory / "key", key, "secret")
except KeyFileError as exc:
    print(exc)

async def main(state):
    async with Agent.open(directory / "key", url, state=state) as me:
        await me.send(me.did, "hello")
        async for message in me.inbox():
            await message.ack()
            break
        print("acked")

asyncio.run(main(None))
asyncio.run(main(directory / "state"))
"""


async def test_an_agent_sends_and_receives_without_what_only_posix_has(tmp_path: Path):
    async with running_node() as node:
        words = (sys.executable, "-c", PROGRAM, node.url, str(tmp_path))
        pipe = asyncio.subprocess.PIPE
        program = await asyncio.create_subprocess_exec(*words, stdout=pipe, stderr=pipe)
        out, err = await asyncio.wait_for(program.communicate(), 20)
        assert (program.returncode, err) == (0, b"")
        # what needs a lock says so; everything else works
        sentence, *acks = out.decode().splitlines()
        assert sentence.endswith("it needs a file lock, as Linux and macOS have")
        assert acks == ["acked", "acked"]
