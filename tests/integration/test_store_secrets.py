"""Secrets at rest, on both backends: sealed, each for its own row; lost with the key file, and never without a word."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from roost.model.errors import Unavailable
from roost.model.secret import Secret
from roost.store.store import Store
from tests.support.stores import Place

VALUE = "sk-of-somebody"


def secret(account: str = "a", id: str = "1", **fields: str) -> Secret:
    return Secret(account=account, id=id, name=f"name-{id}", created=1.0, updated=2.0, **{"value": VALUE, **fields})


async def change(store: Store, sql: str, *values: str) -> None:
    await store._database.run(lambda connection: connection.execute(sql, values))


async def test_a_value_comes_back_and_is_nowhere_in_the_store(place: Place) -> None:
    store = place.store()
    await store.open()
    await store.secrets.create(secret())
    await store.close()
    assert VALUE not in str(place.rows("SELECT * FROM secrets"))
    if not place.postgres:
        files = [file.read_bytes() for file in place.path.parent.glob("roost.db*")]
        assert files and all(VALUE.encode() not in data for data in files)
    again = place.store()
    await again.open()
    try:
        assert await again.secrets.find("a", "name-1") == secret()
        await again.secrets.replace(secret(value="another"))
        assert [found.value for found in await again.secrets.list("a", after="", limit=9)] == ["another"]
    finally:
        await again.close()


async def test_what_a_former_roost_left_open_is_sealed_at_the_start(place: Place) -> None:
    store = place.store()
    await store.open()
    data = json.dumps({"value": VALUE, "version": 1, "metadata": {}, "created": 1.0, "updated": 2.0})
    await change(store, "INSERT INTO secrets (account, id, name, data) VALUES (?,?,?,?)", "a", "1", "name-1", data)
    await store.close()
    assert VALUE in str(place.rows("SELECT * FROM secrets"))
    again = place.store()
    await again.open()
    try:
        assert VALUE not in str(place.rows("SELECT data FROM secrets"))
        assert await again.secrets.find("a", "1") == secret()
    finally:
        await again.close()


async def test_a_row_opens_in_its_own_place_alone(place: Place) -> None:
    store = place.store()
    await store.open()
    try:
        await store.secrets.create(secret())
        await store.secrets.create(secret("b", "2"))
        await change(store, "UPDATE secrets SET data=(SELECT data FROM secrets WHERE id='1') WHERE id='2'")
        assert await store.secrets.find("a", "1") == secret()
        with pytest.raises(Unavailable, match="b/2"):
            await store.secrets.find("b", "2")
    finally:
        await store.close()


async def test_without_its_key_file_a_store_with_secrets_does_not_open(place: Place) -> None:
    file: Path = place.path.with_name("keys.sealing")
    store = place.store()
    await store.open()
    await store.secrets.create(secret())
    await store.close()
    kept = file.read_bytes()
    file.unlink()
    with pytest.raises(Unavailable, match=r"keys\.sealing is missing"):
        await place.store().open()
    assert not file.exists()
    file.write_bytes(kept)
    again = place.store()
    await again.open()
    try:
        assert await again.secrets.find("a", "1") == secret()
    finally:
        await again.close()
