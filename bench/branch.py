"""A live sandbox branches, by E2B's own Python SDK: heaps of several sizes, in each case to the branch's first reply.

"sandbox" is `fork`: files and memory, in a room of its own. "8 sandboxes, each" is one request for eight, divided.
"checkpoint" and "rollback" are of the whole sandbox, the latter to the first reply after it, to the same checkpoint as
the one before, for which a room is ready by then; "elsewhere": to another one. "context", "context checkpoint" and
"context rollback" are those of one context within its sandbox: memory alone, to the branch's word that it takes cells;
"and a cell in it" to the first one's result. The first reply does not touch the heap.
"checkpoint, to disk" and "rollback, from disk" are those of a server that may hold nothing in memory, with heaps of
random numbers, which can't be compressed.
Beside it, in the same sandbox: what `os.fork` of that process takes, which leads to no branch that anybody could speak
to; and a fresh sandbox that computes the heap again. At the end, once for each heap: `--branches` of one checkpoint, 64
unless told, and what each is charged for before and after it writes to a tenth of the heap.

With `runsc` installed, what gVisor takes for a program with the same heap: `checkpoint`, and `restore` until the new
one has said something. CRIU is no peer here: the version that Debian 12 has (3.17) fails on kernels of today.
`--gvisor RUNSC` adds sandboxes on gVisor: their forks have all of the room, written down and read again by that runsc.
`--mb 1 200 1000` adds a large heap. Needs root, and the SDK.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx

from bench import _gvisor, _harness, _servers
from bench.sandboxes import Sandboxes

MANY = 8
REQUEST = 64  # branches that one request asks for, at most
DISK_RUNS = 20
GVISOR_RUNS = 10  # it is far from what it is compared with
SETTINGS = "sandbox_memory_mb = 2560\nsandbox_disk_mb = 1024\ncheckpoints_memory_mb = 16384\nmax_sandboxes = 4000\n"
ON_DISK = "sandbox_memory_mb = 2560\nsandbox_disk_mb = 1024\ncheckpoints_memory_mb = 1\n"
FUNCTION = "sandbox:code-interpreter-v1"
PAUSE_S = 0.05
QUIET_S = 35.0  # after which a branch has given back what it can
PORT = "49999"
HEAP = "import numpy as np, os, time; heap = np.ones({mb} * 131072); x = 41"
RANDOM = "import numpy as np, os, time; heap = np.random.default_rng(1).random({mb} * 131072); x = 41"
FORK = """
began = time.perf_counter(); pid = os.fork()
if pid == 0: os._exit(0)
took = time.perf_counter() - began; os.waitpid(pid, 0); took * 1000
"""


class Branching:
    """One sandbox with a heap of so many MB."""

    def __init__(self, sandboxes: Sandboxes, url: str, mb: int, heap: str = HEAP, memory: str = "held") -> None:
        self._sandboxes = sandboxes
        self._heap = heap.format(mb=mb)
        self._memory = memory
        self._box = self._fresh()
        self._first = ""  # checkpoint that is gone back to
        self._two: list[str] = []
        context = next(one for one in self._box.list_code_contexts() if one.language == "python")
        headers = {"e2b-sandbox-id": self._box.sandbox_id, "e2b-sandbox-port": PORT}
        headers["x-access-token"] = self._box._envd_access_token or ""
        base = f"{url}/contexts/{context.id}/"
        self._context = httpx.Client(base_url=base, headers=headers, trust_env=False, timeout=60)
        own = f"{url}/sandboxes/{self._box.sandbox_id}/"
        self._own = httpx.Client(base_url=own, headers={"x-api-key": "any"}, trust_env=False, timeout=60)

    def _fresh(self) -> Any:
        box = self._sandboxes.create()
        _value(box, self._heap + "\nx")
        return box

    def sandbox(self) -> float:
        return self._forked(1)

    def sandboxes(self) -> float:
        return self._forked(MANY) / MANY

    def _forked(self, count: int) -> float:
        time.sleep(PAUSE_S)
        started = time.perf_counter()
        forks = self._box.fork(count=count, timeout=60)
        for fork in forks:
            if isinstance(fork, Exception):
                raise fork
            if _value(fork, "x + 1") != "42":
                raise RuntimeError("a fork has not the variables of its original")
        took = (time.perf_counter() - started) * 1000
        for fork in forks:
            fork.kill()
        return took

    def context(self) -> float:
        time.sleep(PAUSE_S)
        started = time.perf_counter()
        made = self._context.post("fork").raise_for_status().json()
        took = (time.perf_counter() - started) * 1000
        self._context.delete(f"../{made['id']}").raise_for_status()
        return took

    def context_cell(self) -> float:
        time.sleep(PAUSE_S)
        started = time.perf_counter()
        made = self._context.post("fork").raise_for_status().json()
        execution = self._box.run_code("x + 1", context=SimpleNamespace(**made))
        took = (time.perf_counter() - started) * 1000
        if execution.text != "42":
            raise RuntimeError("a fork has not the variables of its original")
        self._context.delete(f"../{made['id']}").raise_for_status()
        return took

    def checkpoint(self) -> float:
        time.sleep(PAUSE_S)
        started = time.perf_counter()
        made = self._own.post("checkpoints", json={}).raise_for_status().json()
        took = (time.perf_counter() - started) * 1000
        if made["memory"] != self._memory:
            raise RuntimeError(f"a checkpoint's memory is not {self._memory}: {made['memory']}")
        self._own.delete(f"checkpoints/{made['checkpointID']}").raise_for_status()
        return took

    def rollback(self) -> float:
        """To one checkpoint again and again: one of each rollback would stand on the one before."""
        if not self._first:
            self._first = self._taken()
        return self._back(self._first)[1]

    def rollback_answered(self) -> float:
        """The same, to the answer that it is done."""
        if not self._first:
            self._first = self._taken()
        return self._back(self._first)[0]

    def rollback_elsewhere(self) -> float:
        """To one of two by turns, so that it is never the same as the one before."""
        while len(self._two) < 2:
            self._two.append(self._taken())
        self._two.reverse()
        return self._back(self._two[0])[1]

    def _taken(self) -> str:
        return str(self._own.post("checkpoints", json={}).raise_for_status().json()["checkpointID"])

    def _back(self, checkpoint: str) -> tuple[float, float]:
        """To the answer, and to the first reply."""
        _value(self._box, "x = 0")
        time.sleep(PAUSE_S)
        started = time.perf_counter()
        self._own.post("rollback", json={"checkpointID": checkpoint}).raise_for_status()
        answered = time.perf_counter()
        if _value(self._box, "x") != "41":
            raise RuntimeError("a rollback has not brought the variables back")
        return (answered - started) * 1000, (time.perf_counter() - started) * 1000

    def branches(self, server: _servers.Roost, mb: int, count: int) -> None:
        """Print what many at once take, and what they are charged for."""
        made = self._own.post("checkpoints", json={}).raise_for_status().json()
        before, free = server.metric("roost_memory_bytes", function=FUNCTION), _available()
        started = time.perf_counter()
        forks = []
        while len(forks) < count:
            wanted = min(REQUEST, count - len(forks))
            body = {"count": wanted, "checkpointID": made["checkpointID"], "timeout": 3600}
            replies = self._own.post("fork", json=body).raise_for_status().json()
            made_now = [self._sandboxes.connect(one["sandbox"]["sandboxID"]) for one in replies]
            for fork in made_now:
                _value(fork, "x + 1")
            forks += made_now
        took = (time.perf_counter() - started) * 1000 / count

        def charged() -> float:
            return (server.metric("roost_memory_bytes", function=FUNCTION) - before) / count / 2**20

        new = charged()
        time.sleep(QUIET_S)
        quiet, gone = charged(), (free - _available()) / count / 2**20
        more = ""
        if count * mb << 20 < 5 * _available():  # what they write is half of what is free, at most
            for fork in forks:
                _value(fork, "heap[: len(heap) // 10] = 2")
            more = f", and {charged():.1f} MB when it has written to {mb / 10:.0f} MB of its heap"
        for fork in forks:
            fork.kill()
        self._own.delete(f"checkpoints/{made['checkpointID']}").raise_for_status()
        print(
            f"\n{count} branches of one checkpoint: {took:.1f} ms each, to the last one's first reply; each is "
            f"charged {new:.1f} MB then, {quiet:.1f} MB when nobody has used it for {QUIET_S:.0f} s ({gone:.1f} MB "
            f"less are free on the machine){more}.",
            flush=True,
        )

    def context_checkpoint(self) -> float:
        time.sleep(PAUSE_S)
        started = time.perf_counter()
        made = self._context.post("checkpoints", json={}).raise_for_status().json()
        took = (time.perf_counter() - started) * 1000
        self._context.delete(f"checkpoints/{made['id']}").raise_for_status()
        return took

    def context_rollback(self) -> float:
        made = self._context.post("checkpoints", json={}).raise_for_status().json()
        time.sleep(PAUSE_S)
        started = time.perf_counter()
        self._context.post("rollback", json={"checkpoint": made["id"]}).raise_for_status()
        took = (time.perf_counter() - started) * 1000
        self._context.delete(f"checkpoints/{made['id']}").raise_for_status()
        return took

    def plain(self) -> float:
        return float(_value(self._box, FORK))

    def again(self) -> float:
        time.sleep(PAUSE_S)
        started = time.perf_counter()
        fresh = self._fresh()
        took = (time.perf_counter() - started) * 1000
        fresh.kill()
        return took

    def close(self) -> None:
        self._context.close()
        self._own.close()
        self._box.kill()


def _available() -> int:
    """Bytes that the machine could still give to somebody."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))


def _value(box: Any, code: str) -> str:
    execution = box.run_code(code)
    if execution.error is not None:
        raise RuntimeError(f"{execution.error.name}: {execution.error.value}")
    return execution.text or ""


def gvisor(mb: int) -> None:
    """Print what gVisor takes, or why that is not known."""
    try:
        with _gvisor.Checkpoints(mb) as peer:
            series = _harness.interleave({"checkpoint": peer.checkpoint, "restore": peer.restore}, GVISOR_RUNS)
    except _servers.Missing as missing:
        print(f"\nNot measured, runsc with {mb} MB: {missing}", flush=True)
    else:
        _harness.table(f"runsc, a heap of {mb} MB", "ms", series, reference="checkpoint")


def _on_gvisor(options: Any) -> None:
    config = f'sandbox_isolation = "gvisor"\nrunsc = "{options.gvisor}"\nsandbox_memory_mb = 2048\n'
    with _servers.roost(packages=True, packages_of=options.packages, config=config) as server:
        for mb in options.mb:
            branching = Branching(Sandboxes(server.port), f"http://127.0.0.1:{server.port}", mb)
            named = {"sandbox": branching.sandbox, f"{MANY} sandboxes, each": branching.sandboxes}
            try:
                for measure in (*named.values(), branching.again):
                    measure()
                series = _harness.interleave(
                    {**named, "a fresh sandbox, computed again": branching.again}, options.runs
                )
            finally:
                branching.close()
            _harness.table(f"On gVisor, a heap of {mb} MB", "ms", series, reference="sandbox")


def _on_disk(options: Any) -> None:
    with _servers.roost(packages=True, packages_of=options.packages, config=ON_DISK) as server:
        for mb in options.mb:
            url = f"http://127.0.0.1:{server.port}"
            branching = Branching(Sandboxes(server.port), url, mb, RANDOM, memory="on disk")
            named = {"checkpoint, to disk": branching.checkpoint, "rollback, from disk": branching.rollback}
            try:
                for measure in named.values():
                    measure()
                series = _harness.interleave(named, min(options.runs, DISK_RUNS))
            finally:
                branching.close()
            _harness.table(f"On disk, a heap of {mb} MB", "ms", series, reference="checkpoint, to disk")


def main() -> None:
    parser = _harness.arguments(__doc__)
    parser.add_argument("--mb", type=int, nargs="*", default=[1, 200], help="sizes of the heap")
    parser.add_argument("--branches", type=int, default=64, help="of one checkpoint, at the end")
    parser.add_argument("--packages", type=Path, help="a data directory that has the packages of contexts already")
    parser.add_argument("--gvisor", type=Path, metavar="RUNSC", help="measure forks on gVisor too, with this runsc")
    options = parser.parse_args()
    _harness.begin("Live branches", options)
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(_servers.roost(packages=True, packages_of=options.packages, config=SETTINGS))
        for mb in options.mb:
            branching = Branching(Sandboxes(server.port), f"http://127.0.0.1:{server.port}", mb)
            named = {
                "sandbox": branching.sandbox,
                f"{MANY} sandboxes, each": branching.sandboxes,
                "checkpoint": branching.checkpoint,
                "rollback": branching.rollback,
                "rollback, to its answer": branching.rollback_answered,
                "rollback elsewhere": branching.rollback_elsewhere,
                "context": branching.context,
                "context, and a cell in it": branching.context_cell,
                "context checkpoint": branching.context_checkpoint,
                "context rollback": branching.context_rollback,
                "os.fork": branching.plain,
                "a fresh sandbox, computed again": branching.again,
            }
            try:
                for measure in named.values():
                    measure()
                series = _harness.interleave(named, options.runs)
                _harness.table(f"A heap of {mb} MB", "ms", series, reference="sandbox")
                branching.branches(server, mb, options.branches)
            finally:
                branching.close()
        for mb in options.mb:
            gvisor(mb)
    _on_disk(options)
    if options.gvisor:
        _on_gvisor(options)
    _harness.end(_harness.Promises(), options)


if __name__ == "__main__":
    main()
