"""The catalog over a real store: what it keeps, what it tells, and what happens at the same time."""

from __future__ import annotations

import asyncio
import base64
import io
import random
import zipfile
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from roost.functions.catalog import FunctionCatalog
from roost.functions.definition import FunctionConfig, InputCode
from roost.functions.packages import PackageStore
from roost.functions.parse import parse
from roost.model.errors import Conflict, InvalidArgument, NotFound, Unavailable
from roost.model.function import FunctionSpec
from roost.store.functions import FunctionRecord
from roost.store.store import Store


def code(text: str = "x") -> InputCode:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(zipfile.ZipInfo("index.py"), text)
    return InputCode.model_validate({"zipFile": base64.b64encode(out.getvalue()).decode()})


def config(**fields: Any) -> FunctionConfig:
    return parse(FunctionConfig, {"runtime": "python3", "handler": "index.handler"} | fields)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    found = Store(tmp_path / "roost.db")
    await found.open()
    yield found
    await found.close()


@pytest.fixture
async def catalog(store: Store, tmp_path: Path) -> FunctionCatalog:
    return await load(store, tmp_path)


async def load(store: Store, tmp_path: Path, **options: Any) -> FunctionCatalog:
    packages = PackageStore(tmp_path / "code")
    packages.open()
    found = FunctionCatalog(store, packages, choose=random.Random(1), **options)
    await found.load()
    return found


def everything(catalog: FunctionCatalog) -> list[Any]:
    """All that can be seen of the functions, to compare before and after."""
    return [
        (
            entry.record, entry.versions, entry.aliases, entry.triggers, entry.reserved, entry.settings, entry.specs,
            catalog.tags.get("a", "function", entry.record.name),
        )
        for entry in catalog.list("a")
    ]  # fmt: skip


async def test_memory_and_store_agree_after_any_changes(catalog: FunctionCatalog, store: Store, tmp_path: Path) -> None:
    """A random walk over all changes; then a fresh catalog reads from the store what this one has in memory."""
    choose = random.Random(5)
    names = ["f", "g", "h"]

    async def step() -> None:
        name, number = choose.choice(names), str(choose.randint(1, 4))
        steps = [
            lambda: catalog.create("a", name, config(timeout=int(number)), code(number), {"t": number}),
            lambda: catalog.update("a", name, {"timeout": int(number)}, choose.choice([None, code(number)])),
            lambda: catalog.delete("a", name),
            lambda: catalog.versions.publish("a", name, number),
            lambda: catalog.versions.delete("a", name, number),
            lambda: catalog.aliases.create("a", name, "p", version=number, weights={"LATEST": 0.5}, description=""),
            lambda: catalog.aliases.update("a", name, "p", version=number, weights={}),
            lambda: catalog.aliases.delete("a", name, "p"),
            lambda: catalog.concurrency.put("a", name, int(number) + 5),
            lambda: catalog.concurrency.delete("a", name),
            lambda: catalog.provision.put("a", name, choose.choice([None, "p", number]), {"defaultTarget": 2}),
            lambda: catalog.scaling.put("a", name, None, {"minInstances": 1}),
            lambda: catalog.provision.delete("a", name, choose.choice([None, "p"])),
            lambda: catalog.triggers.create(
                "a", name, "t" + number, type="http", qualifier=choose.choice([None, "p"]),
                config='{"methods":["GET"]}', description="",
            ),
            lambda: catalog.triggers.delete("a", name, "t" + number),
            lambda: catalog.tags.put("a", "function", [name], {"k" + number: "v"}),
            lambda: catalog.tags.remove("a", "function", [name], None),
            lambda: catalog.restrict("a", name, choose.choice([None, "why"])),
        ]  # fmt: skip
        rarely = 2  # deleting the function: or there would hardly ever be one to change
        await choose.choices(steps, [1 if index == rarely else 12 for index in range(len(steps))])[0]()

    done = Counter[str]()
    busiest = 0
    for number in range(600):
        for entry in catalog.list("a"):
            kinds = (entry.aliases, entry.settings, entry.versions, entry.triggers)
            busiest = max(busiest, sum(map(bool, kinds)))
        if number % 60 == 0:
            assert everything(await load(store, tmp_path)) == everything(catalog)
        try:
            await step()
            done["done"] += 1
        except (NotFound, Conflict) as error:
            done[type(error).__name__] += 1
    assert done["done"] > 100, done
    assert busiest == 4, "the walk never made a function with all of them"
    again = await load(store, tmp_path)
    assert everything(again) == everything(catalog)


async def test_subscribers_hear_of_every_change_and_one_that_fails_disturbs_none(catalog: FunctionCatalog) -> None:
    heard: list[tuple[str, str]] = []

    def fail(_account: str, _name: str) -> None:
        raise RuntimeError("a bug")

    stop_failing = catalog.subscribe(fail)
    stop = catalog.subscribe(lambda account, name: heard.append((account, name)))
    await catalog.create("a", "f", config(), code())
    await catalog.update("a", "f", {"timeout": 9})
    await catalog.versions.publish("a", "f")
    await catalog.delete("a", "f")
    assert heard == [("a", "f")] * 4
    stop(), stop_failing()
    await catalog.create("a", "f", config(), code())
    assert len(heard) == 4


async def test_a_subscriber_sees_the_new_state(catalog: FunctionCatalog) -> None:
    seen: list[list[tuple[str, float]]] = []
    catalog.subscribe(
        lambda account, name: seen.append([(s.version, s.timeout_s) for s in catalog.specs(account, name)])
    )
    await catalog.create("a", "f", config(timeout=1), code())
    await catalog.versions.publish("a", "f")
    await catalog.update("a", "f", {"timeout": 2})
    await catalog.restrict("a", "f", "stop")
    await catalog.delete("a", "f")
    assert seen == [[("LATEST", 1)], [("LATEST", 1), ("1", 1)], [("LATEST", 2), ("1", 1)], [], []]


async def test_of_many_who_create_the_same_function_one_does(catalog: FunctionCatalog) -> None:
    results = await asyncio.gather(
        *(catalog.create("a", "f", config(), code(str(index))) for index in range(8)), return_exceptions=True
    )
    assert sum(isinstance(result, Conflict) for result in results) == 7


async def test_of_two_updates_at_once_one_is_told_to_try_again(catalog: FunctionCatalog) -> None:
    await catalog.create("a", "f", config(), code())
    results = await asyncio.gather(
        *(catalog.update("a", "f", {"timeout": n}, code(str(n))) for n in (5, 6)), return_exceptions=True
    )
    assert [type(result).__name__ for result in results].count("Conflict") == 1


async def test_versions_published_at_once_get_numbers_of_their_own(catalog: FunctionCatalog) -> None:
    await catalog.create("a", "f", config(), code())
    made = await asyncio.gather(*(catalog.versions.publish("a", "f") for _ in range(10)))
    assert sorted(record.version for record in made) == list(range(1, 11))


async def test_packages_stay_as_long_as_something_refers_to_them(catalog: FunctionCatalog) -> None:
    digests = {}
    for name in ("old", "new"):
        async with catalog.packages.adding_base64(code(name).zip_file or "") as package:
            digests[name] = package.digest
    await catalog.create("a", "f", config(), code("old"))
    await catalog.versions.publish("a", "f")
    await catalog.update("a", "f", {}, code("new"))

    async def stored() -> set[str]:
        await catalog.collect_garbage()
        return {name for name, digest in digests.items() if (catalog.packages.root / digest).is_dir()}

    assert await stored() == {"old", "new"}
    await catalog.versions.delete("a", "f", "1")
    await catalog.collect_garbage(frozenset({digests["old"]}))
    assert (catalog.packages.root / digests["old"]).is_dir(), "an instance has it mounted"
    assert await stored() == {"new"}
    await catalog.delete("a", "f")
    assert await stored() == set()


async def test_merged_layers_are_collected_with_their_last_function(catalog: FunctionCatalog) -> None:
    arns = []
    for name in ("one", "two"):
        async with catalog.packages.adding_base64(code(name).zip_file or "") as package:
            record = await catalog.layers.publish("a", name, package, description="", license="", runtimes=())
            arns.append(catalog.layers.arn(record))
    await catalog.create("a", "f", config(layers=arns), code())
    merged = catalog.packages.path(catalog.resolve("a", "f").layers)
    for name in ("one", "two"):
        await catalog.layers.delete("a", name, 1)
    await catalog.collect_garbage()
    assert (merged / "index.py").read_text() == "one"
    await catalog.update("a", "f", {"layers": [arns[1], arns[0]][:0]})
    await catalog.collect_garbage()
    assert not merged.exists()


async def test_nothing_is_kept_of_a_create_that_is_refused(store: Store, tmp_path: Path) -> None:
    def refuse(spec: FunctionSpec) -> None:
        raise InvalidArgument(f"no template {spec.template}")

    catalog = await load(store, tmp_path, admit=refuse)
    with pytest.raises(InvalidArgument, match="no template host"):
        await catalog.create("a", "f", config(), code())
    assert catalog.names() == []
    assert await store.functions.list_all() == []
    assert list(catalog.packages.root.iterdir()) == []


async def test_null_takes_a_field_away(catalog: FunctionCatalog) -> None:
    await catalog.create("a", "f", config(timeout=9, description="d"), code())
    await catalog.update("a", "f", {"timeout": None})
    assert catalog.resolve("a", "f").timeout_s == 3.0
    assert catalog.snapshot("a", "f").config.description == "d"


async def test_an_update_that_can_not_be_changes_nothing(catalog: FunctionCatalog) -> None:
    await catalog.create("a", "f", config(memorySize=1024, cpu=1.0), code())
    before = catalog.resolve("a", "f")
    for changes in ({"cpu": 2.0}, {"runtime": "custom-container"}, {"tags": []}, {"layers": ["x"]}):
        with pytest.raises(InvalidArgument):
            await catalog.update("a", "f", changes, code("new"))
    assert catalog.resolve("a", "f") == before


async def test_a_container_needs_no_package_and_all_else_does(catalog: FunctionCatalog) -> None:
    image = config(runtime="custom-container", customContainerConfig={"image": "debian"})
    await catalog.create("a", "c", image)
    assert catalog.resolve("a", "c").code == ""
    with pytest.raises(InvalidArgument, match="code"):
        await catalog.create("a", "f", config())


async def test_resolving_hands_out_the_same_spec(catalog: FunctionCatalog) -> None:
    await catalog.create("a", "f", config(), code())
    await catalog.versions.publish("a", "f")
    assert catalog.resolve("a", "f", "LATEST") is catalog.resolve("a", "f") is catalog.resolve("a", "f", "")
    assert catalog.resolve("a", "f", "1") is not catalog.resolve("a", "f")
    for qualifier in ("2", "none", "01", "../1"):
        with pytest.raises(NotFound):
            catalog.resolve("a", "f", qualifier)
    with pytest.raises(NotFound):
        catalog.resolve("b", "f")


async def test_a_stored_function_that_can_not_be_read_is_named(store: Store, tmp_path: Path) -> None:
    await store.functions.put(
        FunctionRecord(account="a", name="f", id="i", config={"runtime": "cobol"}, created=1, modified=1)
    )
    with pytest.raises(Unavailable, match="a/f can't be read: runtime"):
        await load(store, tmp_path)
