"""One call of the API: identity first, then a bounded body, then the handler, and every outcome in FC's shape."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic_core import from_json
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from roost.api.fc.body import Body
from roost.api.identity import signer
from roost.functions.definition import Shape
from roost.functions.parse import parse
from roost.model.errors import InvalidArgument, RoostError, Throttled, Unauthenticated
from roost.model.role import Role
from roost.tenants.identity import Identity
from roost.tenants.roles import least_role

PREFIX = "/2023-03-30"
#: Bodies that carry no package.
SMALL_BODY = 1 << 20
#: Larger ones that are held in memory at once, and how long one waits for its turn, in seconds.
LARGE_BODIES = 2
LARGE_WAIT_S = 60.0

logger = logging.getLogger("roost.api.fc")
S = TypeVar("S", bound=Shape)


@dataclass(frozen=True, kw_only=True)
class Call:
    """What a handler gets. `account` is proven; `body` is the whole body, within its limit."""

    request: Request
    request_id: str
    account: str
    operator: bool  # the account is the server's own
    role: Role
    body: bytes = field(repr=False)

    @property
    def params(self) -> Mapping[str, str]:
        """Parts of the path."""
        return self.request.path_params

    @property
    def query(self) -> Mapping[str, str]:
        return self.request.query_params

    @property
    def qualifier(self) -> str | None:
        return self.query.get("qualifier") or None

    @property
    def base_url(self) -> str:
        headers = self.request.headers
        scheme = "https" if headers.get("x-forwarded-proto") == "https" else self.request.url.scheme
        return f"{scheme}://{headers.get('host', 'localhost')}"

    def json(self) -> dict[str, Any]:
        """The body as an object; an empty body is an empty object. Raises InvalidArgument."""
        return parse_object(self.body)

    def parse(self, shape: type[S]) -> S:
        """The body as a shape. Raises InvalidArgument."""
        return parse(shape, self.json())

    def query_list(self, name: str) -> list[Any]:
        """A query parameter that carries a JSON list; empty when it is absent. Raises InvalidArgument."""
        text = self.query.get(name)
        if not text:
            return []
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InvalidArgument(f"{name}: a JSON list is expected ({error}).") from error
        if not isinstance(value, list):
            raise InvalidArgument(f"{name}: a JSON list is expected.")
        return value

    def query_bool(self, name: str) -> bool | None:
        """None when absent. Raises InvalidArgument."""
        text = self.query.get(name)
        if not text:
            return None
        if text.lower() not in {"true", "false"}:
            raise InvalidArgument(f"{name}: 'true' or 'false' is expected, not {text[:40]!r}.")
        return text.lower() == "true"


#: A handler answers with a JSON object (200), None (204), or a response of its own.
Answer = Mapping[str, Any] | Response | None
Handler = Callable[[Call], Awaitable[Answer]]


class Endpoints:
    """Turns handlers into routes that share one way of identifying, limiting and answering."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity
        self._large = asyncio.Semaphore(LARGE_BODIES)

    @asynccontextmanager
    async def _memory_for(self, request: Request, body_limit: int) -> AsyncIterator[None]:
        """Let only a few large bodies be held at once; the others wait in their sockets. Raises Throttled."""
        length = request.headers.get("content-length", "")
        if body_limit <= SMALL_BODY or (length.isascii() and length.isdigit() and int(length) <= SMALL_BODY):
            yield
            return
        try:
            async with asyncio.timeout(LARGE_WAIT_S):
                await self._large.acquire()
        except TimeoutError:
            raise Throttled("Too many packages are being uploaded at once; try again.", retry_after=5.0) from None
        try:
            yield
        finally:
            self._large.release()

    def route(self, method: str, path: str, handler: Handler, *, body_limit: int = SMALL_BODY) -> Route:
        """`path` below the API's prefix, as the table of roles has it. Without a role there the handler has its own way
        to know who calls."""
        least = least_role(method, PREFIX + path)

        async def endpoint(request: Request) -> Response:
            request_id = str(uuid.uuid4())
            body = Body(request)
            try:
                async with self._memory_for(request, body_limit):
                    call = await self._call(request, request_id, body, body_limit, least)
                    response = _respond(await handler(call))
            except ClientDisconnect:
                response = Response(status_code=499)
            except RoostError as error:
                response = error_response(error, request_id)
            except Exception:
                # The message of an unforeseen error may hold anything; the caller gets an id to look it up by.
                logger.exception("Request %s failed: %s %s", request_id, method, path)
                response = error_response(RoostError("An internal error occurred; see the server's log."), request_id)
            await body.discard()
            response.headers["x-fc-request-id"] = request_id
            return response

        return Route(PREFIX + path, endpoint, methods=[method])

    async def _call(self, request: Request, request_id: str, incoming: Body, limit: int, least: Role | None) -> Call:
        caller = self._identity.default()
        claimed = ""
        if least is not None:
            # Before the body is read: a stranger can't make the server hold 100 MB.
            caller = signer(self._identity, request, least)
            if self._identity.asked:
                claimed = request.headers["x-acs-content-sha256"]
        body = await incoming.read(limit)
        if claimed and not hmac.compare_digest(claimed, await _sha256(body)):
            raise Unauthenticated("x-acs-content-sha256 is not the digest of the body that arrived.")
        return Call(
            request=request,
            request_id=request_id,
            account=caller.account,
            operator=caller.operator,
            role=caller.role,
            body=body,
        )


def parse_object(body: bytes) -> dict[str, Any]:
    """JSON; nothing is an empty object. Raises InvalidArgument."""
    try:
        # Several times faster than json's: a package in the body holds up every other request meanwhile.
        value = from_json(body or b"{}", allow_inf_nan=False, cache_strings="keys")
    except ValueError as error:
        raise InvalidArgument(f"The body is not valid JSON: {error}.") from error
    if not isinstance(value, dict):
        raise InvalidArgument("The body must be a JSON object.")
    return value


def error_response(error: RoostError, request_id: str) -> Response:
    """`{"Code","Message","RequestId"}` with the error's status."""
    body = {"Code": error.code, "Message": error.message, "RequestId": request_id}
    headers = {} if error.retry_after is None else {"retry-after": str(max(1, round(error.retry_after)))}
    return JSONResponse(body, status_code=error.status, headers=headers)


def _respond(answer: Answer) -> Response:
    if answer is None:
        return Response(status_code=204)
    return answer if isinstance(answer, Response) else JSONResponse(dict(answer))


async def _sha256(body: bytes) -> str:
    if len(body) <= SMALL_BODY:
        return hashlib.sha256(body).hexdigest()
    return (await asyncio.to_thread(hashlib.sha256, body)).hexdigest()
