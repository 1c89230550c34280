"""Keys and quotas of accounts on both backends: what is kept, sealed, and in force after a restart."""

from __future__ import annotations

from pathlib import Path

import pytest

from roost.model.errors import Conflict, InvalidArgument, NotFound, Throttled, Unavailable
from roost.model.role import Role
from roost.model.signature import AccessKey, Keys
from roost.store.sealing import Sealer
from roost.store.store import Store
from roost.tenants import keybook
from roost.tenants.keybook import KeyBook
from roost.tenants.quotas import Quota, Quotas
from tests.support.stores import Place

ROOT = AccessKey(id="root", secret="of-the-configuration", account="default")


async def opened(store: Store, file: Path, *configured: AccessKey) -> tuple[KeyBook, Keys]:
    keys = Keys(configured)
    sealer = Sealer(file)
    sealer.open()
    book = KeyBook(keys, store.access_keys, sealer, clock=lambda: 1000.0)
    await book.load()
    return book, keys


async def test_keys_outlive_their_server_and_revoked_ones_do_not_come_back(place: Place, tmp_path: Path) -> None:
    file, store = tmp_path / "keys.sealing", place.store()
    await store.open()
    book, keys = await opened(store, file, ROOT)
    kept, secret = await book.create("acme", "for tests", Role.INVOKER)
    gone, lost = await book.create("acme", "old", Role.ADMIN)
    await book.revoke("acme", gone.id)
    for account, id in (("other", kept.id), ("acme", gone.id), ("default", "root"), ("acme", "RKnone")):
        with pytest.raises(NotFound):
            await book.revoke(account, id)
    assert keys.of_secret(lost) is None and keys.lookup(gone.id) is None
    book.used(kept.id)
    await book.note()
    await store.close()
    again = place.store()
    await again.open()
    book, keys = await opened(again, file)
    assert keys.asked  # though the configuration has none any more
    found = keys.of_secret(secret)
    assert found == AccessKey(id=kept.id, secret=secret, account="acme", role=Role.INVOKER, strong=True)
    assert keys.of_secret(lost) is None
    listed = {record.id: record for record in book.of_account("acme")}
    assert (listed[kept.id].used, listed[gone.id].revoked, book.of_account("other")) == (1000.0, 1000.0, [])
    await again.close()
    rows = str(place.rows("SELECT * FROM access_keys"))
    assert secret not in rows and lost not in rows and kept.id in rows


async def test_another_key_file_opens_nothing(place: Place, tmp_path: Path) -> None:
    store = place.store()
    await store.open()
    try:
        book, _ = await opened(store, tmp_path / "one", ROOT)
        await book.create("acme", "k", Role.ADMIN)
        with pytest.raises(Unavailable, match="key file"):
            await opened(store, tmp_path / "another")
    finally:
        await store.close()


async def test_what_is_refused(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keybook, "MOST_KEYS", 2)
    monkeypatch.setattr(keybook, "KEPT_REVOKED", 1)
    store = place.store()
    await store.open()
    try:
        book, _ = await opened(store, tmp_path / "file")
        with pytest.raises(Conflict, match="asks nobody"):
            await book.create("acme", "k", Role.ADMIN)
        book, _ = await opened(store, tmp_path / "file", ROOT)
        for account, name in (("a/b", "k"), ("", "k"), ("acme", ""), ("acme", "x\n")):
            with pytest.raises(InvalidArgument):
                await book.create(account, name, Role.ADMIN)
        made = [(await book.create("acme", "k", Role.ADMIN))[0].id for _ in range(2)]
        with pytest.raises(Throttled, match="at most 2"):
            await book.create("acme", "k", Role.ADMIN)
        await book.create("other", "k", Role.ADMIN)
        for id in made:
            await book.revoke("acme", id)
        assert len(book.of_account("acme")) == 1
    finally:
        await store.close()
    assert len(place.rows("SELECT id FROM access_keys WHERE account='acme'")) == 1


async def test_quotas_are_kept(place: Place) -> None:
    store = place.store()
    await store.open()
    try:
        for _ in range(2):
            quotas = Quotas(
                Quota(sandboxes=5), store.quotas, clock=lambda: 0.0, monotonic=lambda: 0.0, holdings=lambda _: (0, 0, 0)
            )
            await quotas.load()
            await quotas.put("acme", {"requests_per_s": 7})
        assert quotas.of("acme") == Quota(sandboxes=5, requests_per_s=7) and quotas.metered
        await quotas.delete("acme")
        assert quotas.of("acme") == Quota(sandboxes=5) and not quotas.metered
    finally:
        await store.close()


def test_the_key_file_is_its_owners_alone_and_checked(tmp_path: Path) -> None:
    file = tmp_path / "keys.sealing"
    sealer = Sealer(file)
    sealer.open()
    assert (file.stat().st_mode & 0o777, len(file.read_bytes())) == (0o600, 32)
    sealed = sealer.seal("secret", "mine")
    assert b"secret" not in sealed and sealer.unseal(sealed, "mine") == "secret"
    again = Sealer(file)
    again.open()
    assert again.unseal(sealed, "mine") == "secret"
    for bad, purpose in ((sealed, "theirs"), (sealed[:-1] + b"\0\0", "mine"), (b"", "mine")):
        with pytest.raises(Unavailable):
            again.unseal(bad, purpose)
    file.write_bytes(b"short")
    with pytest.raises(Unavailable, match="5 bytes"):
        Sealer(file).open()
