"""HTTP/1.1 over a stream: one request and one answer; the standard library parses the heads.

Invariants: each read has a bound, and the caller has the deadline. A connection is used once, so
bytes after the answer are not read.
"""

from __future__ import annotations

import asyncio
import io
import re
from collections.abc import Sequence
from http.client import HTTPResponse
from typing import Any, Final, cast

SUCCESS: Final = range(200, 300)
_START: Final = b"HTTP/"
_INTERIM: Final = re.compile(rb"HTTP/1\.[01] 1[0-9][0-9]\b")
_CHUNK: Final = 64 * 1024
_CHUNK_SIZE: Final = re.compile(rb"([0-9a-fA-F]{1,8})[ \t]*(?:;[^\r\n]*)?\r\n")


class _ReceivedHead:
    """The part of a socket that :class:`HTTPResponse` uses: the received bytes."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, _: str) -> io.BytesIO:
        return io.BytesIO(self._data)


def encode_head(lines: Sequence[str]) -> bytes:
    """Encode the head of a request.

    Raises:
        ValueError: a line is not printable ASCII.
    """
    if any(not (line.isascii() and line.isprintable()) for line in lines):
        raise ValueError("a line of a request must be printable ASCII")
    return "".join(f"{line}\r\n" for line in (*lines, "")).encode()


async def read_head(reader: asyncio.StreamReader) -> HTTPResponse:
    """Read the head of the answer; :func:`read_body` reads the body.

    Raises:
        OSError: of the network; EOFError: the answer ends too early.
        ValueError, HTTPException: it is not HTTP, or too long.
    """
    while True:
        start = await reader.readexactly(len(_START))
        if start != _START:
            raise ValueError("the server there does not speak HTTP")
        data = start + await _until(reader, b"\r\n\r\n")
        if _INTERIM.match(data) is None:
            break
    answer = HTTPResponse(cast("Any", _ReceivedHead(data)))
    answer.begin()
    return answer


async def read_body(reader: asyncio.StreamReader, answer: HTTPResponse, max_bytes: int) -> bytes:
    """Read the body of an answer, at most ``max_bytes``.

    Raises:
        OSError, EOFError, ValueError: as :func:`read_head`.
    """
    if answer.chunked:
        return await _read_chunks(reader, max_bytes)
    if answer.length is not None:
        return await reader.readexactly(_bounded(answer.length, max_bytes))
    body = bytearray()
    while data := await reader.read(_CHUNK):
        body += data
        _bounded(len(body), max_bytes)
    return bytes(body)


async def _read_chunks(reader: asyncio.StreamReader, max_bytes: int) -> bytes:
    body = bytearray()
    while size := _chunk_size(await _until(reader, b"\r\n")):
        _bounded(len(body) + size, max_bytes)
        body += await reader.readexactly(size)
        if await reader.readexactly(2) != b"\r\n":
            raise ValueError("a chunk of the answer is longer than its size")
    return bytes(body)


def _chunk_size(line: bytes) -> int:
    found = _CHUNK_SIZE.match(line)
    if found is None:
        raise ValueError("the answer has a chunk without a size")
    return int(found[1], 16)


def _bounded(size: int, max_bytes: int) -> int:
    if size > max_bytes:
        raise ValueError("the answer is too long")
    return size


async def _until(reader: asyncio.StreamReader, end: bytes) -> bytes:
    try:
        return await reader.readuntil(end)
    except asyncio.LimitOverrunError as exc:
        raise ValueError("the answer is too long") from exc
