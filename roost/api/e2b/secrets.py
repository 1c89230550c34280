"""`/secrets`: create, list, read, update, destroy.

Values go in and never out, but to hosts: those of the entry `hosts` of their metadata, and those that rules of a
sandbox name them for.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any

from pydantic import Field
from starlette.responses import JSONResponse
from starlette.routing import Route

from roost.api.e2b.call import NEXT_TOKEN, Answer, Call, Endpoints, Shape
from roost.api.e2b.render import moment
from roost.isolation.egress.injection import bound_places
from roost.model.errors import InvalidArgument, NotFound, Throttled
from roost.model.secret import Secret
from roost.store.secrets import Secrets as Store

#: Of one account.
MOST_SECRETS = 1000
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}")
_PREFIX = "sec_"
_METADATA_BYTES = 8192

Value = Annotated[str, Field(min_length=1, max_length=64 << 10)]
Metadata = Annotated[
    dict[Annotated[str, Field(min_length=1, max_length=128)], Annotated[str, Field(max_length=1024)]],
    Field(max_length=32),
]


class NewSecret(Shape):
    name: Annotated[str, Field(min_length=1, max_length=128)]
    value: Value
    metadata: Metadata = {}


class SecretUpdate(Shape):
    value: Value
    metadata: Metadata | None = None


class Secrets:
    """`clock`: Unix seconds."""

    def __init__(self, store: Store, clock: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock

    def routes(self, endpoints: Endpoints) -> list[Route]:
        return [
            endpoints.route("POST", "/secrets", self.create),
            endpoints.route("GET", "/secrets", self.list),
            endpoints.route("GET", "/secrets/{secret}", self.get),
            endpoints.route("POST", "/secrets/{secret}", self.update),
            endpoints.route("DELETE", "/secrets/{secret}", self.destroy),
        ]

    async def create(self, call: Call) -> Answer:
        asked = call.parse(NewSecret)
        name = asked.name.lower()
        if not _NAME.fullmatch(name) or name.startswith(_PREFIX):
            raise InvalidArgument(
                "name: letters, digits, '.', '_' and '-' are expected, at most 128, and it can't begin with 'sec_'."
            )
        _check_metadata(asked.metadata)
        if await self._store.count(call.account) >= MOST_SECRETS:
            raise Throttled(f"An account has at most {MOST_SECRETS} secrets.")
        now = self._clock()
        secret = Secret(
            account=call.account,
            id=f"{_PREFIX}{uuid.uuid4().hex}",
            name=name,
            value=asked.value,
            metadata=asked.metadata,
            created=now,
            updated=now,
        )
        await self._store.create(secret)
        return JSONResponse(_shown(secret), status_code=201)

    async def list(self, call: Call) -> Answer:
        limit = call.number("limit", 100, least=1, most=100)
        found = await self._store.list(call.account, after=call.query.get("nextToken", ""), limit=limit + 1)
        headers = {NEXT_TOKEN: found[limit - 1].name} if len(found) > limit else {}
        return JSONResponse([_shown(secret) for secret in found[:limit]], headers=headers)

    async def get(self, call: Call) -> Answer:
        return _shown(await self._find(call))

    async def update(self, call: Call) -> Answer:
        asked = call.parse(SecretUpdate)
        secret = await self._find(call)
        metadata = secret.metadata if asked.metadata is None else asked.metadata
        _check_metadata(metadata)
        secret = replace(
            secret, value=asked.value, version=secret.version + 1, metadata=metadata, updated=self._clock()
        )
        await self._store.replace(secret)
        return _shown(secret)

    async def destroy(self, call: Call) -> Answer:
        secret = await self._find(call)
        await self._store.delete(secret.account, secret.id)
        return None

    async def _find(self, call: Call) -> Secret:
        selector = call.path["secret"]
        secret = await self._store.find(call.account, selector if selector.startswith(_PREFIX) else selector.lower())
        if secret is None:
            raise NotFound(f"Secret {selector[:128]} not found")
        return secret


def _check_metadata(metadata: Any) -> None:
    if sum(len(key.encode()) + len(value.encode()) for key, value in metadata.items()) > _METADATA_BYTES:
        raise InvalidArgument(f"metadata: at most {_METADATA_BYTES} bytes in all.")
    bound_places(metadata)


def _shown(secret: Secret) -> dict[str, Any]:
    return {
        "secretID": secret.id,
        "name": secret.name,
        "currentVersion": secret.version,
        "metadata": dict(secret.metadata),
        "createdAt": moment(secret.created),
        "updatedAt": moment(secret.updated),
    }
