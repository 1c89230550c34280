"""Requests to the configured indexes: to them alone, redirects included, with every answer bounded."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import cached_property
from urllib.parse import urljoin

import httpx

from roost.isolation.egress.upstreams import Upstream, Upstreams
from roost.model.errors import NotFound, PayloadTooLarge, Unavailable

_MAX_REDIRECTS = 5
_MAX_PAGE = 64 << 20
_PAGE_DEADLINE_S = 60.0
_FILE_DEADLINE_S = 3600.0
_CHUNK = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Page:
    """A whole answer. `url` is where it came from in the end, for relative links."""

    content: bytes
    content_type: str
    url: str


class Fetcher:
    """A shared pool of connections to the indexes."""

    def __init__(self, upstreams: Upstreams) -> None:
        self._upstreams = upstreams

    @cached_property
    def _client(self) -> httpx.AsyncClient:
        """Made for the first request: reading all authorities takes longer than most parts of a server's start."""
        return httpx.AsyncClient(
            verify=self._upstreams.trust(),
            follow_redirects=False,
            timeout=httpx.Timeout(60.0, connect=15.0, pool=60.0),
            limits=httpx.Limits(max_connections=32, max_keepalive_connections=16, keepalive_expiry=30.0),
            headers={"user-agent": "roost"},
        )

    async def close(self) -> None:
        if "_client" in self.__dict__:  # it was made
            await self._client.aclose()

    async def page(self, upstream: Upstream, url: str, accept: str) -> Page:
        """A page of the index itself. Raises NotFound if it has none, Unavailable if it doesn't answer properly."""
        async with _bounded(_PAGE_DEADLINE_S), self._answer(upstream, url, {"accept": accept}) as answer:
            parts = []
            size = 0
            async for part in answer.aiter_bytes():
                size += len(part)
                if size > _MAX_PAGE:
                    raise Unavailable(f"The index's answer is larger than {_MAX_PAGE >> 20} MiB.")
                parts.append(part)
            kind = answer.headers.get("content-type", "")
            return Page(content=b"".join(parts), content_type=kind, url=str(answer.url))

    async def file(
        self, upstream: Upstream, url: str, write: Callable[[bytes], Awaitable[None]], *, limit: int
    ) -> None:
        """Pass a file's bytes to `write`, as they are. Raises NotFound, PayloadTooLarge or Unavailable."""
        # Compression in transit would change the bytes that the digest is of.
        headers = {"accept-encoding": "identity"}
        async with _bounded(_FILE_DEADLINE_S), self._answer(upstream, url, headers) as answer:
            announced = answer.headers.get("content-length", "")
            if announced.isdecimal() and int(announced) > limit:
                raise PayloadTooLarge(f"The file is larger than {limit >> 20} MiB.")
            async for chunk in answer.aiter_raw(_CHUNK):
                await write(chunk)

    @contextlib.asynccontextmanager
    async def _answer(self, upstream: Upstream, url: str, headers: dict[str, str]) -> AsyncIterator[httpx.Response]:
        for _ in range(_MAX_REDIRECTS + 1):
            if not upstream.allows(url):
                raise Unavailable("The index leads to an address that is none of its own.")
            own = upstream.is_own(url)
            async with self._client.stream(
                "GET",
                url,
                headers={**headers, **(upstream.headers if own else {})},
                auth=httpx.BasicAuth(*upstream.auth) if own and upstream.auth else None,
            ) as answer:
                if not answer.is_redirect:
                    _check_status(answer.status_code)
                    yield answer
                    return
                url = urljoin(url, answer.headers["location"])
        raise Unavailable("The index redirects without end.")


def _check_status(status: int) -> None:
    if status in (404, 410):
        raise NotFound("The index has no such package or file.")
    if status in (401, 403):
        raise Unavailable(f"The index refuses this host's credentials (status {status}).")
    if status != 200:
        raise Unavailable(f"The index answered with status {status}.")


@contextlib.asynccontextmanager
async def _bounded(seconds: float) -> AsyncIterator[None]:
    """Bound the whole exchange, and name its failures."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise Unavailable(f"The index did not answer within {seconds:.0f} s.") from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise Unavailable(f"The index can't be reached: {type(error).__name__}.") from error
