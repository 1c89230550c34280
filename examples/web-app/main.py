"""An ordinary web application on its own server: Roost starts it and passes every request on, as a stream.

GET /  a page    GET /events  server-sent events    /ws  WebSocket echo    POST /upload  any body, hashed as it comes
"""

import asyncio
import hashlib
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

PAGE = Path(__file__).with_name("page.html")


async def page(request: Request) -> Response:
    return FileResponse(PAGE)


async def events(request: Request) -> Response:
    """Count: `?count=10&interval=1` (seconds)."""
    try:
        count = min(int(request.query_params.get("count", 10)), 10_000)
        interval = min(float(request.query_params.get("interval", 1)), 60)
    except ValueError:
        return JSONResponse({"error": "count and interval have to be numbers."}, 400)

    async def ticks() -> AsyncIterator[str]:
        for number in range(1, count + 1):
            yield f"id: {number}\ndata: {time.strftime('%H:%M:%S')}\n\n"
            await asyncio.sleep(interval)

    return StreamingResponse(ticks(), media_type="text/event-stream", headers={"cache-control": "no-store"})


async def upload(request: Request) -> Response:
    """Hash the body while it arrives; a large one never is in memory."""
    digest, size = hashlib.sha256(), 0
    async for block in request.stream():
        digest.update(block)
        size += len(block)
    return JSONResponse({"bytes": size, "sha256": digest.hexdigest()})


async def echo(socket: WebSocket) -> None:
    await socket.accept()
    async for text in socket.iter_text():
        await socket.send_text(text)


async def invoke(request: Request) -> Response:
    """An event from InvokeFunction, which a custom runtime gets as `POST /invoke`."""
    return Response(await request.body())


app = Starlette(
    routes=[
        Route("/", page),
        Route("/events", events),
        Route("/upload", upload, methods=["POST"]),
        Route("/invoke", invoke, methods=["POST"]),
        WebSocketRoute("/ws", echo),
    ]
)

if __name__ == "__main__":
    uvicorn.run(app, host="0.0.0.0", port=int(os.environ.get("FC_SERVER_PORT", "9000")), log_level="warning")
