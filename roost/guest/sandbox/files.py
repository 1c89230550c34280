"""GET and POST /files and POST /files/compose of envd: contents of files by plain HTTP, always as streams.

As in `trees`, the user of a request owns what is made and does not limit what may be touched.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from urllib.parse import parse_qsl

from roost.guest.async_server import Exchange
from roost.guest.http1 import Head
from roost.guest.sandbox.compose import compose
from roost.guest.sandbox.downloads import Interrupted, open_file, send_file
from roost.guest.sandbox.encodings import BadEncoding, Inflater
from roost.guest.sandbox.entries import BadMetadata, check_metadata
from roost.guest.sandbox.identities import Identities, UnknownUser, User
from roost.guest.sandbox.messages import BadField, parse
from roost.guest.sandbox.multipart import BadMultipart, MultipartParser, Part, PartEnd
from roost.guest.sandbox.paths import BadPath, resolve
from roost.guest.sandbox.replies import Refused, refuse, reply_json
from roost.guest.sandbox.uploads import Upload

MAX_REQUEST = 1 << 20  # of the JSON that asks for a composition
MAX_FILES = 10_000  # of one form
MAX_FIELDS = 100  # of a query
_METADATA = "x-metadata-"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Query:
    path: str | None
    user: User


class Files:
    def __init__(self, identities: Identities) -> None:
        self._identities = identities

    async def download(self, exchange: Exchange) -> None:
        try:
            query = self._query(exchange.head)
            path = self._resolve(query.path or "", query.user)
            fd = open_file(path)
            try:
                await send_file(exchange, fd, path)
            finally:
                os.close(fd)
        except Refused as error:
            await refuse(exchange, error.status, str(error))
        except Interrupted:
            return  # a reply that is not complete ends the connection

    async def upload(self, exchange: Exchange) -> None:
        try:
            query = self._query(exchange.head)
            metadata = _metadata(exchange.head)
            kind = exchange.head.get("content-type").partition(";")[0].strip().lower()
            if kind == "application/octet-stream":
                reply = [await self._take_raw(exchange, query, metadata)]
            elif kind.startswith("multipart/"):
                reply = await self._take_form(exchange, query, metadata)
            else:
                raise Refused(400, f"unsupported content type: {kind[:100]}, expected multipart/form-data")
        except Refused as error:
            await refuse(exchange, error.status, str(error))
        except (BadEncoding, BadMetadata) as error:
            await refuse(exchange, 400, str(error))
        except BadMultipart as error:
            await refuse(exchange, 500, f"error parsing multipart form: {error}")
        else:
            await reply_json(exchange, reply)

    async def compose(self, exchange: Exchange) -> None:
        try:
            request = parse(await exchange.read_all(MAX_REQUEST))
            sources, destination = request.texts("source_paths"), request.text("destination")
            if not sources or not destination:
                raise Refused(400, "source_paths and destination must not be empty")
            user = self._user(request.text("username") if request.has("username") else None)
            target = self._resolve(destination, user)
            await compose([self._resolve(source, user) for source in sources], target, user)
        except BadField as error:
            await refuse(exchange, 400, f"invalid request body: {error}")
        except Refused as error:
            await refuse(exchange, error.status, str(error))
        else:
            await reply_json(exchange, {"path": target, "name": posixpath.basename(target), "type": "file"})

    async def _take_raw(self, exchange: Exchange, query: _Query, metadata: dict[str, str]) -> dict[str, object]:
        if query.path is None:
            raise Refused(400, "path query parameter is required for raw body upload")
        with Upload(self._resolve(query.path, query.user), query.user, metadata) as upload:
            async for data in _body(exchange):
                await upload.write(data)
            return upload.finish()

    async def _take_form(self, exchange: Exchange, query: _Query, metadata: dict[str, str]) -> list[dict[str, object]]:
        parser = MultipartParser(exchange.head.get("content-type"))
        taken: dict[str, dict[str, object]] = {}
        upload: Upload | None = None
        try:
            async for data in _body(exchange):
                for item in parser.feed(data):
                    if isinstance(item, Part):
                        upload = self._open_part(item, query, metadata, taken) if item.name == "file" else None
                    elif upload is None:
                        continue
                    elif isinstance(item, PartEnd):
                        taken[upload.path] = upload.finish()
                        upload.close()
                        upload = None
                    else:
                        await upload.write(item.data)
            if not parser.done:
                raise BadMultipart("unexpected EOF")
        finally:
            if upload is not None:
                upload.close()
        return list(taken.values())

    def _open_part(self, part: Part, query: _Query, metadata: dict[str, str], taken: Mapping[str, object]) -> Upload:
        name = part.filename if query.path is None else query.path
        if name is None:
            raise Refused(400, "filename not found in Content-Disposition header")
        if len(taken) >= MAX_FILES:
            raise Refused(400, f"more than {MAX_FILES} files in one request")
        path = self._resolve(name, query.user)
        if path in taken:
            raise Refused(
                400,
                f"you cannot upload multiple files to the same path '{path}' in one upload request, "
                "only the first specified file was uploaded",
            )
        return Upload(path, query.user, metadata)

    def _query(self, head: Head) -> _Query:
        try:
            given = parse_qsl(head.target.partition("?")[2], keep_blank_values=True, max_num_fields=MAX_FIELDS)
        except ValueError:
            raise Refused(400, f"more than {MAX_FIELDS} query parameters") from None
        fields = dict(reversed(given))  # the first of several wins
        return _Query(path=fields.get("path"), user=self._user(fields.get("username")))

    def _user(self, name: str | None) -> User:
        try:
            return self._identities.lookup(name or self._identities.default)
        except UnknownUser as error:
            raise Refused(401, f"error looking up user '{name or self._identities.default}': {error}") from None

    def _resolve(self, path: str, user: User) -> str:
        try:
            return resolve(path, user, self._identities.workdir)
        except BadPath as error:
            raise Refused(400, f"error resolving path: {error}") from None


async def _body(exchange: Exchange) -> AsyncIterator[bytes]:
    inflater = Inflater(exchange.head.get("content-encoding"))
    while data := await exchange.read():
        for part in inflater.feed(data):
            yield part
    inflater.finish()


def _metadata(head: Head) -> dict[str, str]:
    metadata: dict[str, str] = {}
    for name, value in head.fields:
        if name.startswith(_METADATA) and name != _METADATA:
            metadata.setdefault(name.removeprefix(_METADATA), value)
    check_metadata(metadata)
    return metadata
