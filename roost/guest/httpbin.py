"""The built-in template `httpbin`: an HTTP server that tells what it was sent, with go-httpbin's answers for the
endpoints that tests of HTTP clients use.

python -m roost.guest.httpbin [--port N] serves; with --ready, exit code 0 says that it does.
"""

from __future__ import annotations

import argparse
import base64
import gzip
import http.server
import json
import random
import re
import socket
import sys
import time
import uuid
import zlib
from collections.abc import Callable
from http import HTTPStatus
from urllib.parse import parse_qs, urlsplit

MOST_BODY = 1 << 20
MOST_BYTES = 100 << 10
MOST_DELAY_S = 10.0
MOST_REDIRECTS = 100
_JSON = "application/json; charset=utf-8"


class Handler(http.server.BaseHTTPRequestHandler):
    """One connection, kept alive."""

    protocol_version = "HTTP/1.1"
    server_version = "httpbin"
    timeout = 60

    def _serve(self) -> None:
        url = urlsplit(self.path)
        self._query = parse_qs(url.query, keep_blank_values=True)
        name, _, rest = url.path.strip("/").partition("/")
        self._body = self._read()
        if self._body is None:
            return
        handler = _ENDPOINTS.get(name)
        if handler is None or (name in _METHODS and self.command not in (_METHODS[name], "HEAD", "OPTIONS")):
            self._fail(404 if handler is None else 405)
        elif self.command == "OPTIONS":
            self.send(b"", 200, allow="GET, POST, HEAD, PUT, DELETE, PATCH, OPTIONS")
        else:
            try:
                handler(self, rest)
            except (ValueError, IndexError, OverflowError):
                self._fail(400)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = do_OPTIONS = _serve

    def _read(self) -> bytes | None:
        """The body; None if it can't be taken, and the answer was sent."""
        if self.headers.get("transfer-encoding", "").lower() == "chunked":
            return self._read_chunks()
        length = self.headers.get("content-length", "0")
        if not length.isdigit() or int(length) > MOST_BODY:
            self.close_connection = True
            self._fail(413)
            return None
        return self.rfile.read(int(length))

    def _read_chunks(self) -> bytes | None:
        body = b""
        try:
            while size := int(self.rfile.readline(32).split(b";")[0], 16):
                if size < 0 or len(body) + size > MOST_BODY:
                    raise ValueError(size)
                body += self.rfile.read(size)
                self.rfile.readline(8)
            while self.rfile.readline(1024).strip():
                pass
        except ValueError:
            self.close_connection = True
            self._fail(413)
            return None
        return body

    # --- answers -------------------------------------------------------------------------------------------------

    def about(self) -> dict[str, object]:
        """What is told of every request: fields and arguments as lists, for they may come twice."""
        fields: dict[str, list[str]] = {}
        for field, value in self.headers.items():
            fields.setdefault("-".join(part.capitalize() for part in field.split("-")), []).append(value)
        host = self.headers.get("host", "localhost")
        scheme = self.headers.get("x-forwarded-proto", "http")
        return {
            "args": self._query,
            "headers": fields,
            "method": self.command,
            "origin": self.headers.get("x-forwarded-for", self.client_address[0]),
            "url": f"{scheme}://{host}{self.path}",
        }

    def with_body(self) -> dict[str, object]:
        body, kind = self._body or b"", self.headers.get("content-type", "")
        text = body.decode("utf-8", "replace")
        form: dict[str, list[str]] = {}
        parsed: object = None
        if kind.startswith("application/x-www-form-urlencoded"):
            form = parse_qs(text, keep_blank_values=True)
        elif kind.startswith("application/json"):
            parsed = json.loads(text) if text else None
        try:
            data = body.decode()
        except UnicodeDecodeError:
            data = f"data:application/octet-stream;base64,{base64.b64encode(body).decode()}"
        return {**self.about(), "data": data, "files": {}, "form": form, "json": parsed}

    def say(self, value: object, code: int = 200, /, **fields: str) -> None:
        self.send(json.dumps(value, indent=2).encode() + b"\n", code, **{"content_type": _JSON, **fields})

    def send_bytes(self, data: bytes, kind: str, **fields: str) -> None:
        self.send(data, 200, content_type=kind, **fields)

    def send(self, data: bytes, status: int, /, **fields: str) -> None:
        self.send_response(status)
        for field, value in fields.items():
            self.send_header(field.replace("_", "-").title(), value)
        self.send_header("Access-Control-Allow-Origin", "*")
        if status >= 200 and status not in (204, 304):
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD" and status not in (204, 304):
            self.wfile.write(data)

    def _fail(self, status: int) -> None:
        self.say({"status_code": status, "error": HTTPStatus(status).phrase}, status)

    def redirect(self, target: str, status: int = 302) -> None:
        self.send(b"", status, location=target)

    def argument(self, name: str, default: str = "") -> str:
        return self._query.get(name, [default])[0]

    def arguments(self) -> dict[str, list[str]]:
        return self._query

    def log_message(self, format: str, *args: object) -> None: ...


def _status(self: Handler, rest: str) -> None:
    code = int(rest.partition("/")[0])
    if not 200 <= code <= 599:
        raise ValueError(code)
    fields = {"location": "/redirect/1"} if code in (301, 302, 303, 307, 308) else {}
    if code == 401:
        fields["www_authenticate"] = 'Basic realm="Fake Realm"'
    self.send(b"", code, **fields)


def _bytes(self: Handler, rest: str) -> None:
    count = min(int(rest), MOST_BYTES)
    dice = random.Random(int(self.argument("seed")) if self.argument("seed") else None)  # noqa: S311 - as asked for
    self.send_bytes(dice.randbytes(count) if count > 0 else b"", "application/octet-stream")


def _delay(self: Handler, rest: str) -> None:
    seconds = float(rest)
    if not 0 <= seconds <= MOST_DELAY_S:
        raise ValueError(rest)
    time.sleep(seconds)
    self.say(self.with_body())


def _redirects(self: Handler, rest: str) -> None:
    left = int(rest)
    if not 1 <= left <= MOST_REDIRECTS:
        raise ValueError(rest)
    self.redirect("/get" if left == 1 else f"/redirect/{left - 1}")


def _redirect_to(self: Handler, rest: str) -> None:
    status = int(self.argument("status_code", "302"))
    if not self.argument("url") or not 300 <= status <= 399:
        raise ValueError(status)
    self.redirect(self.argument("url"), status)


def _basic_auth(self: Handler, rest: str) -> None:
    user, password = rest.split("/")[:2]
    expected = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
    if self.headers.get("authorization") == expected:
        self.say({"authenticated": True, "authorized": True, "user": user})
    else:
        self.say({"authenticated": False, "authorized": False, "user": ""}, 401, www_authenticate='Basic realm="Fake"')


def _bearer(self: Handler, rest: str) -> None:
    scheme, _, token = self.headers.get("authorization", "").partition(" ")
    if scheme == "Bearer" and token:
        self.say({"authenticated": True, "token": token})
    else:
        self.send(b"", 401, www_authenticate="Bearer")


def _cookies(self: Handler, rest: str) -> None:
    pairs = (pair.strip().partition("=") for pair in self.headers.get("cookie", "").split(";") if "=" in pair)
    cookies = {name: value for name, _, value in pairs}
    if rest == "set":
        self.send_response(302)
        for name, values in self.arguments().items():
            self.send_header("Set-Cookie", f"{name}={values[0]}; HttpOnly".replace("\r", "").replace("\n", ""))
        self.send_header("Location", "/cookies")
        self.send_header("Content-Length", "0")
        self.end_headers()
    else:
        self.say({"cookies": cookies})


def _stream(self: Handler, rest: str) -> None:
    lines = [json.dumps({"id": number, **self.about()}) for number in range(max(0, min(int(rest), 100)))]
    self.send_bytes("".join(f"{line}\n" for line in lines).encode(), _JSON)


def _compressed(kind: str, pack: Callable[[bytes], bytes]) -> Callable[[Handler, str], None]:
    def handler(self: Handler, rest: str) -> None:
        body = json.dumps({**self.about(), "gzipped": kind == "gzip", "deflated": kind == "deflate"}).encode()
        self.send_bytes(pack(body), _JSON, content_encoding=kind)

    return handler


def _response_headers(self: Handler, rest: str) -> None:
    given = {name: "".join(values[:1]).splitlines()[:1] for name, values in self.arguments().items()}
    shown = {name: value[0] for name, value in given.items() if value and re.fullmatch(r"[A-Za-z0-9-]+", name)}
    own = {"content-length", "content-type", "connection", "transfer-encoding"}
    self.say(self.arguments(), 200, **{name: value for name, value in shown.items() if name.lower() not in own})


def _etag(self: Handler, rest: str) -> None:
    if f'"{rest}"' in self.headers.get("if-none-match", ""):
        self.send(b"", 304, etag=f'"{rest}"')
    else:
        self.say(self.about(), etag=f'"{rest}"')


def _index(self: Handler, rest: str) -> None:
    items = "".join(f"<li>/{name}</li>" for name in sorted(_ENDPOINTS) if name)
    page = f"<!doctype html><title>httpbin</title><h1>httpbin</h1><ul>{items}</ul>"
    self.send_bytes(page.encode(), "text/html; charset=utf-8")


def _base64(self: Handler, rest: str) -> None:
    action, _, text = rest.rpartition("/")
    data = text.encode()
    done = base64.urlsafe_b64encode(data) if action == "encode" else base64.b64decode(data, b"-_", validate=True)
    self.send_bytes(done, "text/plain")


#: Endpoints that take one method alone.
_METHODS = {"get": "GET", "post": "POST", "put": "PUT", "patch": "PATCH", "delete": "DELETE"}
_ENDPOINTS: dict[str, Callable[[Handler, str], None]] = {
    "": _index,
    "get": lambda self, _: self.say(self.about()),
    "head": lambda self, _: self.say(self.about()),
    **{name: lambda self, _: self.say(self.with_body()) for name in ("post", "put", "patch", "delete", "anything")},
    "headers": lambda self, _: self.say({"headers": self.about()["headers"]}),
    "ip": lambda self, _: self.say({"origin": self.about()["origin"]}),
    "user-agent": lambda self, _: self.say({"user-agent": self.headers.get("user-agent", "")}),
    "uuid": lambda self, _: self.say({"uuid": str(uuid.uuid4())}),
    "hostname": lambda self, _: self.say({"hostname": socket.gethostname()}),
    "status": _status,
    "bytes": _bytes,
    "stream-bytes": _bytes,
    "delay": _delay,
    "redirect": _redirects,
    "relative-redirect": _redirects,
    "redirect-to": _redirect_to,
    "basic-auth": _basic_auth,
    "bearer": _bearer,
    "cookies": _cookies,
    "stream": _stream,
    "gzip": _compressed("gzip", gzip.compress),
    "deflate": _compressed("deflate", zlib.compress),
    "response-headers": _response_headers,
    "etag": _etag,
    "base64": _base64,
    "json": lambda self, _: self.say({"slideshow": {"title": "Sample", "slides": [{"title": "One"}]}}),
    "html": lambda self, _: self.send_bytes(b"<!doctype html><h1>Sample</h1>", "text/html; charset=utf-8"),
    "xml": lambda self, _: self.send_bytes(b"<?xml version='1.0'?><sample/>", "application/xml"),
    "robots.txt": lambda self, _: self.send_bytes(b"User-agent: *\nDisallow: /deny\n", "text/plain"),
    "encoding": lambda self, _: self.send_bytes("ünïcödé ✓".encode(), "text/html; charset=utf-8"),
}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="httpbin")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--ready", action="store_true")
    options = parser.parse_args(arguments)
    if options.ready:
        try:
            socket.create_connection(("127.0.0.1", options.port), timeout=1).close()
        except OSError:
            return 1
        return 0
    http.server.ThreadingHTTPServer(("0.0.0.0", options.port), Handler).serve_forever()  # noqa: S104 - the room's own lo
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
