"""Records of sandboxes for tests, and the sandboxes of a real server over plain HTTP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from roost.model.function import Limits
from roost.model.sandbox import EndedSandbox, Sandbox
from roost.model.template import TemplateBuild, TemplateRecord, TemplateTag
from roost.store.sandboxes import CreationKey
from tests.support.server import Server


def record(id: str = "i0000000000000000001", **changes: Any) -> Sandbox:
    values: dict[str, Any] = {
        "id": id,
        "account": "acme",
        "template": "base",
        "created": 1000.0,
        "ends_at": 2000.0,
        "timeout_s": 300,
        "limits": Limits(),
        "envd_token": "envd-token",
        "traffic_token": "traffic-token",
    }
    return Sandbox(**(values | changes))


class MemorySandboxes:
    """A store that forgets with the process. `full`: nothing can be written."""

    def __init__(self) -> None:
        self.rows: dict[str, Sandbox] = {}
        self.ends: dict[str, EndedSandbox] = {}
        self.keys: dict[tuple[str, str], CreationKey] = {}
        self.error: Exception | None = None

    async def create(self, sandbox: Sandbox, key: CreationKey | None) -> None:
        self._check()
        self.rows[sandbox.id] = sandbox
        if key is not None:
            self.keys[key.account, key.key] = key

    async def update(self, sandbox: Sandbox) -> None:
        self._check()
        if sandbox.id in self.rows:
            self.rows[sandbox.id] = sandbox

    async def end(self, ended: EndedSandbox) -> None:
        self._check()
        self.rows.pop(ended.id, None)
        self.ends[ended.id] = ended

    async def forget(self, ends: list[str], keys: list[tuple[str, str]]) -> None:
        for id in ends:
            self.ends.pop(id, None)
        for key in keys:
            self.keys.pop(key, None)

    async def load(self) -> tuple[list[Sandbox], list[EndedSandbox], list[CreationKey]]:
        return list(self.rows.values()), list(self.ends.values()), list(self.keys.values())

    def _check(self) -> None:
        if self.error is not None:
            raise self.error


@dataclass
class Box:
    """One sandbox of a real server. Its daemon is `scripted_sandboxes`'."""

    server: Server
    client: httpx.Client
    id: str
    token: str
    traffic: str

    @classmethod
    def create(cls, server: Server, client: httpx.Client, **fields: Any) -> Box:
        reply = client.post("/v2/sandboxes", json={"templateID": "base", **fields})
        assert reply.status_code == 201, reply.text
        made = reply.json()
        return cls(server, client, made["sandboxID"], made["envdAccessToken"], made["trafficAccessToken"])

    def headers(self, port: int = 49983) -> dict[str, str]:
        tokens = {"X-Access-Token": self.token, "E2b-Traffic-Access-Token": self.traffic}
        return {"E2b-Sandbox-Id": self.id, "E2b-Sandbox-Port": str(port), **tokens}

    def get(self, path: str, port: int = 49983, **headers: str) -> httpx.Response:
        return self.client.get(path, headers={**self.headers(port), **headers})

    def sh(self, command: str) -> str:
        reply = self.client.post("/sh", content=command.encode(), headers=self.headers())
        assert reply.status_code == 200, reply.text
        return str(reply.json()["out"])

    def call(self, verb: str, **body: Any) -> httpx.Response:
        return self.client.post(f"/sandboxes/{self.id}/{verb}", json=body)

    def info(self) -> dict[str, Any]:
        reply = self.client.get(f"/sandboxes/{self.id}")
        assert reply.status_code == 200, reply.text
        return dict(reply.json())

    def kill(self) -> None:
        assert self.client.delete(f"/sandboxes/{self.id}").status_code == 204


class MemoryTemplates:
    """A store of templates and of tags that forgets with the process. `error`: nothing can be written."""

    def __init__(self) -> None:
        self.records: dict[str, TemplateRecord] = {}
        self.builds: dict[str, TemplateBuild] = {}
        self.tags: dict[tuple[str, str, str], TemplateTag] = {}
        self.error: Exception | None = None

    async def save(self, record: TemplateRecord, build: TemplateBuild, tags: Sequence[TemplateTag]) -> None:
        await self.put(tags)
        self.records.setdefault(record.id, record)
        self.builds[build.id] = build

    async def drop_builds(self, ids: Sequence[str]) -> None:
        for id in ids:
            del self.builds[id]

    async def remove(self, record: TemplateRecord) -> None:
        del self.records[record.id]
        self.builds = {id: build for id, build in self.builds.items() if build.template != record.id}
        self.tags = {key: tag for key, tag in self.tags.items() if tag.template != record.id}

    async def load(self) -> tuple[list[TemplateRecord], list[TemplateBuild]]:
        return list(self.records.values()), list(self.builds.values())

    async def put(self, tags: Sequence[TemplateTag]) -> None:
        if self.error is not None:
            raise self.error
        self.tags.update({(tag.account, tag.template, tag.tag): tag for tag in tags})

    async def delete(self, account: str, template: str, tags: Sequence[str]) -> None:
        for tag in tags:
            self.tags.pop((account, template, tag), None)

    async def list_all(self) -> Sequence[TemplateTag]:
        return list(self.tags.values())
