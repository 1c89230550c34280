"""Keys of accounts: made, listed and revoked, durably, and at once in the ring that answers every request."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Protocol

from roost.model.errors import Conflict, InvalidArgument, NotFound
from roost.model.role import MOST_GRANTS, Role, is_grant
from roost.model.signature import AccessKey, Keys
from roost.store.access_keys import KeyRecord
from roost.store.sealing import Sealer
from roost.telemetry.rounds import going_on

#: Of one account: that are in force; that were revoked and are still listed.
MOST_KEYS = 100
KEPT_REVOKED = 100
#: How often it is written down when keys were last used.
NOTE_EVERY_S = 60.0
ACCOUNT = re.compile(r"[A-Za-z0-9_-]{1,64}")


class KeyStore(Protocol):
    async def create(self, key: KeyRecord, *, most: int) -> None: ...

    async def revoke(self, id: str, at: float, *, kept: int) -> None: ...

    async def used(self, times: Mapping[str, float]) -> None: ...

    async def list_all(self) -> list[KeyRecord]: ...


class KeyBook:
    """`await load()` before use, with an open sealer. Keys of the configuration are in the ring beside the book's."""

    def __init__(self, keys: Keys, store: KeyStore, sealer: Sealer, *, clock: Callable[[], float]) -> None:
        self._keys = keys
        self._store = store
        self._sealer = sealer
        self._clock = clock
        self._records: dict[str, KeyRecord] = {}
        self._used: dict[str, float] = {}
        self._lock = asyncio.Lock()

    async def load(self) -> None:
        """Raises Unavailable when the key file does not open what is stored."""
        for record in await self._store.list_all():
            self._records[record.id] = record
            self._keys.asked = True  # also where all are revoked: a server that had keys does not open by itself
            if not record.revoked:
                secret = self._sealer.unseal(record.sealed, record.id)
                self._keys.add(_key(record, secret))

    def of_account(self, account: str) -> list[KeyRecord]:
        """The account's, the oldest first."""
        now = self._used
        found = [record for record in self._records.values() if record.account == account]
        return [replace(record, used=now.get(record.id, record.used)) for record in found]

    def accounts(self) -> list[str]:
        """Those that have keys here."""
        return sorted({record.account for record in self._records.values()})

    async def create(self, account: str, name: str, role: Role, grants: Collection[str] = ()) -> tuple[KeyRecord, str]:
        """A new key and its secret, which is told this once. With `grants` it is for these alone.

        Raises InvalidArgument, Throttled when the account has too many, Conflict on a server that asks for none.
        """
        if not self._keys:
            raise Conflict(
                "This server asks nobody for a key: whoever made the first would lock all others out. "
                "Set [keys] in the configuration, then make keys of accounts.",
                code="KeysNotConfigured",
            )
        if not ACCOUNT.fullmatch(account):
            raise InvalidArgument("account: 1 to 64 letters, digits, '_' or '-' are expected.")
        if not 0 < len(name) <= 64 or not name.isprintable():
            raise InvalidArgument("name: 1 to 64 printable characters are expected.")
        if len(grants) > MOST_GRANTS or not all(map(is_grant, grants)):
            raise InvalidArgument(f"grants: tool:<name> and function:<name> are expected, {MOST_GRANTS} at most.")
        # An id tells nothing; a secret is in the form that clients of sandboxes look for.
        id, secret = f"RK{secrets.token_hex(10)}", f"e2b_{secrets.token_hex(32)}"
        sealed = self._sealer.seal(secret, id)
        record = KeyRecord(
            id=id,
            account=account,
            name=name,
            role=role,
            sealed=sealed,
            created=self._clock(),
            grants=tuple(sorted(set(grants))),
        )
        async with self._lock:
            await self._store.create(record, most=MOST_KEYS)
            self._records[id] = record
            self._keys.add(_key(record, secret))
        return record, secret

    async def revoke(self, account: str, id: str) -> None:
        """It opens nothing from now on. Raises NotFound, also for a key of another account or of the configuration."""
        async with self._lock:
            record = self._records.get(id)
            if record is None or record.account != account or record.revoked:
                raise NotFound(f"There is no key {id[:64]}.", code="KeyNotFound")
            at = self._clock()
            await self._store.revoke(id, at, kept=KEPT_REVOKED)
            self._keys.remove(id)
            self._records[id] = replace(record, revoked=at, sealed=b"")
            gone = [one for one in self._records.values() if one.account == account and one.revoked]
            for old in sorted(gone, key=lambda one: one.revoked)[:-KEPT_REVOKED]:
                del self._records[old.id]

    def used(self, id: str) -> None:
        """A key opened something just now."""
        self._used[id] = self._clock()

    async def note(self) -> None:
        """Write down when keys were last used."""
        times = {id: at for id, at in self._used.items() if id in self._records}
        for id, at in times.items():
            self._records[id] = replace(self._records[id], used=at)
        self._used = {}
        if times:
            await self._store.used(times)

    async def run(self) -> None:
        """`note` now and then."""
        while True:
            await asyncio.sleep(NOTE_EVERY_S)
            with going_on("when keys were used can't be noted"):
                await self.note()


def _key(record: KeyRecord, secret: str) -> AccessKey:
    return AccessKey(
        id=record.id,
        secret=secret,
        account=record.account,
        role=record.role,
        strong=True,
        grants=frozenset(record.grants),
    )
