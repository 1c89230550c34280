"""`/sandboxes` and `/v2/sandboxes`: create, connect, list, read, pause, resume, give time, kill."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from urllib.parse import parse_qsl, unquote

from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from roost.api.e2b import shapes
from roost.api.e2b.call import NEXT_TOKEN, RESTORED, WITHOUT_EFFECT, Answer, Call, Endpoints
from roost.api.e2b.logs import excerpt, level_of
from roost.api.e2b.render import created, detail, listed, log_entry, metric, moment
from roost.api.e2b.terms import Terms
from roost.model.errors import InvalidArgument
from roost.model.sandbox import Sandbox, SandboxState, SandboxVolume
from roost.sandboxes.fleet import CameBack, Order, SandboxFleet
from roost.sandboxes.lines import KEPT_LINES, LogLine
from roost.sandboxes.listing import Listing, page

TOTAL_RUNNING = "x-total-running"
MOST_LISTED = 100
#: `GET /sandboxes` has no pages.
MOST_RUNNING = 5000
MOST_METRICS = 100
#: Of a sandbox's network, when its rules are replaced.
_STAYS = ("allowPublicTraffic", "maskRequestHost", "egress", "egressMB", "egressConnections", "taint")
_KEY_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-")


class Sandboxes:
    """`domain` is known once the server listens."""

    def __init__(self, fleet: SandboxFleet, terms: Terms, domain: Callable[[], str]) -> None:
        self._fleet = fleet
        self._terms = terms
        self._domain = domain

    def routes(self, endpoints: Endpoints) -> list[Route]:
        one = "/sandboxes/{id}"
        return [
            endpoints.route("POST", "/sandboxes", self.create),
            endpoints.route("POST", "/v2/sandboxes", self.create),
            endpoints.route("GET", "/sandboxes", self.list_running),
            endpoints.route("GET", "/v2/sandboxes", self.list_all),
            endpoints.route("GET", "/sandboxes/metrics", self.newest_metrics),
            endpoints.route("GET", one, self.get),
            endpoints.route("DELETE", one, self.kill),
            endpoints.route("POST", f"{one}/connect", self.connect),
            endpoints.route("POST", f"/v2{one}/connect", self.connect),
            endpoints.route("POST", f"{one}/resume", self.resume),
            endpoints.route("POST", f"{one}/pause", self.pause),
            endpoints.route("POST", f"{one}/timeout", self.set_timeout),
            endpoints.route("POST", f"{one}/refreshes", self.refresh),
            endpoints.route("PUT", f"{one}/network", self.set_network),
            endpoints.route("GET", f"{one}/metrics", self.metrics),
            endpoints.route("GET", f"{one}/logs", self.logs),
            endpoints.route("GET", f"/v2{one}/logs", self.logs_v2),
        ]

    async def create(self, call: Call) -> Answer:
        asked = call.parse(shapes.NewSandbox)
        if asked.iam is not None and asked.iam.get("tokens"):
            raise InvalidArgument("iam: this server issues no workload tokens.")
        if asked.network.https_ports:
            raise InvalidArgument("network.httpsPorts: the ports of a sandbox are reached by plain HTTP alone.")
        if asked.auto_resume.enabled and asked.auto_pause and not asked.auto_pause_memory:
            raise InvalidArgument("autoResume: what is paused without its memory can't be resumed by traffic.")
        asked.network.check()
        public = asked.network.allow_public_traffic
        order = Order(
            account=call.account,
            template=asked.template_id,
            timeout_s=self._terms.timeout(asked.timeout),
            metadata=asked.metadata,
            environment=asked.env_vars,
            auto_pause=asked.auto_pause,
            auto_pause_memory=asked.auto_pause_memory,
            auto_resume=asked.auto_resume.enabled,
            internet=asked.allow_internet_access,
            network=asked.network.stored(),
            volumes=tuple(SandboxVolume(name=mount.name, path=mount.path) for mount in asked.volume_mounts),
            public=self._terms.public if public is None else public,
        )
        sandbox = await self._fleet.create(order, _idempotency_key(call))
        without_effect = asked.network.without_effect()
        self._tell(call.account, sandbox.id, without_effect)
        body = {**created(sandbox, self._domain()), "withoutEffect": without_effect}
        return JSONResponse(body, status_code=201, headers=_notice(without_effect))

    async def connect(self, call: Call) -> Answer:
        asked = call.parse(shapes.Connect)
        sandbox, came_back = await self._fleet.connect(
            call.account, call.path["id"], self._terms.timeout(asked.timeout), memory=asked.memory
        )
        return self._connected(sandbox, came_back)

    async def resume(self, call: Call) -> Answer:
        asked = call.parse(shapes.Resume)
        sandbox, came_back = await self._fleet.resume(
            call.account,
            call.path["id"],
            self._terms.timeout(asked.timeout),
            auto_pause=asked.auto_pause,
            memory=asked.memory,
        )
        return self._connected(sandbox, came_back)

    def _connected(self, sandbox: Sandbox, came_back: CameBack | None) -> Response:
        body = created(sandbox, self._domain())
        if came_back is None:
            return JSONResponse(body)
        return JSONResponse({**body, "restored": came_back}, status_code=201, headers={RESTORED: came_back})

    async def get(self, call: Call) -> Answer:
        sandbox = self._fleet.get(call.account, call.path["id"])
        mode, labels = self._fleet.taint(call.account, sandbox.id)
        return {**detail(sandbox, self._domain()), "taint": {"mode": mode, "labels": sorted(labels)}}

    async def kill(self, call: Call) -> Answer:
        await self._fleet.kill(call.account, call.path["id"])
        return None

    async def pause(self, call: Call) -> Answer:
        asked = call.parse(shapes.Pause)
        await self._fleet.pause(call.account, call.path["id"], memory=asked.memory)
        return None

    async def set_timeout(self, call: Call) -> Answer:
        asked = call.parse(shapes.Timeout)
        await self._fleet.set_timeout(call.account, call.path["id"], self._terms.timeout(asked.timeout))
        return None

    async def refresh(self, call: Call) -> Answer:
        asked = call.parse(shapes.Refresh)
        await self._fleet.set_timeout(call.account, call.path["id"], self._terms.timeout(asked.duration), extend=True)
        return None

    async def set_network(self, call: Call) -> Answer:
        asked = call.parse(shapes.NetworkUpdate)
        asked.check()
        kept = self._fleet.get(call.account, call.path["id"]).network
        stays = {name: kept[name] for name in _STAYS if name in kept}
        await self._fleet.set_network(
            call.account, call.path["id"], {**stays, **asked.stored()}, asked.allow_internet_access
        )
        without_effect = asked.without_effect()
        self._tell(call.account, call.path["id"], without_effect)
        return Response(status_code=204, headers=_notice(without_effect))

    def _tell(self, account: str, id: str, fields: list[str]) -> None:
        """In the sandbox's own log: the official clients show no header."""
        for field in fields:
            text = f"roost: {field} has no effect on this server"
            self._fleet.note(account, id, text)

    # --- listings ------------------------------------------------------------------------------------------------

    async def list_running(self, call: Call) -> Answer:
        listing = Listing(
            metadata=_metadata(call), states=frozenset({SandboxState.RUNNING}), limit=MOST_RUNNING, newest_first=True
        )
        shown, token = page(self._fleet.of_account(call.account), listing)
        if token:
            raise InvalidArgument(f"More than {MOST_RUNNING} sandboxes run; GET /v2/sandboxes lists them in pages.")
        return [listed(sandbox) for sandbox in shown]

    async def list_all(self, call: Call) -> Answer:
        order = call.query.get("order", "desc")
        if order not in ("asc", "desc"):
            raise InvalidArgument(f"order: 'asc' or 'desc' is expected, not {order[:40]!r}.")
        listing = Listing(
            metadata=_metadata(call),
            states=_states(call),
            started_after=_started_after(call),
            template=call.query.get("template", ""),
            newest_first=order == "desc",
            limit=call.number("limit", MOST_LISTED, least=1, most=MOST_LISTED),
            token=call.query.get("nextToken", ""),
        )
        shown, token = page(self._fleet.of_account(call.account), listing)
        running = sum(sandbox.state is SandboxState.RUNNING for sandbox in self._fleet.of_account(call.account))
        headers = {TOTAL_RUNNING: str(running), **({NEXT_TOKEN: token} if token else {})}
        return JSONResponse([listed(sandbox) for sandbox in shown], headers=headers)

    # --- what is observed ----------------------------------------------------------------------------------------

    async def metrics(self, call: Call) -> Answer:
        entry = self._fleet.entry(call.account, call.path["id"])
        start = call.number("start", 0, most=1 << 40)
        end = call.number("end", 1 << 40, most=1 << 40)
        return [metric(entry.sandbox, sample) for sample in entry.samples.between(start, end + 1)]

    async def newest_metrics(self, call: Call) -> Answer:
        ids = call.query.get("sandbox_ids", "").split(",")
        if len(ids) > MOST_METRICS:
            raise InvalidArgument(f"sandbox_ids: at most {MOST_METRICS} at once.")
        found = {sandbox.id for sandbox in self._fleet.of_account(call.account)}
        newest = {}
        for id in ids:
            samples = self._fleet.entry(call.account, id).samples.between(0, float("inf")) if id in found else []
            if samples:
                newest[id] = metric(self._fleet.get(call.account, id), samples[-1])
        return {"sandboxes": newest}

    async def logs(self, call: Call) -> Answer:
        start = call.number("start", 0, most=1 << 50) / 1000
        limit = call.number("limit", KEPT_LINES, most=KEPT_LINES)
        lines = [line for line in self._lines(call) if line.at >= start][:limit]
        return {
            "logs": [{"timestamp": moment(line.at), "line": line.text} for line in lines],
            "logEntries": [log_entry(line) for line in lines],
        }

    async def logs_v2(self, call: Call) -> Answer:
        search, worst = call.query.get("search", ""), level_of(call) in ("warn", "error")
        lines = [line for line in self._lines(call) if search in line.text and (line.stream == "stderr" or not worst)]
        return {"logs": [log_entry(line) for line in excerpt(call, lines, most=KEPT_LINES)]}

    def _lines(self, call: Call) -> list[LogLine]:
        return self._fleet.entry(call.account, call.path["id"]).lines.all()


def _notice(without_effect: list[str]) -> dict[str, str]:
    return {WITHOUT_EFFECT: ", ".join(without_effect)} if without_effect else {}


def _idempotency_key(call: Call) -> str:
    key = call.request.headers.get("idempotency-key", "")
    if len(key) > 255 or not _KEY_LETTERS.issuperset(key):
        raise InvalidArgument("Idempotency-Key: 1 to 255 lower-case letters, digits or hyphens are expected.")
    return key


def _metadata(call: Call) -> dict[str, str]:
    """`key=value&...`, encoded once for the query and once more by itself."""
    try:
        pairs = parse_qsl(call.query.get("metadata", ""), keep_blank_values=True, max_num_fields=100)
    except ValueError as error:
        raise InvalidArgument(f"metadata: {error}.") from error
    return {unquote(key): unquote(value) for key, value in pairs}


def _states(call: Call) -> frozenset[SandboxState]:
    given = [name for text in call.request.query_params.getlist("state") for name in text.split(",") if name]
    try:
        return frozenset(SandboxState(name) for name in given) or frozenset(SandboxState)
    except ValueError:
        raise InvalidArgument("state: 'running' and 'paused' are the states there are.") from None


def _started_after(call: Call) -> float:
    text = call.query.get("startedAfter")
    if not text:
        return float("-inf")
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidArgument(f"startedAfter: a time (RFC 3339) is expected, not {text[:60]!r}.") from None
    if at.tzinfo is None:
        raise InvalidArgument("startedAfter: the time needs its zone, as in 2026-01-31T12:00:00Z.")
    return at.timestamp()
