"""Buckets: each object that is created, overwritten or removed is a task, once.

What the trigger has dealt with is in the store, object by object. A change is a difference between that and the bucket,
and is noted there when its task is durable: a server that is killed in between finds the same difference again, and it
becomes the same task. The store's watch says only where to look; after a start, all is looked at.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Collection, Iterable, Sequence
from contextlib import aclosing
from itertools import pairwise

from roost.functions.triggers.objects import ObjectSettings
from roost.functions.triggers.settings import settings_of
from roost.model.errors import Unavailable
from roost.model.objects import ObjectInfo
from roost.objects.ports import PAGE, ObjectStore
from roost.store.trigger_objects import TriggerObjects
from roost.store.triggers import TriggerRecord
from roost.triggers.delivery import enqueue_all
from roost.triggers.ports import Cursors, Delivery, Event, Report, task_id
from roost.triggers.sources.object_events import Change, Origin, changes, event_body

#: Tasks that are enqueued side by side, and noted together.
_AT_ONCE = 200
#: Objects that are being written to are looked at again.
_AGAIN_S = 2.0
_MOST_UNFINISHED = 10_000
#: With nothing to see.
_QUIET_S = 3600.0
#: Clocks are that coarse: what appeared so long before the trigger was made may have come after it.
_SLACK_S = 1.0


class Bucket:
    """Implements `Source`. Its cursor: what is looked at, since when, and whether all of it has been looked at."""

    def __init__(
        self, record: TriggerRecord, *, store: ObjectStore, seen: TriggerObjects, cursors: Cursors, region: str
    ) -> None:
        settings = settings_of(ObjectSettings, record)
        self._record = record
        self._store = store
        self._seen = seen
        self._cursors = cursors
        self._kinds = settings.kinds
        self._prefix, self._suffix = settings.filter.key.prefix, settings.filter.key.suffix
        self._poll_s = settings.poll_seconds
        self._bucket = settings.bucket(record)
        self._origin = Origin(bucket=self._bucket, region=region, account=record.account, rule=record.id)
        self._since = 0.0  # what is older and unknown is no event: it was there before the trigger

    async def run(self, delivery: Delivery, report: Report) -> None:
        await self._resume()
        async with self._store.watch(self._bucket, self._prefix, self._poll_s) as watch:
            everywhere, unfinished = True, set[str]()
            while True:
                if everywhere:
                    unfinished = await self._look_everywhere(delivery, report)
                    await self._looked_everywhere()
                elif unfinished:
                    unfinished = await self._look_at(unfinished, delivery, report)
                report.connected()
                hint = await watch.next(_AGAIN_S if unfinished else _QUIET_S)
                everywhere = hint.anywhere or len(unfinished) > _MOST_UNFINISHED
                unfinished |= set(hint.keys)

    # --- what is looked at -------------------------------------------------------------------------------------

    async def _resume(self) -> None:
        kept = await self._cursors.cursor(self._record.id)
        known = json.loads(kept) if kept else {}
        if known.get("scope") != self._scope:
            # What another bucket or prefix had says nothing here. Nothing is missed: the record is the older one.
            await self._seen.forget(self._record.id)
            known = {"since": self._record.modified if known else self._record.created, "listed": False}
            await self._put(known)
        self._since = 0.0 if known["listed"] else float(known["since"]) - _SLACK_S

    async def _looked_everywhere(self) -> None:
        if self._since:
            self._since = 0.0
            await self._put({"since": 0.0, "listed": True})

    async def _put(self, value: dict[str, object]) -> None:
        await self._cursors.put_cursor(self._record.id, json.dumps({**value, "scope": self._scope}))

    @property
    def _scope(self) -> list[str]:
        return [self._bucket, self._prefix, self._suffix]

    # --- looking -----------------------------------------------------------------------------------------------

    async def _look_everywhere(self, delivery: Delivery, report: Report) -> set[str]:
        """Compare bucket and store page by page, both in the order of keys. Keys that have to be looked at again."""
        unfinished: set[str] = set()
        after = ""
        async with aclosing(self._store.list(self._bucket, self._prefix)) as pages:
            async for page in pages:
                if not page:
                    continue
                until = page[-1].key
                if not _is_in_order(after, page):
                    raise Unavailable(f"The object store lists bucket {self._bucket} in no order: nothing can be told.")
                unfinished |= await self._compare(page, after, until, delivery, report)
                after = until
        return unfinished | await self._compare((), after, None, delivery, report)

    async def _compare(
        self, page: Sequence[ObjectInfo], after: str, until: str | None, delivery: Delivery, report: Report
    ) -> set[str]:
        present = {info.key: info for info in page if info.key.endswith(self._suffix)}
        unfinished: set[str] = set()
        more = True
        while more:
            seen = await self._seen.between(self._record.id, after, until, PAGE)
            more = len(seen) == PAGE
            # What of the page has no match among these may have one among those that follow them.
            listed = [present.pop(one.key) for one in seen if one.key in present]
            found = list(changes(seen, listed if more else [*listed, *present.values()]))
            if self._store.exact:
                await self._deal_with(found, delivery, report)
            elif found:
                unfinished |= await self._look_at([change.key for change in found], delivery, report)
            after = seen[-1].key if seen else after
        return unfinished

    async def _look_at(self, keys: Collection[str], delivery: Delivery, report: Report) -> set[str]:
        """Those of `keys` that are being written to, and so have to be looked at again."""
        wanted = [key for key in keys if key.endswith(self._suffix)]
        unfinished: set[str] = set()
        for start in range(0, len(wanted), PAGE):
            some = wanted[start : start + PAGE]
            now = await self._store.heads(self._bucket, some)
            busy = {key for key, info in now.items() if info.writing}
            quiet = [key for key in some if key not in busy]
            known = await self._seen.of_keys(self._record.id, quiet)
            await self._deal_with(changes(known, [now[key] for key in quiet if key in now]), delivery, report)
            unfinished |= busy
        return unfinished

    async def _deal_with(self, found: Iterable[Change], delivery: Delivery, report: Report) -> None:
        """Enqueue what is an event, then note what was dealt with."""
        every = list(found)
        for start in range(0, len(every), _AT_ONCE):
            some = every[start : start + _AT_ONCE]
            await enqueue_all(delivery, [self._event(change) for change in some if self._is_event(change)], report)
            present = [seen for change in some if (seen := change.seen()) is not None]
            gone = [change.key for change in some if change.after is None]
            await self._seen.note(self._record.id, present, gone)
            await asyncio.sleep(0)

    def _is_event(self, change: Change) -> bool:
        was_there = change.before is None and change.after is not None and change.after.appeared < self._since
        return change.kind in self._kinds and not was_there

    def _event(self, change: Change) -> Event:
        id = task_id(self._record, change.occurrence)
        body = event_body(change, self._origin, now=time.time(), request_id=id)
        return Event(id=id, body=body, task_id=id)


def _is_in_order(after: str, page: Sequence[ObjectInfo]) -> bool:
    keys = [after.encode(), *(info.key.encode() for info in page)]
    return all(before < behind for before, behind in pairwise(keys))
