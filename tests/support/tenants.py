"""Requests to a server by keys of several accounts, each in the way that its route wants."""

from __future__ import annotations

import json
import time
import uuid
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

import httpx

from roost.sdk.acs3 import Keys, sign


@dataclass(frozen=True)
class Who:
    """Somebody with a key at the server of `http`."""

    http: httpx.Client
    id: str
    secret: str

    def send(self, method: str, path: str, body: Any = None, **headers: str) -> httpx.Response:
        """Signed where signatures are spoken, else with the secret as a bearer. `body`: JSON, or bytes as they are."""
        content = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        where, _, query = path.partition("?")
        if path.startswith("/2023-03-30"):
            given |= sign(
                Keys(id=self.id, secret=self.secret), method=method, path=where, query=dict(parse_qsl(query)),
                host=self.http.base_url.netloc.decode(), body=content, nonce=uuid.uuid4().hex,
                timestamp=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            )  # fmt: skip
        else:
            given.setdefault("authorization", f"Bearer {self.secret}")
        return self.http.request(method, path, content=content, headers={"content-type": "application/json", **given})

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        """The JSON of a good answer."""
        reply = self.send(method, path, body, **headers)
        assert reply.is_success, f"{method} {path}: {reply.status_code} {reply.text}"
        return reply.json() if reply.content else None

    def key(self, account: str, role: str) -> Who:
        """A new key, made by this one."""
        made = self.ask("POST", "/roost/keys", {"name": f"{account} {role}", "role": role, "account": account})
        return Who(self.http, made["id"], made["secret"])
