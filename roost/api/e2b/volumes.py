"""`/volumes`: named storage of sandboxes; and `/volumecontent`: its files, for who has the volume's token."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from io import FileIO
from typing import Annotated, Any

from pydantic import Field
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from roost.api.e2b.call import Answer, Call, Endpoints, Shape, guarded
from roost.api.e2b.render import moment
from roost.api.fc.body import Body
from roost.isolation.threads import on_thread
from roost.model.errors import InvalidArgument
from roost.model.sandbox import Volume
from roost.sandboxes.fleet import SandboxFleet
from roost.sandboxes.volume_files import MOST_DEPTH, FileInfo, Ownership, VolumeFiles, split
from roost.sandboxes.volumes import OWNER, VolumeShelf

_CHUNK = 256 << 10
_PATCH_LIMIT = 64 << 10

Id = Annotated[int, Field(ge=0, le=65535)]
Mode = Annotated[int, Field(ge=0, le=0o7777)]


class NewVolume(Shape):
    name: Annotated[str, Field(min_length=1, max_length=128)]


class PatchPath(Shape):
    uid: Id | None = None
    gid: Id | None = None
    mode: Mode | None = None


class Volumes:
    """The volumes of an account."""

    def __init__(self, shelf: VolumeShelf, fleet: SandboxFleet) -> None:
        self._shelf = shelf
        self._fleet = fleet

    def routes(self, endpoints: Endpoints) -> list[Route]:
        return [
            endpoints.route("GET", "/volumes", self.list),
            endpoints.route("POST", "/volumes", self.create),
            endpoints.route("GET", "/volumes/{id}", self.get),
            endpoints.route("DELETE", "/volumes/{id}", self.destroy),
        ]

    async def list(self, call: Call) -> Answer:
        return [{"volumeID": volume.id, "name": volume.name} for volume in self._shelf.of_account(call.account)]

    async def create(self, call: Call) -> Answer:
        asked = call.parse(NewVolume)
        return JSONResponse(_with_token(await self._shelf.create(call.account, asked.name)), status_code=201)

    async def get(self, call: Call) -> Answer:
        return _with_token(self._shelf.get(call.account, call.path["id"]))

    async def destroy(self, call: Call) -> Answer:
        volume = self._shelf.get(call.account, call.path["id"])
        users = [
            sandbox.id
            for sandbox in self._fleet.of_account(call.account)
            if any(mounted.name == volume.name for mounted in sandbox.volumes)
        ]
        await self._shelf.remove(volume, users)
        return None


ContentHandler = Callable[[Request, Volume], Awaitable[Response]]


class VolumeContent:
    """The files of one volume."""

    def __init__(self, shelf: VolumeShelf) -> None:
        self._shelf = shelf

    def routes(self) -> list[Route]:
        return [
            self._route("GET", "dir", self.list),
            self._route("POST", "dir", self.make_dir),
            self._route("GET", "path", self.info),
            self._route("PATCH", "path", self.change),
            self._route("DELETE", "path", self.remove),
            self._route("GET", "file", self.read),
            self._route("PUT", "file", self.write),
        ]

    def _route(self, method: str, what: str, handler: ContentHandler) -> Route:
        async def endpoint(request: Request) -> Response:
            async def answered() -> Response:
                scheme, _, token = request.headers.get("authorization", "").partition(" ")
                given = token.strip() if scheme.lower() == "bearer" else ""
                return await handler(request, self._shelf.opened_by(request.path_params["id"], given))

            return await guarded(request, answered)

        return Route(f"/volumecontent/{{id}}/{what}", endpoint, methods=[method])

    async def list(self, request: Request, volume: Volume) -> Response:
        parts, depth = _path(request), _number(request, "depth", most=MOST_DEPTH)
        async with self._shelf.root(volume) as root:
            found = await asyncio.to_thread(VolumeFiles(root).list, parts, 1 if depth is None else max(1, depth))
        return JSONResponse([_shown(entry) for entry in found])

    async def make_dir(self, request: Request, volume: Volume) -> Response:
        parts, owner, force = _path(request), _new(request), _force(request)
        async with self._shelf.root(volume) as root:
            made = await asyncio.to_thread(VolumeFiles(root).make_dir, parts, owner, force=force)
        return JSONResponse(_shown(made), status_code=201)

    async def info(self, request: Request, volume: Volume) -> Response:
        parts = _path(request)
        async with self._shelf.root(volume) as root:
            return JSONResponse(_shown(await asyncio.to_thread(VolumeFiles(root).info, parts)))

    async def change(self, request: Request, volume: Volume) -> Response:
        parts = _path(request)
        call = Call(request=request, account=volume.account, body=await Body(request).read(_PATCH_LIMIT))
        asked = call.parse(PatchPath)
        owner = Ownership(uid=asked.uid, gid=asked.gid, mode=asked.mode)
        async with self._shelf.root(volume) as root:
            return JSONResponse(_shown(await asyncio.to_thread(VolumeFiles(root).change, parts, owner)))

    async def remove(self, request: Request, volume: Volume) -> Response:
        parts = _path(request)
        if not parts:
            raise InvalidArgument("path: the root of a volume stays; DELETE /volumes/{id} removes the volume.")
        async with self._shelf.root(volume) as root:
            aside = await asyncio.to_thread(VolumeFiles(root).set_aside, parts)
            if aside:
                await self._shelf.remove_tree(f"/proc/self/fd/{root}/{aside}", keep_open=root)
        return Response(status_code=204)

    async def read(self, request: Request, volume: Volume) -> Response:
        parts = _path(request)
        async with self._shelf.root(volume) as root:
            file, size = await asyncio.to_thread(VolumeFiles(root).open, parts)
        headers = {"content-length": str(size)}
        return StreamingResponse(_pieces(file, size), media_type="application/octet-stream", headers=headers)

    async def write(self, request: Request, volume: Volume) -> Response:
        parts, owner, force = _path(request), _new(request), _force(request)
        if not parts:
            raise InvalidArgument("path: the name of a file is needed.")
        async with self._shelf.root(volume) as root:
            files = VolumeFiles(root)
            fd = await asyncio.to_thread(files.begin, parts)
            try:
                async for piece in request.stream():
                    await on_thread(files.write, fd, piece)
                made = await on_thread(files.finish, fd, parts, owner, force=force)
            finally:
                os.close(fd)
        return JSONResponse(_shown(made), status_code=201)


async def _pieces(file: FileIO, size: int) -> AsyncIterator[bytes]:
    """At most `size` bytes of a file, which is closed: it may grow or shrink meanwhile."""
    with file:
        while size > 0:
            piece = await asyncio.to_thread(file.read, min(_CHUNK, size))
            if not piece:
                raise ClientDisconnect  # what was promised can't be sent: the client must see that
            size -= len(piece)
            yield piece


def _with_token(volume: Volume) -> dict[str, Any]:
    return {"volumeID": volume.id, "name": volume.name, "token": volume.token}


def _path(request: Request) -> tuple[str, ...]:
    if "path" not in request.query_params:
        raise InvalidArgument("path: this parameter is required.")
    return split(request.query_params["path"])


def _number(request: Request, name: str, *, most: int) -> int | None:
    text = request.query_params.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) <= most):
        raise InvalidArgument(f"{name}: a number from 0 to {most} is expected, not {text[:40]!r}.")
    return int(text)


def _force(request: Request) -> bool:
    return request.query_params.get("force", "").lower() == "true"


def _new(request: Request) -> Ownership:
    """Of a new entry: the sandbox's user's, unless it is said whose."""
    uid, gid = (_number(request, name, most=65535) for name in ("uid", "gid"))
    mode = _number(request, "mode", most=0o7777)
    return Ownership(uid=OWNER if uid is None else uid, gid=OWNER if gid is None else gid, mode=mode)


def _shown(entry: FileInfo) -> dict[str, Any]:
    shown = {
        "name": entry.path.rpartition("/")[2],
        "type": entry.kind,
        "path": entry.path,
        "size": entry.size,
        "mode": entry.mode,
        "uid": entry.uid,
        "gid": entry.gid,
        "atime": moment(entry.accessed),
        "mtime": moment(entry.modified),
        "ctime": moment(entry.changed),
    }
    return {**shown, "target": entry.target} if entry.target else shown
