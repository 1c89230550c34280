"""Changes to the templates and snapshots of accounts, after which the images that nobody needs any more go."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

from roost.model.errors import InvalidArgument, NotFound
from roost.model.template import DEFAULT_TAG, TemplateBuild, TemplateKind, TemplateRecord
from roost.sandboxes.lives import Lives
from roost.sandboxes.templates import SandboxTemplate, TemplateShelf

_TAG = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}")


def parse_tag(tag: str) -> str:
    """Raises InvalidArgument for what is none."""
    name = tag.lower()
    if not _TAG.fullmatch(name):
        raise InvalidArgument(f"tags: {tag[:80]!r} is no tag: letters, digits, '.', '_' and '-' are expected.")
    return name


def split_name(name: str) -> tuple[str, str]:
    """`name:tag`, with the default for a tag that is not there. Raises InvalidArgument for what is no tag."""
    plain, colon, tag = name.partition(":")
    return plain, parse_tag(tag) if colon else DEFAULT_TAG


class TemplateRegistry:
    """One change at a time: two of one name must not make two templates. `on_gone(account, id)` is called when a
    template or snapshot has gone."""

    def __init__(
        self, lives: Lives, shelf: TemplateShelf, on_gone: Callable[[str, str], None] = lambda account, id: None
    ) -> None:
        self._lives = lives
        self._shelf = shelf
        self._on_gone = on_gone
        self._changing = asyncio.Lock()

    async def register(
        self, account: str, name: str, kind: TemplateKind, build: TemplateBuild, tags: Sequence[str]
    ) -> tuple[TemplateRecord, TemplateBuild]:
        """A new build of the template of this name. Of a new one, `build.template` is the id.

        Raises Conflict for the name of something else, StorageFull, Throttled.
        """
        async with self._changing:
            record = self._shelf.record_for(account, name, kind, build.template, build.created)
            build = replace(build, template=record.id)
            self._release(await self._shelf.book.add(record, build, tags))
        return record, build

    async def assign(self, account: str, template: SandboxTemplate, tags: Sequence[str]) -> None:
        """The tags mean this build from now on."""
        async with self._changing:
            self._release(await self._shelf.book.assign(account, template.id, template.build, tags))

    async def unassign(self, account: str, name: str, tags: Sequence[str]) -> None:
        """The tags mean nothing any more; a build that no tag is left for goes, unless it is the last one. Raises
        NotFound for a tag that the template has not."""
        async with self._changing:
            template = self._shelf.get(name.partition(":")[0], account)
            unknown = sorted(set(tags) - {tag for tag, _, _ in self._shelf.tags(account, template)})
            if unknown:
                raise NotFound(f"tag '{unknown[0]}' of template '{template.id}' not found")
            self._release(await self._shelf.book.unassign(account, template.id, tags))

    async def remove(self, account: str, name: str) -> None:
        """A template or a snapshot is gone; with a tag only what that alone means, if there is more. Sandboxes that
        were made from it live on."""
        async with self._changing:
            record = self._shelf.own(account, name)
            _, colon, tag = name.partition(":")
            tags = self._shelf.book.tags(account, record.id)
            if colon and tag not in tags:
                raise NotFound(f"template '{name[:128]}' not found", code="TemplateNotFound")
            if colon and len(tags) > 1:
                self._release(await self._shelf.book.unassign(account, record.id, [tag]))
            else:
                self._release(await self._shelf.book.remove(record))
                self._on_gone(account, record.id)

    def holding(self, images: Sequence[str]) -> AbstractContextManager[None]:
        """As `Lives.holding`."""
        return self._lives.holding(images)

    def release(self, images: Sequence[str]) -> None:
        """Remove those that nobody needs."""
        self._lives.release(images)

    def _release(self, gone: Sequence[TemplateBuild]) -> None:
        self._lives.release(name for build in gone for name in build.foundation.layers)
