"""The package proxy: what a room may fetch from the host's configured package indexes, and nothing else.

    GET /pypi/simple/<project>/             the files of a project (PEP 503 or 691, as asked for)
    GET /pypi/files/<project>/<file>        a file that this page lists, or <file>.metadata
    GET /npm/<package>                      a package's document; a scope is `@scope/name` or `@scope%2fname`
    GET /npm/<package>/-/<file>.tgz         a tarball that this document names

A room names a project and a file; the host finds the address and the digest in the index. So a room can't make the host
call an address of its choice, nor put anything into the cache that the index does not vouch for.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from roost.isolation.egress import pages
from roost.isolation.egress.cache import CacheLimits, ContentCache
from roost.isolation.egress.documents import DocumentCache
from roost.isolation.egress.fetch import Fetcher
from roost.isolation.egress.guard import UNGUARDED, Guard
from roost.isolation.egress.pages import IndexFile
from roost.isolation.egress.refusal import Refused
from roost.isolation.egress.routes import (
    Package,
    PackageFile,
    ProjectFile,
    ProjectPage,
    Route,
    index_of,
    parse_route,
)
from roost.isolation.egress.upstreams import Upstream, Upstreams
from roost.model.errors import NotFound, RoostError, Throttled

log = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

_SEND_CHUNK = 256 << 10


@dataclass(frozen=True, kw_only=True)
class IndexLimits:
    """What the proxy allows. `room_bytes` is all that one room may be sent in its life."""

    cache: CacheLimits = field(default_factory=CacheLimits)
    room_bytes: int = 16 << 30
    room_requests: int = 16  # served at once; others of the room wait
    fresh_s: float = 60.0  # how long an index's answer counts as the present one
    documents_bytes: int = 64 << 20  # of answers kept in memory


class IndexProxy:
    """Shared by all rooms: connections to the indexes, and what was fetched. Needs a running event loop."""

    def __init__(self, upstreams: Upstreams, cache_dir: Path, limits: IndexLimits | None = None) -> None:
        self._upstreams = upstreams
        self.limits = limits or IndexLimits()
        self._fetcher = Fetcher(upstreams)
        self._files = ContentCache(cache_dir, self.limits.cache)
        half = self.limits.documents_bytes // 2
        fresh_s = self.limits.fresh_s
        self._projects: DocumentCache[tuple[IndexFile, ...]] = DocumentCache(
            fresh_s=fresh_s, limit_bytes=half, clock=time.monotonic
        )
        self._packages: DocumentCache[pages.NpmDocument] = DocumentCache(
            fresh_s=fresh_s, limit_bytes=half, clock=time.monotonic
        )

    def room(
        self,
        packages: Iterable[str],
        on_bytes: Callable[[int], None] = lambda _: None,
        on_request: Callable[[str, bool], None] = lambda path, allowed: None,
        guard: Guard = UNGUARDED,
    ) -> RoomIndex:
        """The ASGI application of one room that may use the named indexes. `on_bytes` is told what it is about to be
        sent; it may raise Throttled. `on_request` is told each path that was asked for, and whether it may be; `guard`
        has the room's labels."""
        return RoomIndex(self, frozenset(packages), on_bytes, on_request, guard)

    async def close(self) -> None:
        """End the connections to the indexes. Rooms must be detached before."""
        await self._projects.close()
        await self._packages.close()
        await self._fetcher.close()

    async def page(self, route: ProjectPage | Package, accept: str) -> tuple[bytes, str]:
        """Body and content type of a page. Raises NotFound or Unavailable."""
        if isinstance(route, ProjectPage):
            files = await self._project(route.project)
            if pages.SIMPLE_JSON in accept or "application/vnd.pypi.simple.latest+json" in accept:
                return pages.write_simple_json(route.project, files), pages.SIMPLE_JSON
            html = pages.SIMPLE_HTML if pages.SIMPLE_HTML in accept else "text/html; charset=utf-8"
            return pages.write_simple_html(route.project, files), html
        short = pages.NPM_SHORT in accept
        document = await self._package(route.name, short=short)
        return document.body, pages.NPM_SHORT if short else "application/json"

    async def find(self, route: ProjectFile | PackageFile) -> tuple[Upstream, IndexFile]:
        """Where a file is and what it must contain. Raises NotFound if the index does not list it."""
        if isinstance(route, ProjectFile):
            upstream = self._upstreams.pypi
            listed = await self._project(route.project)
            file = next((f for f in listed if f.filename == route.filename), None)
            if file is not None and route.metadata:
                file = pages.metadata_of(file) if file.metadata else None
        else:
            upstream = self._upstreams.npm
            file = (await self._package(route.name, short=True)).files.get(route.filename)
        if file is None:
            raise NotFound("The index does not list this file.")
        return upstream, file

    def content(self, upstream: Upstream, file: IndexFile) -> contextlib.AbstractAsyncContextManager[int]:
        """A descriptor of the file's verified content."""
        limit = self.limits.cache.file

        async def download(write: Callable[[bytes], Awaitable[None]]) -> None:
            await self._fetcher.file(upstream, file.url, write, limit=limit)

        return self._files.open(file.digest, download)

    async def _project(self, project: str) -> tuple[IndexFile, ...]:
        async def load() -> tuple[tuple[IndexFile, ...], int]:
            upstream = self._upstreams.pypi
            page = await self._fetcher.page(upstream, f"{upstream.url}{project}/", pages.SIMPLE_ACCEPT)
            files = await asyncio.to_thread(pages.read_simple, page.content, page.content_type, page.url)
            return tuple(file for file in files if upstream.allows(file.url)), len(page.content)

        return await self._projects.get(project, load)

    async def _package(self, name: str, *, short: bool) -> pages.NpmDocument:
        async def load() -> tuple[pages.NpmDocument, int]:
            upstream = self._upstreams.npm
            accept = f"{pages.NPM_SHORT}; q=1.0, application/json; q=0.8" if short else "application/json"
            page = await self._fetcher.page(upstream, upstream.url + quote(name, safe="@~"), accept)
            document = await asyncio.to_thread(pages.read_npm, page.content, name, upstream.allows)
            return document, 2 * len(page.content)

        return await self._packages.get(f"{name} {'short' if short else 'full'}", load)


class RoomIndex:
    """One room's view: its indexes, its byte budget, its share of concurrency. An ASGI application."""

    def __init__(
        self,
        proxy: IndexProxy,
        packages: frozenset[str],
        on_bytes: Callable[[int], None],
        on_request: Callable[[str, bool], None],
        guard: Guard,
    ) -> None:
        self._guard = guard
        self._proxy = proxy
        self._packages = packages
        self._on_bytes = on_bytes
        self._on_request = on_request
        self._left = proxy.limits.room_bytes
        self._slots = asyncio.Semaphore(proxy.limits.room_requests)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request, unless its client goes away first."""
        answering = asyncio.ensure_future(self._answer(scope, send))
        leaving = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            answering.cancel()
            await asyncio.gather(answering, leaving, return_exceptions=True)
        if not answering.cancelled():
            # An answer that broke off is raised, so that the server breaks the connection.
            answering.result()

    async def _answer(self, scope: Message, send: Send) -> None:
        method = scope["method"]
        if method not in ("GET", "HEAD"):
            await _refuse(send, 405, "The package proxy offers GET and HEAD only.")
            return
        raw = scope.get("raw_path") or quote(scope["path"]).encode()
        route = parse_route(raw.partition(b"?")[0].decode("latin-1"))
        allowed = route is not None and index_of(route) in self._packages
        self._on_request(scope["path"], allowed)
        if route is None or not allowed:
            await _refuse(send, 404, "The package proxy offers packages of this function's indexes only.")
            return
        try:
            async with self._slots:
                await self._guard.packages()
                await self._serve(route, _headers(scope), send, body=method == "GET")
        except Refused as refused:
            await _refuse(send, refused.status, refused.message)
        except RoostError as error:
            status = 502 if error.status == 503 else error.status
            if status >= 500:
                log.warning("package proxy: %s %s", scope["path"], error.message)
            await _refuse(send, status, error.message)

    async def _serve(self, route: Route, headers: Mapping[str, str], send: Send, *, body: bool) -> None:
        if isinstance(route, ProjectPage | Package):
            content, kind = await self._proxy.page(route, headers.get("accept", ""))
            if body:
                self._spend(len(content))
            answer = [(b"content-type", kind.encode()), (b"content-length", str(len(content)).encode())]
            await _start(send, 200, [*answer, (b"vary", b"accept"), (b"cache-control", b"max-age=60")])
            await send({"type": "http.response.body", "body": content if body else b""})
            return
        upstream, file = await self._proxy.find(route)
        if not body:
            await _start(send, 200, [(b"content-type", b"application/octet-stream")])
            await send({"type": "http.response.body", "body": b""})
            return
        async with self._proxy.content(upstream, file) as fd:
            await self._send_file(fd, send)

    async def _send_file(self, fd: int, send: Send) -> None:
        size = os.fstat(fd).st_size
        self._spend(size)
        await _start(
            send, 200, [(b"content-type", b"application/octet-stream"), (b"content-length", str(size).encode())]
        )
        offset = 0
        while offset < size:
            chunk = await asyncio.to_thread(os.pread, fd, min(_SEND_CHUNK, size - offset), offset)
            if not chunk:
                raise ConnectionError("a cached file became shorter while it was sent")
            offset += len(chunk)
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    def _spend(self, count: int) -> None:
        """Take from the room's budget before sending. Raises Throttled when it, or the account's, does not suffice."""
        if count > self._left:
            total = self._proxy.limits.room_bytes >> 20
            raise Throttled(f"This instance has used up its {total} MiB of package downloads.")
        self._on_bytes(count)
        self._left -= count


async def _disconnected(receive: Receive) -> None:
    """Return when the client has gone. A body, which no request of a package client has, is not looked at."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _headers(scope: Message) -> dict[str, str]:
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}


async def _start(send: Send, status: int, headers: Headers) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})


async def _refuse(send: Send, status: int, message: str) -> None:
    body = f"{message}\n".encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    await _start(send, status, headers)
    await send({"type": "http.response.body", "body": body})
