"""The store: one object, a query module per table behind it."""

from __future__ import annotations

import logging
from pathlib import Path

from roost.model.errors import RoostError
from roost.store import sealed
from roost.store.access_keys import AccessKeys
from roost.store.aliases import Aliases
from roost.store.concurrency import Concurrency
from roost.store.connect import database
from roost.store.database import Connection
from roost.store.functions import Functions
from roost.store.labels import LabelRows
from roost.store.layers import Layers
from roost.store.provision import Provision
from roost.store.quotas import Quotas
from roost.store.sandboxes import Sandboxes
from roost.store.sealing import Sealer
from roost.store.secrets import Secrets
from roost.store.sessions import Sessions
from roost.store.settings import Settings
from roost.store.tags import Tags
from roost.store.task_outbox import TaskOutbox
from roost.store.task_outputs import TaskOutputs
from roost.store.tasks import Tasks
from roost.store.template_tags import TemplateTags
from roost.store.templates import Templates
from roost.store.trigger_objects import TriggerObjects
from roost.store.trigger_rows import TriggerRows
from roost.store.triggers import Triggers
from roost.store.versions import Versions
from roost.store.volumes import Volumes

log = logging.getLogger(__name__)

#: The setting of a store that had in plain text what is sealed now (`schema/012_sealed.sql`, `013`).
_PLAIN = "plain text"


class Store:
    """Durable state of one server. `await open()` before use, `await close()` after.

    Every method of a table raises StorageFull, Throttled or Unavailable when the disk can't take the change, and has
    no effect then.
    """

    def __init__(self, path: Path, url: str = "") -> None:
        """In the file `path`, or in the PostgreSQL database at `url`: the folder of `path` is locked either way."""
        self._database = database(path, url)
        #: What is secret is sealed with it: whoever has the database alone has none of that.
        self.sealer = Sealer(path.with_name("keys.sealing"))
        self.functions = Functions(self._database, self.sealer)
        self.versions = Versions(self._database, self.sealer)
        self.aliases = Aliases(self._database)
        self.layers = Layers(self._database)
        self.tags = Tags(self._database)
        self.concurrency = Concurrency(self._database)
        self.provision = Provision(self._database, self.sealer)
        self.triggers = Triggers(self._database, self.sealer)
        self.trigger_objects = TriggerObjects(self._database)
        self.trigger_rows = TriggerRows(self._database)
        self.sessions = Sessions(self._database, self.sealer)
        self.sandboxes = Sandboxes(self._database, self.sealer)
        self.secrets = Secrets(self._database, self.sealer)
        self.volumes = Volumes(self._database, self.sealer)
        self.template_tags = TemplateTags(self._database)
        self.templates = Templates(self._database, self.sealer)
        self.access_keys = AccessKeys(self._database)
        self.quotas = Quotas(self._database)
        self.labels = LabelRows(self._database)
        self.settings = Settings(self._database)
        self.tasks = Tasks(self._database, self.sealer)
        self.task_outputs = TaskOutputs(self._database)
        self.task_outbox = TaskOutbox(self._database, self.sealer)

    async def open(self) -> None:
        """Raises Unavailable when another server uses the data directory, the file can't be used, or the key file is
        not there that secrets in it were sealed with."""
        await self._database.open()
        try:
            self.sealer.open(may_make=not await self._database.run(_has_sealed, synced=False))
            await self.secrets.seal_all()
            if await self.settings.get(_PLAIN):
                await self._seal_all()
        except BaseException:
            await self._database.close()
            raise

    async def close(self) -> None:
        await self._database.close()

    async def _seal_all(self) -> None:
        """Until that, and what the files have left of it, is done, each start begins again. Raises Unavailable when
        what is sealed already does not open: no store has two keys."""
        for key in await self.access_keys.list_all():
            if not key.revoked:
                self.sealer.unseal(key.sealed, key.id)
        await self.secrets.check()
        await self.sandboxes.load()
        await self.sessions.list_all()

        def work(connection: Connection) -> None:
            for column in sealed.ALL:
                column.check(self.sealer, connection)
            for column in sealed.ALL:
                column.seal_all(self.sealer, connection)

        log.info("sealing what an earlier Roost stored in plain text; a large store takes a while")
        await self._database.run(work)
        try:
            await self._database.renew(["secrets", *(column.table for column in sealed.ALL)])
        except RoostError as error:
            log.warning("what was stored in plain text may be left in unused parts of the store: %s", error.message)
        else:
            await self.settings.delete(_PLAIN)


def _has_sealed(connection: Connection) -> bool:
    mark = ('%"sealed"%',)
    queries = (
        ("SELECT count(*) FROM access_keys WHERE revoked=0", ()),
        ("SELECT count(*) FROM secrets WHERE data LIKE ?", mark),
        ("SELECT count(*) FROM sessions WHERE data LIKE ?", mark),
        ("SELECT count(*) FROM sandboxes WHERE data LIKE ?", ('%"network": {"sealed": %',)),
    )
    return any(connection.execute(*query).fetchone()[0] for query in queries) or any(
        column.has_sealed(connection) for column in sealed.ALL
    )
