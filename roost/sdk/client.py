"""Requests to a Roost server: where it is, signed when keys are set, every failure as a CliError."""

from __future__ import annotations

import json
import secrets
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import httpx

from roost.sdk.acs3 import Keys, sign
from roost.sdk.errors import Failed, FunctionFault, Unreachable, UsageError

DEFAULT_URL = "http://127.0.0.1:8700"
API = "/2023-03-30"
FAULT_HEADER = "x-fc-error-type"


@dataclass(frozen=True, kw_only=True)
class Server:
    """Where the server is, and who is asking."""

    url: str = DEFAULT_URL
    keys: Keys | None = None
    function_key: str = field(default="", repr=False)
    ca_file: str = ""  # authorities that its certificate may be of; "": those of this machine

    @property
    def bearer(self) -> dict[str, str]:
        """Headers of requests to a function's own address: its key, or the account's secret."""
        key = self.function_key or (self.keys.secret if self.keys else "")
        return {"authorization": f"Bearer {key}"} if key else {}

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Server:
        """Read ROOST_URL, ROOST_ACCESS_KEY_ID, ROOST_ACCESS_KEY_SECRET, ROOST_FUNCTION_KEY and ROOST_CA_FILE.

        Raises UsageError when they make no sense.
        """
        url = (environment.get("ROOST_URL") or DEFAULT_URL).rstrip("/")
        check_url(url)
        key_id = environment.get("ROOST_ACCESS_KEY_ID", "")
        secret = environment.get("ROOST_ACCESS_KEY_SECRET", "")
        if bool(key_id) != bool(secret):
            raise UsageError("Set both ROOST_ACCESS_KEY_ID and ROOST_ACCESS_KEY_SECRET, or neither.")
        keys = Keys(id=key_id, secret=secret) if key_id else None
        return cls(
            url=url,
            keys=keys,
            function_key=environment.get("ROOST_FUNCTION_KEY", ""),
            ca_file=environment.get("ROOST_CA_FILE", ""),
        )


class Client:
    """Sends requests to one server. A context manager; not for use by several threads at once."""

    def __init__(self, server: Server, transport: httpx.BaseTransport | None = None) -> None:
        self.server = server
        # A function may think for as long as its own timeout allows: the server bounds the wait for a reply, not we.
        timeout = httpx.Timeout(None, connect=5.0, write=60.0)
        self._http = httpx.Client(
            base_url=server.url, timeout=timeout, transport=transport, trust_env=False, verify=_authorities(server)
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self._http.close()

    def get_json(self, path: str, query: Mapping[str, str] | None = None) -> dict[str, Any]:
        """The JSON object at `path`."""
        return self._object(self.send("GET", path, query=query))

    def send_json(self, method: str, path: str, value: object) -> dict[str, Any]:
        """Send `value` as JSON; the JSON object of the reply, {} for an empty one."""
        body = json.dumps(value).encode()
        return self._object(self.send(method, path, body=body, headers={"content-type": "application/json"}))

    def send(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        """One request with its whole reply. Raises Unreachable, FunctionFault or Failed."""
        with self.stream(method, path, query=query, body=body, headers=headers) as response:
            return response

    @contextmanager
    def stream(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        streaming: bool = False,
    ) -> Iterator[httpx.Response]:
        """One request; with `streaming`, the reply's body is the caller's to read. Raises as `send` does."""
        request = self._http.build_request(method, path, params=query, content=body, headers=headers)
        request.headers.update(self._signature(request, query or {}, body))
        with self._exchange(request, streaming, check) as response:
            yield response

    @contextmanager
    def unsigned(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        content: bytes | Iterable[bytes] = b"",
        headers: Mapping[str, str] | None = None,
        streaming: bool = False,
        silence_s: float | None = None,
        judge: Callable[[httpx.Response], None],
    ) -> Iterator[httpx.Response]:
        """A request of another protocol: `judge` raises what its replies say went wrong, `headers` say who asks.

        With `silence_s` a reply that stands still for longer is broken off. Raises as `send` does.
        """
        timeout = httpx.Timeout(silence_s, connect=5.0, write=60.0)
        request = self._http.build_request(
            method, path, params=query, content=content, headers=headers, timeout=timeout
        )
        with self._exchange(request, streaming, judge) as response:
            yield response

    @contextmanager
    def _exchange(
        self, request: httpx.Request, streaming: bool, judge: Callable[[httpx.Response], None]
    ) -> Iterator[httpx.Response]:
        try:
            response = self._http.send(request, stream=True)
        except httpx.ConnectError as error:
            raise Unreachable(
                f"No Roost server answers at {self.server.url}; start one with `roost up` or `roost serve`."
            ) from error
        except httpx.HTTPError as error:
            raise Unreachable(f"The request to {self.server.url} failed: {error}.") from error
        try:
            if not streaming or response.is_error or FAULT_HEADER in response.headers:
                response.read()
                judge(response)
            yield response
        except httpx.HTTPError as error:
            raise Unreachable(f"The connection to {self.server.url} broke: {error}.") from error
        finally:
            response.close()

    def list_all(self, path: str, field: str, query: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
        """Every item of a paged list of the functions API."""
        items: list[dict[str, Any]] = []
        asked = dict(query or {})
        while True:
            page = self.get_json(path, asked)
            items += page.get(field) or []
            token = page.get("nextToken")
            if not token or token == asked.get("nextToken"):
                return items
            asked["nextToken"] = token

    def function(self, name: str) -> dict[str, Any] | None:
        """The function's configuration, or None when there is none of that name."""
        try:
            return self.get_json(function_path(name))
        except Failed as error:
            if error.status == 404:
                return None
            raise

    def _signature(self, request: httpx.Request, query: Mapping[str, str], body: bytes) -> dict[str, str]:
        if self.server.keys is None or "authorization" in request.headers:
            return {}
        return sign(
            self.server.keys,
            method=request.method,
            path=request.url.raw_path.decode().split("?")[0],
            query=query,
            host=request.headers["host"],
            body=body,
            timestamp=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            nonce=secrets.token_hex(16),
        )

    def _object(self, response: httpx.Response) -> dict[str, Any]:
        if not response.content:
            return {}
        try:
            value = response.json()
        except ValueError as error:
            raise Failed(f"{self.server.url} answered with something that is not JSON; is it Roost?") from error
        if not isinstance(value, dict):
            raise Failed(f"{self.server.url} answered with JSON of another shape; is it Roost?")
        return value


def _authorities(server: Server) -> ssl.SSLContext | bool:
    """Raises UsageError when the file is none of certificates."""
    if not server.ca_file or not server.url.startswith("https:"):
        return True
    try:
        return ssl.create_default_context(cafile=server.ca_file)
    except OSError as error:
        raise UsageError(f"ROOST_CA_FILE is {server.ca_file!r}, which can't be used: {error}.") from error


def check_url(url: str) -> None:
    """Raise UsageError for what can't be the server's address."""
    try:
        parsed = httpx.URL(url)
        parsed.host.encode("idna")  # as the resolver will: a part of a name has at most 63 characters
    except (httpx.InvalidURL, UnicodeError) as error:
        raise UsageError(f"ROOST_URL is {url!r}, which is not an address: {error}.") from error
    if parsed.scheme not in {"http", "https"} or not parsed.host:
        raise UsageError(f"ROOST_URL is {url!r}; it has to be like {DEFAULT_URL}.")


def function_path(name: str, rest: str = "") -> str:
    """Path of a function in the functions API."""
    return f"{API}/functions/{quote(name, safe='')}{rest}"


def check(response: httpx.Response) -> None:
    """Raise what a reply says went wrong: FunctionFault for the function's own, Failed for the server's."""
    said = json_object(response)
    if FAULT_HEADER in response.headers:
        raise FunctionFault(
            str(said.get("errorType") or response.headers[FAULT_HEADER]),
            str(said.get("errorMessage") or response.text[:500]),
            [str(line) for line in said.get("stackTrace") or ()],
        )
    if response.is_error:
        if "Message" in said:
            code = str(said.get("Code") or "")
            mend = " Set ROOST_ACCESS_KEY_ID and ROOST_ACCESS_KEY_SECRET." if code == "MissingAuthorization" else ""
            raise Failed(f"{said['Message']}{mend}", status=response.status_code, code=code)
        # Without a Message it is no error of Roost: a function that is a web server, or something in between.
        text = response.text[:300].strip() or response.reason_phrase
        raise Failed(f"The answer was status {response.status_code}: {text}", status=response.status_code)


def json_object(response: httpx.Response) -> dict[str, Any]:
    """What a reply says, {} when it is no JSON object."""
    try:
        value = response.json()
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
