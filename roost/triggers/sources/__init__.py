"""The sources of events, one module each."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

from roost.model.errors import Unavailable
from roost.objects.ports import ObjectStore
from roost.store.trigger_objects import TriggerObjects
from roost.store.trigger_rows import TriggerRows
from roost.store.triggers import TriggerRecord
from roost.triggers.adapters import ADAPTERS, queue_source
from roost.triggers.alarms import Alarms
from roost.triggers.ports import Cursors, Factory, Source
from roost.triggers.sources.objects import Bucket
from roost.triggers.sources.timer import Timer
from roost.triggers.sources.webhook import Webhook


def factories(
    *,
    alarms: Alarms,
    cursors: Cursors,
    objects: ObjectStore,
    seen_objects: TriggerObjects,
    seen_rows: TriggerRows,
    region: str,
) -> Mapping[str, Factory]:
    """What makes the source of a trigger, by the trigger's type."""
    return {
        "timer": lambda record: Timer(record, alarms=alarms, cursors=cursors),
        "webhook": lambda record: Webhook(),
        "oss": lambda record: Bucket(record, store=objects, seen=seen_objects, cursors=cursors, region=region),
        "postgresql": lambda record: _table_rows(record, rows=seen_rows, cursors=cursors),
        **dict.fromkeys(ADAPTERS, queue_source),
    }


def _table_rows(record: TriggerRecord, *, rows: TriggerRows, cursors: Cursors) -> Source:
    """Only servers that have such a trigger need, and load, PostgreSQL's client. Raises Unavailable without it."""
    try:
        module = importlib.import_module("roost.triggers.sources.postgresql")
    except ImportError as error:
        raise Unavailable("This type of trigger needs the extra 'postgres': pip install 'roost[postgres]'.") from error
    source: Source = module.TableRows(record, rows=rows, cursors=cursors)
    return source
