"""One request to the API: who calls, what they send, errors as `{"code","message"}`."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import from_json
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from roost.api.fc.body import Body
from roost.api.identity import given_key, key_holder
from roost.functions import definition
from roost.model.errors import InvalidArgument, RoostError, Unauthenticated
from roost.model.role import Role
from roost.sandboxes.fleet import Gone
from roost.tenants.identity import Identity
from roost.tenants.roles import least_role

logger = logging.getLogger(__name__)

BODY_LIMIT = 1 << 20
#: Where the next page of a listing begins; absent on the last one.
NEXT_TOKEN = "x-next-token"  # noqa: S105
#: Names fields of the body that this server does not know: a newer client may mean something by them.
IGNORED = "x-roost-ignored"
#: Names fields that were taken and kept, and change nothing on this server.
WITHOUT_EFFECT = "x-roost-without-effect"
#: How a paused sandbox came back: `memory`, or `files` where what ran before is gone.
RESTORED = "x-roost-sandbox-restored"

#: Where E2B's status is another than Roost's.
_STATUS: dict[type[RoostError], int] = {Unauthenticated: 401}


class Shape(definition.Shape, extra="ignore"):
    """The same as in the other API, but that unknown fields are ignored, and named in the reply."""


S = TypeVar("S", bound=Shape)


@dataclass(kw_only=True)
class Call:
    """One request, its caller known and its body read."""

    request: Request
    account: str
    body: bytes
    ignored: list[str] = field(default_factory=list)

    @property
    def path(self) -> Mapping[str, str]:
        """Parts of the path."""
        return self.request.path_params

    @property
    def query(self) -> Mapping[str, str]:
        return self.request.query_params

    @property
    def api_key(self) -> str:
        """As the caller showed it; "" for none."""
        return given_key(self.request)

    def json(self) -> dict[str, Any]:
        """The body as an object; without one, an empty object. Raises InvalidArgument."""
        try:
            value = from_json(self.body or b"{}", allow_inf_nan=False)
        except ValueError as error:
            raise InvalidArgument(f"The body is not valid JSON: {error}.") from error
        if not isinstance(value, dict):
            raise InvalidArgument("The body must be a JSON object.")
        return value

    def parse(self, shape: type[S]) -> S:
        """The body as a shape; without one, its defaults. Raises InvalidArgument that names the field."""
        value = self.json()
        # A null is a field that is not there, as the clients have it.
        given = {name: item for name, item in value.items() if item is not None}
        known = {info.alias for info in shape.model_fields.values()}
        self.ignored += [name[:64] for name in sorted(given) if name not in known][:20]
        try:
            return shape.model_validate(given)
        except ValidationError as error:
            raise InvalidArgument(_describe(error)) from error
        except RecursionError as error:
            raise InvalidArgument("The body is nested too deeply.") from error

    def number(self, name: str, default: int, *, most: int, least: int = 0) -> int:
        """A whole number of the query. Raises InvalidArgument."""
        text = self.query.get(name)
        if text is None:
            return default
        if not (text.isascii() and text.isdigit() and len(text) < 16 and least <= int(text) <= most):
            raise InvalidArgument(f"{name}: a number from {least} to {most} is expected, not {text[:40]!r}.")
        return int(text)


#: A handler answers with JSON (200), None (204), or a response of its own.
Answer = Mapping[str, Any] | list[Any] | Response | None
Handler = Callable[[Call], Awaitable[Answer]]


class Endpoints:
    """Turns handlers into routes that share one way of identifying, limiting and answering.

    An API key is the secret of one of the server's access keys. Without keys any API key is taken: the clients demand
    that one is set.
    """

    def __init__(self, identity: Identity) -> None:
        self._identity = identity

    def route(self, method: str, path: str, handler: Handler, *, body_limit: int = BODY_LIMIT) -> Route:
        least = least_role(method, path)
        if least is None:
            raise ValueError(f"{method} {path} is for whoever has an API key, so it needs a role")

        async def endpoint(request: Request) -> Response:
            body = Body(request)
            ignored: list[str] = []

            async def answered() -> Response:
                account = self.identify(request, least)
                call = Call(request=request, account=account, body=await body.read(body_limit), ignored=ignored)
                return _respond(await handler(call))

            response = await guarded(request, answered)
            await body.discard()
            if ignored:
                response.headers[IGNORED] = ", ".join(name.encode("ascii", "replace").decode() for name in ignored)
            return response

        return Route(path, endpoint, methods=[method])

    def identify(self, request: Request, least: Role, thing: str = "") -> str:
        """The account of the request's API key; `thing` as in `Identity.signed`. Raises Unauthenticated, AccessDenied,
        Throttled."""
        return key_holder(self._identity, request, least, thing).account


async def guarded(request: Request, answered: Callable[[], Awaitable[Response]]) -> Response:
    """The answer, or that of what it raises."""
    try:
        return await answered()
    except ClientDisconnect:
        return Response(status_code=499)
    except RoostError as error:
        return error_response(error)
    except Exception:
        # The message of an unforeseen error may hold anything; it is the log's.
        logger.exception("A request failed: %s %s", request.method, request.url.path)
        return error_response(RoostError("An internal error occurred; see the server's log."))


def error_response(error: RoostError) -> Response:
    """Its body, with the error's status."""
    body = error_body(error)
    headers = {} if error.retry_after is None else {"retry-after": str(max(1, round(error.retry_after)))}
    return JSONResponse(body, status_code=body["code"], headers=headers)


def error_body(error: RoostError) -> dict[str, Any]:
    """`{"code","message"}`; the reason too, when a sandbox is gone."""
    status = next((status for kind, status in _STATUS.items() if isinstance(error, kind)), error.status)
    body: dict[str, Any] = {"code": status, "message": error.message}
    if isinstance(error, Gone) and error.reason:
        body["reason"] = error.reason
    return body


def _respond(answer: Answer) -> Response:
    if answer is None:
        return Response(status_code=204)
    return answer if isinstance(answer, Response) else JSONResponse(answer)


_MESSAGES = {"missing": "this field is required"}


def _describe(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False)[0]
    where = ""
    for part in first["loc"]:
        where += f"[{part}]" if isinstance(part, int) else f".{part}" if where else str(part)
    given = first.get("input")
    message = _MESSAGES.get(first["type"])
    if message is not None or isinstance(given, dict | list):
        return f"{where}: {message or first['msg']}."
    return f"{where}: {first['msg']} (got {str(given)[:80]!r})."
