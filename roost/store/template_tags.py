"""Table `template_tags`: which build of a template a tag names."""

from __future__ import annotations

from collections.abc import Sequence

from roost.model.template import TemplateTag
from roost.store.database import Connection, Database
from roost.store.sql import upsert


class TemplateTags:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def put(self, tags: Sequence[TemplateTag]) -> None:
        """All of them, or none; a tag that exists means the new build from now on."""

        def work(connection: Connection) -> None:
            put_tags(connection, tags)

        await self._database.run(work)

    async def delete(self, account: str, template: str, tags: Sequence[str]) -> None:
        def work(connection: Connection) -> None:
            connection.executemany(
                "DELETE FROM template_tags WHERE account=? AND template=? AND tag=?",
                [(account, template, tag) for tag in tags],
            )

        await self._database.run(work)

    async def list_all(self) -> list[TemplateTag]:
        def work(connection: Connection) -> list[TemplateTag]:
            rows = connection.execute(
                "SELECT account, template, tag, build, created FROM template_tags ORDER BY account, template, tag"
            )
            return [TemplateTag(account=r[0], template=r[1], tag=r[2], build=r[3], created=r[4]) for r in rows]

        return await self._database.run(work, synced=False)


def put_tags(connection: Connection, tags: Sequence[TemplateTag]) -> None:
    """As a part of somebody's transaction."""
    connection.executemany(
        upsert("template_tags", "account, template, tag", "build, created"),
        [(tag.account, tag.template, tag.tag, tag.build, tag.created) for tag in tags],
    )
