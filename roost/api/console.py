"""`/healthz`, `/metrics` and `/roost/...`: what the command line and a console show of this server.

With keys configured, all but `/healthz` want an ACS3 signature or `Authorization: Bearer <secret>` (for Prometheus).
"""

from __future__ import annotations

import json
import platform
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from roost import __version__
from roost.api.fc.call import error_response
from roost.api.identity import signer_or_bearer
from roost.instances.instance import Instance
from roost.instances.roster import Roster
from roost.model.errors import InvalidArgument, NotFound, RoostError
from roost.model.role import Caller
from roost.telemetry.log_record import LogRecord
from roost.telemetry.logs import FunctionLogs
from roost.telemetry.metering import Meter
from roost.telemetry.metrics import Metrics
from roost.tenants.identity import Identity
from roost.tenants.roles import needed

Handler = Callable[[Request], Awaitable[Response]]

MAX_LINES = 10_000


@dataclass(frozen=True, kw_only=True)
class Console:
    """What the routes read. `exists(account, function)` raises NotFound."""

    roster: Roster
    sandboxes: Callable[[], list[Instance]]
    logs: FunctionLogs
    metrics: Metrics
    meter: Meter
    identity: Identity
    exists: Callable[[str, str], None]
    functions: Callable[[str], int]
    data_dir: str
    drivers: Callable[[], Mapping[str, str]]  # which driver's rooms have which isolation


def console_routes(console: Console) -> list[Route]:
    """Routes for the control plane's application."""

    def caller(path: str, request: Request) -> Caller:
        return signer_or_bearer(console.identity, request, needed("GET", path))

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def metrics(request: Request) -> Response:
        if not caller("/metrics", request).operator:  # they tell of all accounts
            raise NotFound("There is nothing here.")
        body, kind = console.metrics.render(request.headers.get("accept", ""))
        return Response(body, media_type=kind)

    async def info(request: Request) -> Response:
        who = caller("/roost/info", request)
        account = who.account
        return JSONResponse(
            {
                "version": __version__,
                "dataDir": console.data_dir if who.operator else "",
                "drivers": list(dict.fromkeys(console.drivers().values())),
                "auth": "keys" if console.identity.asked else "none",
                "account": account,
                "role": who.role.name.lower(),
                "functions": console.functions(account),
                "python": platform.python_version(),
            }
        )

    async def instances(request: Request) -> Response:
        account = caller("/roost/instances", request).account
        every = [*console.roster.instances(), *console.sandboxes()]
        mine = [i for i in every if i.spec.account == account]
        drivers = console.drivers()
        return JSONResponse({"instances": [describe(i, drivers.get(i.spec.isolation, "")) for i in mine]})

    async def logs(request: Request) -> Response:
        account = caller("/roost/functions/{name}/logs", request).account
        name = request.path_params["name"]
        console.exists(account, name)
        lines = _lines(request.query_params.get("lines", "100"))
        of = request.query_params.get("requestId") or None
        if request.query_params.get("follow") in ("1", "true"):
            # One request's lines may lie far back between those of others.
            records = console.logs.follow(account, name, MAX_LINES if of else lines)
            return StreamingResponse(_ndjson(records, of), media_type="application/x-ndjson")
        newest = await console.logs.tail(account, name, lines, of)
        return Response(b"".join(_line(r) for r in newest), media_type="application/x-ndjson")

    async def usage(request: Request) -> Response:
        account = caller("/roost/usage", request).account
        function = request.query_params.get("function") or None
        session = request.query_params.get("session") or None
        if session and not function:
            raise InvalidArgument("The usage of a session needs its function too.")
        return JSONResponse(console.meter.usage(account, function, session).to_json())

    handlers: dict[str, Handler] = {
        "/healthz": health,
        "/metrics": metrics,
        "/roost/info": info,
        "/roost/instances": instances,
        "/roost/functions/{name}/logs": logs,
        "/roost/usage": usage,
    }
    return [Route(path, _with_errors(handler)) for path, handler in handlers.items()]


def _with_errors(handler: Handler) -> Handler:
    """Errors in the shape that the rest of the control plane has."""

    async def endpoint(request: Request) -> Response:
        try:
            return await handler(request)
        except RoostError as error:
            return error_response(error, str(uuid.uuid4()))

    return endpoint


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
        "isolation": instance.spec.isolation,
    }


def _lines(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > MAX_LINES:
        raise InvalidArgument(f"'lines' is a number from 0 to {MAX_LINES}.")
    return int(text)


def _line(record: LogRecord) -> bytes:
    return json.dumps(record.to_json(), separators=(",", ":")).encode() + b"\n"


async def _ndjson(records: AsyncIterator[LogRecord], request_id: str | None) -> AsyncIterator[bytes]:
    """Each record as a line; with `request_id` that request's alone."""
    async for record in records:
        if request_id in (None, record.request_id):
            yield _line(record)
