"""Requests for the control plane: the same kind of upstream, with no lease and no deadline."""

from __future__ import annotations

from pathlib import Path

from roost.gateway.connection import Request
from roost.gateway.faults import Style, render
from roost.gateway.fields import control_head, line
from roost.gateway.head import ResponseHead
from roost.gateway.proxy import End, Exchange, transfer
from roost.gateway.upstream import Pool
from roost.instances.chains import HOPS, Chains
from roost.model.errors import RoostError, Unavailable

_WEBHOOKS = b"/webhooks/"
#: Characters that the audit is told of an account's and a function's name, which nobody has looked at yet.
_NAME = 64


class _Reply:
    strip_ours = False
    prepare = None

    def __init__(self, request_id: str) -> None:
        self._request_id = request_id

    def lines(self, head: ResponseHead) -> bytes:
        return line("x-fc-request-id", self._request_id)

    def rewriter(self, head: ResponseHead) -> None:
        return None


class ControlPlane:
    """Forwards to the server at `socket`. What starts functions there is told how many invocations led to it."""

    def __init__(self, *, socket: Path, pool: Pool, chains: Chains) -> None:
        self._chains = chains
        self._socket = str(socket)
        self._pool = pool

    async def run(self, request: Request, request_id: str) -> None:
        extra = b""
        if request.head.target.startswith(_WEBHOOKS):
            account, _, rest = request.head.target[len(_WEBHOOKS) :].decode("latin-1").partition("/")
            function, said = rest.partition("/")[0][:_NAME], request.head.values.get(HOPS.encode())
            try:
                hops = self._chains.admit(request.connection.source, said, account[:_NAME], function)
            except RoostError as refused:
                request.reply(render(refused, style=Style.API, request_id=request_id))
                return
            extra = line(HOPS, str(hops))
        head = control_head(request.head, peer=request.peer, request_id=request_id, extra=extra)
        exchange = Exchange(request, head=head, reply=_Reply(request_id))
        end, upstream = await transfer(self._pool, self._socket, exchange, None)
        if upstream is not None:
            upstream.abort()
        error: RoostError | None = exchange.refusal
        if end in (End.BROKEN, End.BAD_REPLY):
            error = Unavailable("The control plane did not answer.", retry_after=1)
        if error is None:
            return
        if request.answered:
            request.abort()
        else:
            request.reply(render(error, style=Style.API, request_id=request_id))
