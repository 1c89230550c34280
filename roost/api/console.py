"""`/healthz`, `/metrics` and `/roost/...`: what the command line and a console show of this server."""

from __future__ import annotations

import json
import platform
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from roost import __version__
from roost.instances.fleet import InstanceFleet
from roost.instances.instance import Instance
from roost.model.errors import InvalidArgument
from roost.telemetry.log_record import LogRecord
from roost.telemetry.logs import FunctionLogs
from roost.telemetry.metering import Meter
from roost.telemetry.metrics import Metrics

MAX_LINES = 10_000


@dataclass(frozen=True, kw_only=True)
class Console:
    """What the routes read. `authorize(request)` returns the account or raises; `exists` raises NotFound."""

    fleet: InstanceFleet
    logs: FunctionLogs
    metrics: Metrics
    meter: Meter
    authorize: Callable[[Request], Awaitable[str]]
    exists: Callable[[str, str], None]
    functions: Callable[[str], int]
    data_dir: str
    drivers: tuple[str, ...]
    keys_configured: bool


def console_routes(console: Console) -> list[Route]:
    """Routes for the control plane's application."""

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def metrics(request: Request) -> Response:
        await console.authorize(request)
        body, kind = console.metrics.render(request.headers.get("accept", ""))
        return Response(body, media_type=kind)

    async def info(request: Request) -> Response:
        account = await console.authorize(request)
        return JSONResponse(
            {
                "version": __version__,
                "dataDir": console.data_dir,
                "drivers": list(console.drivers),
                "auth": "keys" if console.keys_configured else "none",
                "account": account,
                "functions": console.functions(account),
                "python": platform.python_version(),
            }
        )

    async def instances(request: Request) -> Response:
        account = await console.authorize(request)
        mine = [i for i in console.fleet.instances() if i.spec.account == account]
        return JSONResponse({"instances": [describe(i, console.drivers[0]) for i in mine]})

    async def logs(request: Request) -> Response:
        account = await console.authorize(request)
        name = request.path_params["name"]
        console.exists(account, name)
        lines = _lines(request.query_params.get("lines", "100"))
        if request.query_params.get("follow") in ("1", "true"):
            return StreamingResponse(
                _ndjson(console.logs.follow(account, name, lines)), media_type="application/x-ndjson"
            )
        records = await console.logs.tail(account, name, lines, request.query_params.get("requestId") or None)
        return Response(b"".join(_line(r) for r in records), media_type="application/x-ndjson")

    async def usage(request: Request) -> Response:
        account = await console.authorize(request)
        function = request.query_params.get("function") or None
        session = request.query_params.get("session") or None
        if session and not function:
            raise InvalidArgument("The usage of a session needs its function too.")
        return JSONResponse(console.meter.usage(account, function, session).to_json())

    return [
        Route("/healthz", health),
        Route("/metrics", metrics),
        Route("/roost/info", info),
        Route("/roost/instances", instances),
        Route("/roost/functions/{name}/logs", logs),
        Route("/roost/usage", usage),
    ]


def describe(instance: Instance, driver: str) -> dict[str, Any]:
    """One row of `roost ps`."""
    room = instance.room
    try:
        used = room.usage() if room else None
    except OSError:
        used = None
    return {
        "id": instance.id,
        "function": instance.spec.name,
        "version": instance.spec.version,
        "state": instance.state.value,
        "leases": instance.leases,
        "sessions": sorted(key[2] for key in instance.sessions),
        "memoryBytes": used.memory_bytes if used else 0,
        "memoryLimitMb": instance.spec.limits.memory_mb,
        "cpuMs": used.cpu_us // 1000 if used else 0,
        "created": instance.created,
        "pid": room.pid if room else None,
        "driver": driver,
    }


def _lines(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > MAX_LINES:
        raise InvalidArgument(f"'lines' is a number from 0 to {MAX_LINES}.")
    return int(text)


def _line(record: LogRecord) -> bytes:
    return json.dumps(record.to_json(), separators=(",", ":")).encode() + b"\n"


async def _ndjson(records: AsyncIterator[LogRecord]) -> AsyncIterator[bytes]:
    async for record in records:
        yield _line(record)
