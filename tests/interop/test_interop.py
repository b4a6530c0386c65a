"""A stranger gets in: other people's libraries speak to a real relay.

`client.mjs` was written from docs/PROTOCOL.md alone; joserfc is a JOSE library that knows nothing
of this protocol.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import time
from pathlib import Path

import httpx2
import pytest
from joserfc import jws as other_jws
from joserfc.jwk import OKPKey
from joserfc.registry import HeaderParameter

from relay.protocol.ids import Timestamp, new_message_id
from relay.protocol.jws import b64encode
from tests.support.nodes import new_key, running_node, speaker
from tests.support.patience import within
from tests.support.relay_process import relay_process

HERE = Path(__file__).parent
NODE = shutil.which("node")
ALGORITHMS = ["Ed25519", "EdDSA"]


def registry() -> other_jws.JWSRegistry:
    return other_jws.JWSRegistry({"typ": HeaderParameter("purpose", "str")}, algorithms=ALGORITHMS)


# the older name of the algorithm is still what many libraries write
@pytest.mark.filterwarnings("ignore:EdDSA is deprecated")
@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_joserfc_makes_an_envelope_that_is_accepted_and_checks_its_receipt(algorithm):
    sender = new_key()
    jwk = OKPKey.import_key(
        {
            "kty": "OKP",
            "crv": "Ed25519",
            "d": b64encode(sender.seed),
            "x": b64encode(sender.public_key),
        }
    )
    async with running_node() as node, speaker(node.url) as bob:
        now, body = int(time.time()), b"from another library"
        payload = {
            "v": 1,
            "id": new_message_id(Timestamp(now), os.urandom),
            "from": sender.did,
            "to": bob.key.did,
            "created_time": now,
            "expires_time": now + 3600,
            "kv": 1,
            "body": {
                "cty": "text/plain",
                "len": len(body),
                "sha256": b64encode(hashlib.sha256(body).digest()),
            },
        }
        header = {"alg": algorithm, "kid": sender.kid, "typ": "agent-envelope+jws"}
        # white space and member order are theirs: nothing is canonicalised
        compact = other_jws.serialize_compact(
            header, json.dumps(payload, indent=1), jwk, registry=registry()
        )
        envelope = {"jws": compact, "body": b64encode(body)}
        async with httpx2.AsyncClient(base_url=node.url, timeout=8) as http:
            answer = (await http.post("/v1/envelopes", json={"envelopes": [envelope]})).json()
        assert answer["rejected"] == []
        relay = node.parts.key
        public = OKPKey.import_key(
            {
                "kty": "OKP",
                "crv": "Ed25519",
                "x": b64encode(relay.public_key),
            }
        )
        receipt = other_jws.deserialize_compact(answer["receipt"], public, registry=registry())
        assert receipt.headers()["kid"] == relay.kid
        said = json.loads(receipt.payload)
        eid = b64encode(hashlib.sha256(compact.rpartition(".")[0].encode()).digest())
        assert [item["eid"] for item in said["items"]] == [eid]
        delivered = await bob.hear()
        assert delivered.items[0].envelope == envelope


@pytest.mark.timeout(120)
@pytest.mark.skipif(NODE is None, reason="needs Node.js on PATH")
@pytest.mark.skipif(
    not (HERE / "node_modules").is_dir(),
    reason="needs its libraries: npm install --no-package-lock in tests/interop",
)
async def test_a_client_written_from_the_document_alone_works(tmp_path):
    async with relay_process(tmp_path / "data") as relay:
        process = await asyncio.create_subprocess_exec(
            str(NODE),
            str(HERE / "client.mjs"),
            "--url",
            relay.url,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            async with within(90):
                said, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode == 0, said.decode()
