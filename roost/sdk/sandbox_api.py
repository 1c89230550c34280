"""Sandboxes of a server, by E2B's API: made, found by the beginning of an id, changed."""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import httpx

from roost.sdk.client import Client, json_object
from roost.sdk.errors import Failed, UsageError

API_KEY = "x-api-key"
NEXT_TOKEN = "x-next-token"  # noqa: S105
ENVD_PORT = 49983
CODE_PORT = 49999

_ID_LENGTH = 20
_PREFIX = re.compile(rf"[a-z0-9]{{1,{_ID_LENGTH}}}")
_SHOWN = 4


@dataclass(frozen=True, kw_only=True)
class Sandbox:
    """What is needed to reach one. The token stands for all that it may do."""

    id: str
    domain: str
    token: str = field(repr=False)

    def headers(self, url: str, port: int) -> dict[str, str]:
        """Of requests that are sent to the server's address `url` and are for a port of the sandbox."""
        named = {"e2b-sandbox-id": self.id, "e2b-sandbox-port": str(port), "x-access-token": self.token}
        if not _takes_fields(httpx.URL(url).host) and self.domain:
            named["host"] = f"{port}-{self.id}.{self.domain}"
        return named


class SandboxApi:
    """The control plane of sandboxes. Raises as `Client` does."""

    def __init__(self, client: Client) -> None:
        self.client = client
        keys = client.server.keys
        self._headers = {API_KEY: keys.secret} if keys else {}

    def create(self, order: Mapping[str, Any]) -> dict[str, Any]:
        return self._object("POST", "/v2/sandboxes", order)

    def all(self) -> list[dict[str, Any]]:
        """All of them, running and paused, the newest first."""
        return self._pages("/v2/sandboxes", {})

    def snapshots(self, id: str | None) -> list[dict[str, Any]]:
        """All of them, or those of one sandbox."""
        return self._pages("/snapshots", {"sandboxID": id} if id else {})

    def find(self, prefix: str) -> str:
        """The one id that begins so. Raises UsageError for what can begin none, Failed when it is not one."""
        if not _PREFIX.fullmatch(prefix):
            raise UsageError(f"{prefix[:80]!r} is no id of a sandbox; `roost sandbox ls` lists them.")
        if len(prefix) == _ID_LENGTH:
            return prefix
        found = [id for one in self.all() if (id := str(one.get("sandboxID", ""))).startswith(prefix)]
        if not found:
            raise Failed(f"No sandbox has an id that begins with {prefix}; `roost sandbox ls` lists them.", status=404)
        if len(found) > 1:
            shown = ", ".join(found[:_SHOWN]) + (", ..." if len(found) > _SHOWN else "")
            raise Failed(f"{len(found)} sandboxes have ids that begin with {prefix}: {shown}.")
        return found[0]

    def get(self, id: str) -> dict[str, Any]:
        return self._object("GET", _path(id))

    def reach(self, prefix: str) -> Sandbox:
        """One that takes requests now. Raises Failed for one that is paused and does not wake by itself."""
        said = self.get(self.find(prefix))
        id = str(said.get("sandboxID", ""))
        wakes = (said.get("lifecycle") or {}).get("autoResume")
        if said.get("state") == "paused" and not wakes:
            raise Failed(f"Sandbox {id} is paused; `roost sandbox resume {id}` brings it back.")
        return Sandbox(id=id, domain=str(said.get("domain") or ""), token=str(said.get("envdAccessToken") or ""))

    def kill(self, id: str) -> None:
        self._send("DELETE", _path(id))

    def checkpoints(self, id: str) -> list[dict[str, Any]]:
        """Those of one sandbox, the oldest first."""
        return _objects(_json(self._send("GET", f"{_path(id)}/checkpoints")))

    def post(self, id: str, verb: str, body: Mapping[str, Any], query: Mapping[str, str] | None = None) -> Any:
        """`POST /sandboxes/{id}/{verb}`: the JSON of the reply, None for an empty one."""
        response = self._send("POST", f"{_path(id)}/{verb}", body, query)
        return _json(response) if response.content else None

    def logs(self, id: str, lines: int) -> list[dict[str, Any]]:
        """The last lines, oldest first."""
        query = {"direction": "backward", "limit": str(lines)}
        said = self._object("GET", f"/v2{_path(id)}/logs", query=query)
        return _objects(said.get("logs"))[::-1]

    def secrets(self) -> list[dict[str, Any]]:
        """All of the account, by name, without their values."""
        return self._pages("/secrets", {})

    def create_secret(self, order: Mapping[str, Any]) -> dict[str, Any]:
        return self._object("POST", "/secrets", order)

    def change_secret(self, name: str, change: Mapping[str, Any]) -> dict[str, Any]:
        return self._object("POST", f"/secrets/{quote(name, safe='')}", change)

    def delete_secret(self, name: str) -> None:
        self._send("DELETE", f"/secrets/{quote(name, safe='')}")

    def _pages(self, path: str, query: dict[str, str]) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = []
        while True:
            response = self._send("GET", path, query=query)
            items += _objects(_json(response))
            token = response.headers.get(NEXT_TOKEN)
            if not token or token == query.get("nextToken"):
                return items
            query = {**query, "nextToken": token}

    def _object(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, query: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        value = _json(self._send(method, path, body, query))
        if not isinstance(value, dict):
            raise Failed("The server answered with JSON of another shape; is it Roost?")
        return value

    def _send(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, query: Mapping[str, str] | None = None
    ) -> httpx.Response:
        headers = self._headers if body is None else {**self._headers, "content-type": "application/json"}
        content = b"" if body is None else json.dumps(body).encode()
        with self.client.unsigned(method, path, query=query, content=content, headers=headers, judge=judge) as response:
            return response


def judge(response: httpx.Response) -> None:
    """Raise Failed for a reply of E2B's API, or of a sandbox's daemon, that says what went wrong."""
    if not response.is_error:
        return
    said = json_object(response)
    message = str(said.get("message") or said.get("Message") or response.text[:300].strip())
    if not message:
        message = f"The answer was status {response.status_code}: {response.reason_phrase}"
    mend = ""
    if response.status_code == 401 and API_KEY in response.request.headers:
        mend = " Is ROOST_ACCESS_KEY_SECRET one of this server's?"
    elif response.status_code == 401 and "x-access-token" not in response.request.headers:
        mend = " Set ROOST_ACCESS_KEY_ID and ROOST_ACCESS_KEY_SECRET."
    raise Failed(f"{message.rstrip('.')}.{mend}", status=response.status_code, code=str(said.get("code") or ""))


def _path(id: str) -> str:
    return f"/sandboxes/{quote(id, safe='')}"


def _takes_fields(host: str) -> bool:
    """Whether fields may name the sandbox; where the server has another name, only the Host can."""
    if host == "localhost" or host.startswith("sandbox."):
        return True
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _json(response: httpx.Response) -> Any:
    try:
        return response.json()
    except ValueError as error:
        raise Failed("The server answered with something that is not JSON; is it Roost?") from error


def _objects(value: object) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []
