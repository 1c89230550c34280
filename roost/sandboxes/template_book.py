"""Templates and snapshots of accounts: their builds, and the tags that name these. In memory, and durable."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from roost.model.errors import Throttled
from roost.model.template import DEFAULT_TAG, TemplateBuild, TemplateKind, TemplateRecord, TemplateTag

MOST_TAGS = 1000


class TemplateStore(Protocol):
    """Where they are durable. Methods raise RoostError, and have no effect then."""

    async def save(self, record: TemplateRecord, build: TemplateBuild, tags: Sequence[TemplateTag]) -> None: ...

    async def drop_builds(self, ids: Sequence[str]) -> None: ...

    async def remove(self, record: TemplateRecord) -> None: ...

    async def load(self) -> tuple[list[TemplateRecord], list[TemplateBuild]]: ...


class TagStore(Protocol):
    """Where tags are durable. Methods raise RoostError, and have no effect then."""

    async def put(self, tags: Sequence[TemplateTag]) -> None: ...

    async def delete(self, account: str, template: str, tags: Sequence[str]) -> None: ...

    async def list_all(self) -> Sequence[TemplateTag]: ...


def superseded(builds: Sequence[TemplateBuild], tagged: Iterable[str]) -> tuple[TemplateBuild, ...]:
    """Of a template's builds, oldest first, those that no tag names; but the newest stays if none is named."""
    kept = frozenset(tagged)
    gone = tuple(build for build in builds if build.id not in kept)
    return gone if len(gone) < len(builds) else gone[:-1]


class TemplateBook:
    """`load` before the first use. Tags may also be of templates that are not in the book."""

    def __init__(self, store: TemplateStore, tags: TagStore, *, clock: Callable[[], float]) -> None:
        self._store = store
        self._tag_store = tags
        self._clock = clock
        self._records: dict[str, TemplateRecord] = {}
        self._names: dict[tuple[str, str], str] = {}
        self._builds: dict[str, list[TemplateBuild]] = {}
        self._tags: dict[tuple[str, str], dict[str, TemplateTag]] = {}

    async def load(self) -> None:
        records, builds = await self._store.load()
        for record in records:
            self._enter(record)
        for build in builds:
            self._builds[build.template].append(build)
        for tag in await self._tag_store.list_all():
            self._tags.setdefault((tag.account, tag.template), {})[tag.tag] = tag

    # --- what there is -------------------------------------------------------------------------------------------

    def find(self, account: str, name: str) -> TemplateRecord | None:
        """By id or name."""
        record = self._records.get(name) or self._records.get(self._names.get((account, name), ""))
        return record if record is not None and record.account == account else None

    def of_kind(self, account: str, kind: TemplateKind) -> list[TemplateRecord]:
        """The oldest first."""
        return [record for record in self._records.values() if record.account == account and record.kind is kind]

    def builds(self, record: TemplateRecord) -> Sequence[TemplateBuild]:
        """At least one; the oldest first."""
        return tuple(self._builds[record.id])

    def tags(self, account: str, template: str) -> Mapping[str, TemplateTag]:
        return self._tags.get((account, template), {})

    def resolve(self, record: TemplateRecord, tag: str) -> TemplateBuild | None:
        """The build that a tag means; without one the default, or else the newest."""
        tags, builds = self.tags(record.account, record.id), self._builds[record.id]
        if not tag and DEFAULT_TAG not in tags:
            return builds[-1]
        meant = tags.get(tag or DEFAULT_TAG)
        return next((build for build in builds if meant is not None and build.id == meant.build), None)

    def layers(self) -> Iterator[tuple[str, ...]]:
        """The images that each build needs."""
        return (build.foundation.layers for builds in self._builds.values() for build in builds)

    # --- changes: each returns the builds that are gone -----------------------------------------------------------

    async def add(self, record: TemplateRecord, build: TemplateBuild, tags: Sequence[str]) -> Sequence[TemplateBuild]:
        """A build of a template, which is made if it is new, under these tags from now on."""
        new = self._new_tags(record.account, record.id, build.id, tags)
        await self._store.save(record, build, new)
        if record.id not in self._records:
            self._enter(record)
        self._builds[record.id].append(build)
        self._put(record.account, record.id, new)
        return await self._prune(record)

    async def assign(self, account: str, template: str, build: str, tags: Sequence[str]) -> Sequence[TemplateBuild]:
        """The tags mean this build from now on. Raises Throttled when the template has too many."""
        new = self._new_tags(account, template, build, tags)
        await self._tag_store.put(new)
        self._put(account, template, new)
        return await self._prune(self._records.get(template))

    async def unassign(self, account: str, template: str, tags: Sequence[str]) -> Sequence[TemplateBuild]:
        """The tags mean nothing any more."""
        await self._tag_store.delete(account, template, tags)
        known = self._tags.get((account, template), {})
        for tag in tags:
            known.pop(tag, None)
        return await self._prune(self._records.get(template))

    async def remove(self, record: TemplateRecord) -> Sequence[TemplateBuild]:
        """It is gone, with its builds and tags."""
        await self._store.remove(record)
        self._records.pop(record.id, None)
        self._names.pop((record.account, record.name), None)
        self._tags.pop((record.account, record.id), None)
        return self._builds.pop(record.id, [])

    def _enter(self, record: TemplateRecord) -> None:
        self._records[record.id] = record
        self._builds[record.id] = []
        if record.name:
            self._names[record.account, record.name] = record.id

    def _new_tags(self, account: str, template: str, build: str, tags: Sequence[str]) -> list[TemplateTag]:
        if len(self.tags(account, template).keys() | set(tags)) > MOST_TAGS:
            raise Throttled(f"A template has at most {MOST_TAGS} tags.")
        now = self._clock()
        return [TemplateTag(account=account, template=template, tag=tag, build=build, created=now) for tag in tags]

    def _put(self, account: str, template: str, tags: Sequence[TemplateTag]) -> None:
        self._tags.setdefault((account, template), {}).update({tag.tag: tag for tag in tags})

    async def _prune(self, record: TemplateRecord | None) -> Sequence[TemplateBuild]:
        if record is None or record.id not in self._builds:
            return ()
        tagged = [tag.build for tag in self.tags(record.account, record.id).values()]
        gone = superseded(self._builds[record.id], tagged)
        if gone:
            await self._store.drop_builds([build.id for build in gone])
            self._builds[record.id] = [build for build in self._builds[record.id] if build not in gone]
        return gone
