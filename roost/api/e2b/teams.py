"""`/teams`: an account is a team, and a caller sees its own alone."""

from __future__ import annotations

from collections.abc import Callable

from starlette.routing import Route

from roost.api.e2b.call import Answer, Call, Endpoints
from roost.api.e2b.render import moment
from roost.model.errors import AccessDenied, InvalidArgument
from roost.sandboxes.census import Census, Count

_METRICS: dict[str, Callable[[Count], float]] = {
    "concurrent_sandboxes": lambda count: count.running,
    "sandbox_start_rate": lambda count: count.start_rate,
}


class Teams:
    def __init__(self, census: Census) -> None:
        self._census = census

    def routes(self, endpoints: Endpoints) -> list[Route]:
        return [
            endpoints.route("GET", "/teams", self.list_all),
            endpoints.route("GET", "/teams/{team}/metrics", self.metrics),
            endpoints.route("GET", "/teams/{team}/metrics/max", self.most),
        ]

    async def list_all(self, call: Call) -> Answer:
        """With the key that the caller has shown, as clients keep it from here."""
        return [{"teamID": call.account, "name": call.account, "apiKey": call.api_key, "isDefault": True}]

    async def metrics(self, call: Call) -> Answer:
        return [
            {**_moment(count), "concurrentSandboxes": count.running, "sandboxStartRate": count.start_rate}
            for count in self._counts(call)
        ]

    async def most(self, call: Call) -> Answer:
        value = _METRICS.get(call.query.get("metric", ""))
        if value is None:
            raise InvalidArgument(f"metric: one of {', '.join(_METRICS)} is expected.")
        counts = self._counts(call)
        if not counts:
            return {"timestamp": moment(0), "timestampUnix": 0, "value": 0}
        highest = max(counts, key=value)
        return {**_moment(highest), "value": value(highest)}

    def _counts(self, call: Call) -> list[Count]:
        if call.path["team"] != call.account:
            raise AccessDenied(f"team '{call.path['team'][:128]}' is not that of this API key.")
        start, end = call.number("start", 0, most=1 << 40), call.number("end", 1 << 40, most=1 << 40)
        return self._census.between(call.account, start, end + 1)


def _moment(count: Count) -> dict[str, object]:
    return {"timestamp": moment(count.at), "timestampUnix": int(count.at)}
