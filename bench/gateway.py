"""What the gateway adds to a request: latency and throughput beside a bare uvicorn, and its own CPU time per request.

    python bench/gateway.py [--requests 12000] [--rounds 30]

Three processes: uvicorn with a two-line ASGI application (on TCP and on a unix socket), the gateway in front of its
unix socket, and this one, which sends keep-alive requests over raw sockets. Rounds alternate between the two, so that
what else the machine does falls on both; the table shows medians over the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import socket
import statistics
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import uvicorn
import uvloop

from roost.gateway.server import Gateway
from roost.model.function import FunctionSpec, Runtime

_BODY = b'{"answer":42}'
_EVENT = b'{"message":"hello"}'


async def application(scope: dict[str, Any], receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        return
    while (await receive()).get("more_body"):
        pass
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(_BODY))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": _BODY})


def serve_upstream(port: int, path: str) -> None:
    async def main() -> None:
        options: dict[str, Any] = {"log_level": "warning", "access_log": False, "lifespan": "off", "http": "httptools"}
        tcp = uvicorn.Server(uvicorn.Config(application, port=port, **options))
        unix = uvicorn.Server(uvicorn.Config(application, uds=path, **options))
        tcp.install_signal_handlers = unix.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
        await asyncio.gather(tcp.serve(), unix.serve())

    uvloop.run(main())


class _Lease:
    """A free slot on the one upstream."""

    instance_id = "bench"
    session = None
    cold = restored = False
    request_headers: dict[str, str] = {}

    def __init__(self, spec: FunctionSpec, path: Path) -> None:
        self.spec = spec
        self.app_socket = path

    def release(self) -> None: ...

    def abandon(self, reason: str) -> None: ...

    async def failure(self) -> Exception:
        return RuntimeError("the upstream of the benchmark broke")


class _Ports:
    """Everything around the gateway, at no cost: what remains is the gateway's own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.spec = FunctionSpec(
            account="bench", name="bench", version="LATEST", revision="1", runtime=Runtime.PYTHON, timeout_s=60
        )

    def resolve(self, account: str, name: str, qualifier: str) -> FunctionSpec:
        return self.spec

    def check_http(self, account: str, *_: object, **__: object) -> str:
        return account

    def unresolved(self, account: str, name: str, authorization: str, error: Exception, *_: object) -> Exception:
        return error

    def check_signed(self, *_: object, **__: object) -> str:
        return "bench"

    def try_lease(self, spec: FunctionSpec, session: object = None) -> Any:
        return _Lease(spec, self.path)

    async def lease(self, spec: FunctionSpec, session: object = None, *, timeout_s: float = 60.0) -> Any:
        return _Lease(spec, self.path)

    def invocation(self, record: object) -> None: ...


def serve_gateway(path: str, ready: Connection) -> None:
    async def main() -> None:
        ports: Any = _Ports(Path(path))
        gateway = Gateway(
            account="bench",
            region="local",
            control_socket=Path(path),
            catalog=ports,
            access=ports,
            fleet=ports,
            observer=ports,
        )
        ready.send(await gateway.start("127.0.0.1", 0))
        await asyncio.Event().wait()

    uvloop.run(main())


class _Client(asyncio.Protocol):
    """Sends one request after the other; counts the replies and how long each took."""

    def __init__(self, request: bytes, count: int, times: list[float], done: asyncio.Future[None]) -> None:
        self.request = request
        self.left = count
        self.times = times
        self.done = done
        self.seen = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport
        self.send()

    def send(self) -> None:
        self.began = time.perf_counter()
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.seen += data
        if not self.seen.endswith(_BODY):
            return
        self.times.append(time.perf_counter() - self.began)
        assert self.seen.startswith(b"HTTP/1.1 200"), self.seen
        self.seen = b""
        self.left -= 1
        if self.left:
            self.send()
        else:
            self.transport.close()
            self.done.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(exc or ConnectionError("closed in mid-run"))


async def load(port: int, request: bytes, *, clients: int, count: int) -> tuple[list[float], float]:
    """(seconds per request, requests per second)."""
    loop = asyncio.get_running_loop()
    times: list[float] = []
    ends = [loop.create_future() for _ in range(clients)]
    began = time.perf_counter()
    for end in ends:
        await loop.create_connection(lambda e=end: _Client(request, count // clients, times, e), "127.0.0.1", port)
    await asyncio.gather(*ends)
    return times, len(times) / (time.perf_counter() - began)


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def requests_of(kind: str) -> tuple[bytes, bytes]:
    """(to uvicorn, to the gateway)."""
    common = b"Host: 127.0.0.1\r\nUser-Agent: bench\r\nAccept: */*\r\nContent-Type: application/json\r\n"
    if kind == "event":
        tail = common + b"Content-Length: %d\r\n\r\n%b" % (len(_EVENT), _EVENT)
        path = b"POST /2023-03-30/functions/bench/invocations HTTP/1.1\r\n"
        return b"POST /invoke HTTP/1.1\r\n" + tail, path + tail
    return b"GET /chat HTTP/1.1\r\n" + common + b"\r\n", b"GET /bench/chat HTTP/1.1\r\n" + common + b"\r\n"


async def measure(direct: int, gateway: int, pid: int, *, rounds: int, requests: int) -> list[dict[str, float | str]]:
    rows: list[dict[str, float | str]] = []
    for kind in ("http", "event"):
        plain, through = requests_of(kind)
        for clients in (1, 16):
            seen: dict[str, list[float]] = {"direct": [], "through": [], "direct_rps": [], "through_rps": [], "cpu": []}
            for _ in range(rounds):
                times, rate = await load(direct, plain, clients=clients, count=requests // rounds)
                seen["direct"].append(statistics.median(times))
                seen["direct_rps"].append(rate)
                before = cpu_seconds(pid)
                times, rate = await load(gateway, through, clients=clients, count=requests // rounds)
                seen["cpu"].append((cpu_seconds(pid) - before) / len(times))
                seen["through"].append(statistics.median(times))
                seen["through_rps"].append(rate)
            middle = {key: statistics.median(values) for key, values in seen.items() if key != "cpu"}
            rows.append({"kind": kind, "clients": clients, **middle, "cpu": statistics.fmean(seen["cpu"])})
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    titles = ("request", "clients", "uvicorn p50", "through p50", "added", "uvicorn req/s", "through req/s")
    print("|", " | ".join((*titles, "share", "gateway CPU")), "|")
    print("|" + "---|" * (len(titles) + 2))
    for row in rows:
        print(
            f"| {row['kind']} | {row['clients']} | {row['direct'] * 1e6:.0f} us | {row['through'] * 1e6:.0f} us "
            f"| {(row['through'] - row['direct']) * 1e6:.0f} us | {row['direct_rps']:.0f} | {row['through_rps']:.0f} "
            f"| {row['through_rps'] / row['direct_rps']:.0%} | {row['cpu'] * 1e6:.0f} us |"
        )


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def wait_for(port: int) -> None:
    for _ in range(500):
        with socket.socket() as sock:
            if sock.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise SystemExit("uvicorn did not start")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=12_000, help="per row and side, over all rounds")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    given = parser.parse_args()
    start = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="roost-bench-") as folder:
        path, direct = str(Path(folder) / "app.sock"), free_port()
        here, there = start.Pipe()
        upstream = start.Process(target=serve_upstream, args=(direct, path), daemon=True)
        gateway = start.Process(target=serve_gateway, args=(path, there), daemon=True)
        upstream.start()
        gateway.start()
        try:
            wait_for(direct)
            _, port = here.recv()
            assert gateway.pid is not None
            rows = uvloop.run(measure(direct, port, gateway.pid, rounds=given.rounds, requests=given.requests))
        finally:
            gateway.terminate()
            upstream.terminate()
            gateway.join(5)
            upstream.join(5)
    print(json.dumps(rows, indent=1)) if given.json else show(rows)


if __name__ == "__main__":
    main()
