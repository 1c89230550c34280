"""Tables `templates` and `template_builds`: what accounts built, and their snapshots."""

from __future__ import annotations

import json
from collections.abc import Sequence

from roost.model.template import TemplateBuild, TemplateKind, TemplateRecord, TemplateTag
from roost.store.database import Connection, Database
from roost.store.records import decode_foundation, decode_limits, encode_foundation, encode_limits
from roost.store.sealed import BUILD
from roost.store.sealing import Sealer
from roost.store.template_tags import put_tags


class Templates:
    def __init__(self, database: Database, sealer: Sealer) -> None:
        self._database = database
        self._sealer = sealer

    async def save(self, record: TemplateRecord, build: TemplateBuild, tags: Sequence[TemplateTag]) -> None:
        """A build with its tags, of a template that is made if there is none yet: all of it, or nothing."""
        data = BUILD.seal(self._sealer, _encode(build), build.id)

        def work(connection: Connection) -> None:
            connection.execute(
                "INSERT INTO templates (id, account, kind, name, created) VALUES (?,?,?,?,?) ON CONFLICT DO NOTHING",
                (record.id, record.account, record.kind.value, record.name, record.created),
            )
            connection.execute(
                "INSERT INTO template_builds (id, template, data) VALUES (?,?,?)", (build.id, build.template, data)
            )
            put_tags(connection, tags)

        await self._database.run(work)

    async def drop_builds(self, ids: Sequence[str]) -> None:
        def work(connection: Connection) -> None:
            connection.executemany("DELETE FROM template_builds WHERE id=?", [(id,) for id in ids])

        await self._database.run(work)

    async def remove(self, record: TemplateRecord) -> None:
        """With its builds and tags."""

        def work(connection: Connection) -> None:
            connection.execute("DELETE FROM templates WHERE id=?", (record.id,))
            connection.execute("DELETE FROM template_builds WHERE template=?", (record.id,))
            connection.execute("DELETE FROM template_tags WHERE template=?", (record.id,))

        await self._database.run(work)

    async def load(self) -> tuple[list[TemplateRecord], list[TemplateBuild]]:
        """Everything, oldest first."""

        def work(connection: Connection) -> tuple[list[TemplateRecord], list[TemplateBuild]]:
            rows = connection.execute("SELECT id, account, kind, name, created FROM templates ORDER BY created, id")
            records = [
                TemplateRecord(id=r[0], account=r[1], kind=TemplateKind(r[2]), name=r[3], created=r[4]) for r in rows
            ]
            rows = connection.execute("SELECT id, template, data FROM template_builds")
            builds = [_decode(id, template, BUILD.unseal(self._sealer, data, id)) for id, template, data in rows]
            return records, sorted(builds, key=lambda build: (build.created, build.id))

        return await self._database.run(work, synced=False)


def _encode(build: TemplateBuild) -> str:
    return json.dumps(
        {
            "foundation": encode_foundation(build.foundation),
            "limits": encode_limits(build.limits),
            "created": build.created,
            "sandbox": build.sandbox,
        }
    )


def _decode(id: str, template: str, text: str) -> TemplateBuild:
    values = json.loads(text)
    return TemplateBuild(
        id=id,
        template=template,
        foundation=decode_foundation(values["foundation"]),
        limits=decode_limits(values["limits"]),
        created=values["created"],
        sandbox=values["sandbox"],
    )
