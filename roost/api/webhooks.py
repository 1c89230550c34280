"""`POST /webhooks/{account}/{function}/{trigger}`: webhooks and CloudEvents 1.0, each a durable task before the answer.

202 with `{"accepted": n, "filtered": n}`: they are kept; those that had been accepted before count as well.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from itertools import islice

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from roost.api.fc.body import Body
from roost.api.fc.call import error_response
from roost.functions.catalog import FunctionCatalog
from roost.functions.triggers.kinds import WEBHOOK, is_enabled
from roost.functions.triggers.settings import settings_of
from roost.functions.triggers.webhook import WebhookSettings
from roost.instances.chains import HOPS
from roost.model.errors import InvalidArgument, NotFound, RoostError, Throttled, Unavailable
from roost.store.triggers import TriggerRecord
from roost.triggers import cloudevents
from roost.triggers.credentials import check_signature, check_token
from roost.triggers.plain import Sent, http_event
from roost.triggers.ports import Delivery, DeliveryRefused, Event, task_id

PREFIX = "/webhooks"
#: So many bodies beyond this size are held in memory at once; the others wait in their sockets.
SMALL_BYTES = 64 * 1024
LARGE_BODIES = 8
LARGE_WAIT_S = 10.0
#: Events of one request that are being stored at once: they share commits, and take no more memory than this.
_AT_ONCE = 200

log = logging.getLogger(__name__)


class Webhooks:
    """`delivery` is the way to a trigger's function."""

    def __init__(
        self,
        catalog: FunctionCatalog,
        delivery: Callable[[TriggerRecord], Delivery],
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._catalog = catalog
        self._delivery = delivery
        self._clock = clock
        self._large = asyncio.Semaphore(LARGE_BODIES)

    def routes(self) -> list[Route]:
        """For the control plane's application."""
        path = PREFIX + "/{account}/{function}/{trigger}"
        return [
            Route(path, self._greet, methods=["OPTIONS"]),
            Route(path, self._receive, methods=["POST"]),
            Route(PREFIX + "{rest:path}", self._unknown, methods=["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"]),
        ]

    async def _greet(self, request: Request) -> Response:
        """The handshake of CloudEvents' webhook specification: a sender asks before it sends."""
        headers = {"allow": "POST, OPTIONS"}
        if origin := request.headers.get("webhook-request-origin"):
            headers |= {"webhook-allowed-origin": origin, "webhook-allowed-rate": "*"}
        return Response(status_code=200, headers=headers)

    async def _unknown(self, request: Request) -> Response:
        error = NotFound(f"A webhook is POST {PREFIX}/<account>/<function>/<trigger>.")
        return error_response(error, str(uuid.uuid4()))

    async def _receive(self, request: Request) -> Response:
        request_id = str(uuid.uuid4())
        body = Body(request)
        try:
            response = await self._accept(request, body, request_id)
        except ClientDisconnect:
            response = Response(status_code=499)
        except RoostError as error:
            response = error_response(error, request_id)
        except DeliveryRefused as error:
            response = error_response(InvalidArgument(error.message), request_id)
        except Exception:
            # The message of an unforeseen error may hold anything; the sender gets an id to look it up by.
            log.exception("webhook %s failed", request_id)
            response = error_response(RoostError("An internal error occurred; see the server's log."), request_id)
        await body.discard()
        return response

    async def _accept(self, request: Request, body: Body, request_id: str) -> Response:
        record = self._find(request)
        settings = settings_of(WebhookSettings, record)
        delivery = self._delivery(record)
        check_token(settings, request.headers.get("authorization", ""))
        async with self._memory_for(request):
            sent = Sent(
                path=request.url.path,
                query=request.query_params,
                headers={name.lower(): value for name, value in request.headers.items() if name.lower() != HOPS},
                content=await body.read(settings.max_bytes),
                request_id=request_id,
                at=self._clock(),
            )
            hops = int(request.headers.get(HOPS, "0"))  # as the gateway has found
            check_signature(settings, sent.headers.get(settings.signature_header.lower(), ""), sent.content)
            if cloudevents.is_cloudevents(sent.headers):
                found = cloudevents.read_events(sent.headers, sent.content)
                wanted = [event for event in found if settings.admits(event)]
                await _enqueue_all(delivery, (_event(record, event, hops) for event in wanted))
                return _accepted(len(wanted), len(found) - len(wanted))
            if settings.filters:
                raise InvalidArgument("This webhook has filters, which are for CloudEvents; this is none.")
            given = sent.headers.get(settings.id_header.lower(), "") if settings.id_header else ""
            id = given or request_id
            await delivery.enqueue(Event(id=id, body=http_event(record, sent), task_id=task_id(record, id), hops=hops))
            return _accepted(1, 0)

    def _find(self, request: Request) -> TriggerRecord:
        params = request.path_params
        try:
            record = self._catalog.triggers.get(params["account"], params["function"], params["trigger"])
        except NotFound:
            record = None
        if record is None or record.type != WEBHOOK:  # whoever asks does not learn which functions an account has
            raise NotFound("There is no webhook at this address.", code="TriggerNotFound")
        if not is_enabled(record):
            raise Unavailable(f"Trigger {record.name} is paused.", code="TriggerPaused", retry_after=60.0)
        return record

    @asynccontextmanager
    async def _memory_for(self, request: Request) -> AsyncIterator[None]:
        length = request.headers.get("content-length", "")
        if length.isascii() and length.isdigit() and int(length) <= SMALL_BYTES:
            yield
            return
        try:
            async with asyncio.timeout(LARGE_WAIT_S):
                await self._large.acquire()
        except TimeoutError:
            raise Throttled("Too many large webhooks come in at once; try again.", retry_after=5.0) from None
        try:
            yield
        finally:
            self._large.release()


def _event(record: TriggerRecord, event: cloudevents.Attributes, hops: int) -> Event:
    id = cloudevents.identity(event)
    return Event(id=id, body=json.dumps(event).encode(), task_id=task_id(record, id), hops=hops)


async def _enqueue_all(delivery: Delivery, events: Iterator[Event]) -> None:
    """A sender that is told of a failure sends all of them again; those that were kept are known then."""
    while some := list(islice(events, _AT_ONCE)):
        for stored in await asyncio.gather(*map(delivery.enqueue, some), return_exceptions=True):
            if isinstance(stored, BaseException):
                raise stored


def _accepted(count: int, filtered: int) -> Response:
    return JSONResponse({"accepted": count, "filtered": filtered}, status_code=202)
