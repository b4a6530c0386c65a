"""The embedded store: a real Valkey or Redis server as a child process of this relay.

Read in this order::

    supervisor.py    EmbeddedStore: start, run (bring it back), stop
    binary.py        which server binary
    directory.py     whose directory it is: modes, the two locks, the socket's place, the log
    predecessor.py   what an earlier relay left running there
    process.py       one server process; launcher.py is what turns a child into it
    resp.py          one question to the server, without a client library
"""

from __future__ import annotations

from relay.store.embedded.binary import ServerBinary, find_server_binary
from relay.store.embedded.directory import DirectoryInUseError
from relay.store.embedded.supervisor import EmbeddedStore, OnEvent

__all__ = [
    "DirectoryInUseError",
    "EmbeddedStore",
    "OnEvent",
    "ServerBinary",
    "find_server_binary",
]
