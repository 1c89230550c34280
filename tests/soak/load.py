"""Everything that clients do to a server at once, and what the server holds of the machine meanwhile."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.integration.test_server_sessions import EXCLUSIVE, NOTES
from tests.support.server import Server, zip_base64

EVENT = "def handler(event, context): return event"
STREAM = """
import time
def handler(environ, start_response):
    start_response("200 OK", [("content-type", "text/plain")])
    for n in range(40):
        yield b"%d\\n" % n
        time.sleep(0.005)
"""
SESSIONS = 4


class Load:
    """Clients of one server, each a thread that does one kind of thing until told to stop or the server has gone."""

    def __init__(self, server: Server, seed: int) -> None:
        self.replies: Counter[tuple[str, int]] = Counter()
        self._server = server
        self._dice = random.Random(seed)
        self._stop = threading.Event()
        self._numbers = itertools.count()
        self._threads: list[threading.Thread] = []

    @staticmethod
    def deploy(server: Server) -> None:
        """The functions that the clients call, with a version and an alias."""
        server.deploy("event", {"index.py": EVENT})
        server.deploy("stream", {"index.py": STREAM})
        server.deploy("notes", {"index.py": NOTES}, **EXCLUSIVE)
        with server.client() as client:
            client.post("/2023-03-30/functions/notes/versions", json={"description": "one"})
            client.post("/2023-03-30/functions/notes/aliases", json={"aliasName": "live", "versionId": "1"})

    def __enter__(self) -> Load:
        for verb in (self._event, self._stream, self._session, self._pause, self._deploy, self._session):
            thread = threading.Thread(target=self._client, args=(verb,))
            thread.start()
            self._threads.append(thread)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _client(self, verb: Callable[[httpx.Client], int]) -> None:
        with self._server.client() as client:
            while not self._stop.is_set():
                try:
                    self.replies[verb.__name__, verb(client)] += 1
                except httpx.HTTPError:
                    if not _lives(self._server.pid):
                        return
                    self.replies[verb.__name__, 0] += 1

    def _event(self, client: httpx.Client) -> int:
        return client.post("/2023-03-30/functions/event/invocations", content=b"x").status_code

    def _stream(self, client: httpx.Client) -> int:
        with client.stream("GET", "/stream/") as reply:
            for _ in reply.iter_bytes():
                if self._dice.random() < 0.1:
                    break  # the client goes away in the middle
        return reply.status_code

    def _session(self, client: httpx.Client) -> int:
        headers = {"x-chat-id": f"s{self._dice.randrange(SESSIONS)}"}
        content = f"add {next(self._numbers)}"
        return client.post("/2023-03-30/functions/notes/invocations", content=content, headers=headers).status_code

    def _pause(self, client: httpx.Client) -> int:
        path = f"/2023-03-30/functions/notes/sessions/s{self._dice.randrange(SESSIONS)}"
        client.put(f"{path}/pause")
        return client.put(f"{path}/resume").status_code

    def _deploy(self, client: httpx.Client) -> int:
        code = {"zipFile": zip_base64({"index.py": f"{EVENT}\n# {next(self._numbers)}"})}
        body = {"functionName": "brief", "runtime": "python3.12", "handler": "index.handler", "code": code}
        client.post("/2023-03-30/functions", json=body)
        client.post("/2023-03-30/functions/brief/invocations", content=b"x")
        client.delete("/2023-03-30/functions/brief")
        del body["functionName"]
        return client.put("/2023-03-30/functions/event", json=body).status_code


def _lives(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@dataclass(frozen=True)
class Held:
    """What a server process and its helpers hold now."""

    fds: int
    namespaces: int  # descriptors of namespaces, in all of them
    threads: int
    children: int
    memory_kb: int

    @classmethod
    def of(cls, pid: int) -> Held:
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        helpers = children(pid)
        return cls(
            fds=len(list(Path(f"/proc/{pid}/fd").iterdir())),
            namespaces=sum(link.startswith(("net:", "user:")) for each in (pid, *helpers) for link in _links(each)),
            threads=int(status["Threads"]),
            children=len(helpers),
            memory_kb=int(status["VmRSS"].split()[0]),
        )


def children(pid: int, name: str = "") -> list[int]:
    """Direct children of a process, or those of this name."""
    found = [
        int(each) for task in Path(f"/proc/{pid}/task").iterdir() for each in (task / "children").read_text().split()
    ]
    return [each for each in found if not name or _name(each) == name]


def _name(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def _links(pid: int) -> Iterator[str]:
    with contextlib.suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                yield os.readlink(entry)
