"""Replies of envd's plain HTTP endpoints."""

from __future__ import annotations

import json

from roost.guest.async_server import Exchange

#: Of a request's body that is read and dropped: a client that is still sending would not see the error otherwise.
MAX_UNREAD = 1 << 30


class Refused(Exception):
    """An HTTP reply other than 200: `{"code", "message"}`."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


async def drain(exchange: Exchange) -> None:
    """Before an error is told."""
    left = MAX_UNREAD
    while left > 0 and (data := await exchange.read()):
        left -= len(data)


async def refuse(exchange: Exchange, status: int, message: str) -> None:
    await drain(exchange)
    body = json.dumps({"code": status, "message": message}).encode() + b"\n"
    fields = [("content-type", "application/json; charset=utf-8"), ("x-content-type-options", "nosniff")]
    await exchange.whole(status, fields, body)


async def reply_json(exchange: Exchange, value: object, status: int = 200) -> None:
    fields = [("content-type", "application/json"), ("cache-control", "no-store")]
    await exchange.whole(status, fields, json.dumps(value).encode() + b"\n")
