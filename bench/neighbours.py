"""What a room that attacks the machine costs its neighbour: requests to one function while another does its worst.

Each attack runs in a room with half a core, over and over, while the neighbour is asked; between two attacks it is
asked with nobody beside it. Both by one client, one request after the other. Needs root.
"""

from __future__ import annotations

import contextlib
import http.client
import random
import threading
import time
from collections.abc import Iterator

from bench import _harness, _servers

ASKED = 100  # requests in one round
SETTLE_S = 0.2  # for an attack to be under way
LAST_S = 1.0  # that one attack goes on by itself
ECHO = "def handler(event, context): return event"
ATTACKS = """
import mmap, os, sys, time

def forks():
    while True:
        try:
            if os.fork() == 0:
                time.sleep(1)
                os._exit(0)
        except OSError:
            time.sleep(0)

def heap():
    held = []
    while True:
        held.append(bytearray(1 << 20))

def written(path):
    data = os.urandom(1 << 20)
    with open(path, "wb", 0) as file:
        while True:
            try:
                file.write(data)
            except OSError:
                file.seek(0)
                file.truncate()

def memfd():
    written(f"/proc/self/fd/{os.memfd_create('x')}")

def inodes():
    number = 0
    while True:
        try:
            open(f"/root/file{number}", "x").close()
        except OSError:
            for name in os.listdir("/root"):
                os.unlink("/root/" + name)
        number += 1

def descriptors():
    while True:
        try:
            os.open("/dev/null", os.O_RDONLY)
        except OSError:
            os.closerange(20, 1 << 20)

def spin():
    import threading
    for _ in range(8):
        threading.Thread(target=lambda: [None for _ in iter(int, 1)], daemon=True).start()
    time.sleep(60)

def output():
    while True:
        os.write(1, b"x" * 65536)

KINDS = {
    "fork bomb": forks, "heap": heap, "file system in memory": lambda: written("/dev/shm/x"),
    "file without a name": memfd,
    "full disk": lambda: written("/root/x"), "no inode left": inodes, "no descriptor left": descriptors,
    "threads that spin": spin, "flood of output": output,
}

def handler(event, context):
    KINDS[event.decode()]()
"""
KINDS = (
    "fork bomb", "heap", "file system in memory", "file without a name", "full disk", "no inode left",
    "no descriptor left", "threads that spin", "flood of output",
)  # fmt: skip
ALONE = "nobody beside it"


class Neighbour:
    """The function that is asked."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def ask(self) -> float:
        """Milliseconds."""
        began = time.perf_counter()
        self._connection.request("POST", "/2023-03-30/functions/neighbour/invocations", b"x")
        reply = self._connection.getresponse()
        if reply.read() != b"x":
            raise RuntimeError(f"the neighbour was answered with {reply.status}")
        return (time.perf_counter() - began) * 1000


@contextlib.contextmanager
def attack(port: int, kind: str) -> Iterator[None]:
    """It goes on, however often its room or its time ends."""
    over = threading.Event()

    def again() -> None:
        while not over.is_set():
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
                connection.request("POST", "/2023-03-30/functions/attacker/invocations", kind.encode())
                connection.getresponse().read()

    thread = threading.Thread(target=again)
    thread.start()
    try:
        time.sleep(SETTLE_S)
        yield
    finally:
        over.set()
        thread.join()


def main() -> None:
    options = _harness.arguments(__doc__).parse_args()
    _harness.begin("A neighbour that attacks the machine", options)
    shuffle = random.Random(1).shuffle
    series: dict[str, list[float]] = {ALONE: [], **{kind: [] for kind in KINDS}}
    with _servers.roost() as server:
        server.deploy("neighbour", {"index.py": ECHO}, handler="index.handler")
        server.deploy(
            "attacker", {"index.py": ATTACKS}, handler="index.handler", cpu=0.5, memorySize=512, timeout=int(LAST_S)
        )
        neighbour = Neighbour(server.port)
        for _ in range(ASKED):
            neighbour.ask()
        for done in range(options.runs):
            kinds = list(KINDS)
            shuffle(kinds)
            for kind in kinds:
                series[ALONE] += [neighbour.ask() for _ in range(ASKED)]
                with attack(server.port, kind):
                    series[kind] += [neighbour.ask() for _ in range(ASKED)]
            _harness.progress(f"round {done + 1} of {options.runs}")
        _harness.progress("")
    _harness.table("Request to the neighbour", "ms", series, reference=ALONE)
    promises = _harness.Promises()
    usual = _harness.stats(series[ALONE]).p99
    for kind in KINDS:
        promises.at_most(f"p99 beside '{kind}', to alone", _harness.stats(series[kind]).p99 / usual, 2.0, "times")
    _harness.end(promises, options)


if __name__ == "__main__":
    main()
