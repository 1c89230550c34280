"""Packages: what is kept of a good archive, and that nothing comes of a hostile one."""

from __future__ import annotations

import base64
import contextlib
import io
import os
import random
import stat
import struct
import tempfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roost.functions.checksum import crc64, portable_update
from roost.functions.packages import PackageLimits, PackageStore, merged_digest, unpack
from roost.model.errors import InvalidArgument, NotFound, PayloadTooLarge, RoostError

SMALL = PackageLimits(compressed=1 << 20, unpacked=1 << 20, entries=100)


def archive(*entries: tuple[str, bytes] | tuple[str, bytes, int], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """Entries: name, content, and if given the Unix mode."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as made:
        for name, content, *mode in entries:
            info = zipfile.ZipInfo(name)
            info.compress_type = method
            info.create_system = 3
            info.external_attr = (mode[0] if mode else stat.S_IFREG | 0o644) << 16
            made.writestr(info, content)
    return out.getvalue()


def link(name: str, target: str) -> tuple[str, bytes, int]:
    return name, target.encode(), stat.S_IFLNK | 0o777


@pytest.fixture
def store(tmp_path: Path) -> PackageStore:
    found = PackageStore(tmp_path / "code", SMALL)
    found.open()
    return found


async def add(store: PackageStore, data: bytes) -> str:
    async with store.adding(data) as package:
        return package.digest


def left_behind(store: PackageStore) -> list[str]:
    return sorted(entry.name for entry in store.root.iterdir())


async def test_files_folders_links_and_modes_are_kept(store: PackageStore) -> None:
    data = archive(
        ("app/", b"", stat.S_IFDIR | 0o700),
        ("app/run.sh", b"#!/bin/sh\n", stat.S_IFREG | 0o750),
        ("app/secret", b"x", stat.S_IFREG | 0o600),
        ("./deep//er/text.txt", "grüße".encode()),
        ("ünïcode.txt", b"u"),
        link("app/current", "../deep/er"),
    )
    root = store.path(await add(store, data))
    assert (root / "deep/er/text.txt").read_text() == "grüße"
    assert (root / "ünïcode.txt").read_bytes() == b"u"
    assert (root / "app/current").readlink() == Path("../deep/er")
    modes = {name: stat.S_IMODE((root / name).stat().st_mode) for name in ("app", "app/run.sh", "app/secret", "deep")}
    assert modes == {"app": 0o755, "app/run.sh": 0o555, "app/secret": 0o444, "deep": 0o755}
    assert {entry.lstat().st_uid for entry in root.rglob("*")} == {os.geteuid()}


async def test_an_archive_is_stored_once_and_comes_back_as_it_was(store: PackageStore) -> None:
    data = archive(("a", b"1"))
    async with store.adding(data) as one, store.adding(data) as two:
        assert one == two
    assert one.size == len(data)
    assert one.checksum == str(crc64([data]))
    assert store.archive(one.digest).read_bytes() == data
    assert left_behind(store) == [one.digest, one.digest + ".zip"]


async def test_a_file_is_taken_like_bytes(store: PackageStore, tmp_path: Path) -> None:
    data = archive(("a", b"1"))
    (tmp_path / "p.zip").write_bytes(data)
    async with store.adding(tmp_path / "p.zip") as package:
        assert package.digest == await add(store, data)


async def test_bootstrap_from_an_archive_without_modes_can_be_run(store: PackageStore) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as made:
        for name in ("bootstrap", "other"):
            info = zipfile.ZipInfo(name)
            info.create_system = 0
            info.external_attr = 0x20
            made.writestr(info, b"#!/bin/sh\n")
    root = store.path(await add(store, out.getvalue()))
    assert os.access(root / "bootstrap", os.X_OK)
    assert not (root / "other").stat().st_mode & 0o111


HOSTILE = {
    "a name with ..": archive(("a/../../evil", b"x")),
    "an absolute name": archive(("/etc/evil", b"x")),
    "a drive": archive(("C:evil", b"x")),
    "a backslash": archive(("a\\..\\evil", b"x")),
    "a newline in a name": archive(("a\nb", b"x")),
    "a link up": archive(link("up", "..")),
    "a link up from below": archive(link("a/b/up", "../../../x")),
    "an absolute link": archive(link("abs", "/etc/passwd")),
    "an empty link": archive(link("empty", "")),
    "a link through a link": archive(("d/e/f", b"x"), link("d/l", "e/.."), link("out", "d/l/../..")),
    "a link through a shortcut": archive(("x", b""), link("deep/er/here", "../.."), link("out", "deep/er/here/..")),
    "links in a circle": archive(link("a", "b"), link("b", "a")),
    "a file below a link": archive(("d/f", b"x"), link("l", "d"), ("l/evil", b"x")),
    "a file below a file": archive(("f", b"x"), ("f/g", b"x")),
    "a file where a folder is": archive(("f/g", b"x"), ("f", b"x")),
    "a duplicate": archive(("f", b"1"), ("./f", b"2")),
    "a device": archive(("null", b"", stat.S_IFCHR | 0o666)),
    "a pipe": archive(("pipe", b"", stat.S_IFIFO | 0o666)),
    "a socket": archive(("sock", b"", stat.S_IFSOCK | 0o666)),
    "a name too long": archive(("x" * 300, b"")),
    "too deep": archive(("d/" * 200 + "f", b"")),
    "another method": archive(("f", b"x"), method=zipfile.ZIP_BZIP2),
    "nothing at all": b"",
    "no archive": b"PK but not really",
    "half an archive": archive(("f", os.urandom(5000)))[:2500],
    "the end of an archive": archive(("f", os.urandom(5000)))[-100:],
}


def patched(data: bytes, signature: bytes, offset: int, value: bytes) -> bytes:
    """`data` with the field at `offset` of every record of this kind overwritten."""
    changed = bytearray(data)
    at = changed.find(signature)
    while at >= 0:
        changed[at + offset : at + offset + len(value)] = value
        at = changed.find(signature, at + 4)
    return bytes(changed)


LOCAL, CENTRAL, END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
PLAIN = archive(("plain", b"text " * 1000))
HOSTILE |= {
    "an encrypted one": patched(patched(PLAIN, LOCAL, 6, b"\x01\x00"), CENTRAL, 8, b"\x01\x00"),
    "a lie about the size": patched(patched(PLAIN, LOCAL, 22, b"\x01\0\0\0"), CENTRAL, 24, b"\x01\0\0\0"),
    "a wrong checksum": patched(patched(PLAIN, LOCAL, 14, b"abcd"), CENTRAL, 16, b"abcd"),
    "a damaged directory": patched(PLAIN, CENTRAL, 0, b"PK\x01\x09"),
    "a directory of another size": patched(PLAIN, END, 12, struct.pack("<L", 1 << 30)),
    "a name that is no UTF-8": patched(
        patched(PLAIN.replace(b"plain", b"pl\xff\xfen"), LOCAL, 6, b"\x00\x08"), CENTRAL, 8, b"\x00\x08"
    ),
    "a NUL in a name": PLAIN.replace(b"plain", b"pl\0in"),
}


@pytest.mark.parametrize("what", HOSTILE)
async def test_hostile_archives_are_refused_and_leave_nothing(store: PackageStore, what: str) -> None:
    with pytest.raises((InvalidArgument, PayloadTooLarge)) as caught:
        await add(store, HOSTILE[what])
    assert caught.value.message
    assert left_behind(store) == []


async def test_a_bomb_is_stopped_by_what_really_comes_out(store: PackageStore) -> None:
    bomb = archive(*[(f"f{index}", bytes(300_000)) for index in range(4)])
    assert len(bomb) < 5000
    with pytest.raises(PayloadTooLarge, match="unpacks to more than 1 MB"):
        await add(store, bomb)
    assert left_behind(store) == []


async def test_a_bomb_that_lies_about_its_size_is_stopped_too(store: PackageStore) -> None:
    small = struct.pack("<L", 10)
    bomb = archive(*[(f"f{index}", bytes(3_000_000)) for index in range(2)])
    with pytest.raises((PayloadTooLarge, InvalidArgument)):
        await add(store, patched(patched(bomb, LOCAL, 22, small), CENTRAL, 24, small))
    assert left_behind(store) == []


async def test_too_many_entries_are_refused(store: PackageStore) -> None:
    with pytest.raises(PayloadTooLarge, match="100 entries"):
        await add(store, archive(*[(f"f{index}", b"") for index in range(101)]))
    # The count at the end of the archive is not believed.
    many = archive(*[(f"f{index}", b"") for index in range(101)])
    with pytest.raises(PayloadTooLarge, match="100 entries"):
        await add(store, patched(many, END, 8, b"\x01\0\x01\0"))
    with pytest.raises(PayloadTooLarge, match="100 entries"):
        await add(store, archive(*[("/".join(["d"] * 90).replace("d", f"d{index}"), b"") for index in range(5)]))
    assert left_behind(store) == []


async def test_a_large_archive_is_refused(store: PackageStore, tmp_path: Path) -> None:
    data = random.Random(1).randbytes((1 << 20) + 1)
    with pytest.raises(PayloadTooLarge, match="larger than 1 MB"):
        await add(store, data)
    with pytest.raises(PayloadTooLarge, match="larger than 1 MB"):
        async with store.adding_base64(base64.b64encode(data).decode()):
            pass


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_whatever_the_bytes_only_known_errors_come_out(data: st.DataObject) -> None:
    """Any damage to a good archive either still unpacks inside the folder or is refused properly."""
    good = archive(("a/b", b"hello" * 50), link("l", "a/b"), ("c", b"", stat.S_IFREG | 0o755))
    changed = bytearray(good)
    for _ in range(data.draw(st.integers(1, 8))):
        changed[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "outer" / "files"
        root.parent.mkdir()
        with contextlib.suppress(RoostError):
            unpack(io.BytesIO(bytes(changed)), root, SMALL)
        assert [entry.name for entry in root.parent.iterdir()] in ([], ["files"])
        for entry in root.rglob("*"):
            assert entry.is_symlink() or entry.resolve().is_relative_to(root)


@pytest.mark.parametrize("sources", [2, 3])
async def test_merging_lets_the_first_win(store: PackageStore, sources: int) -> None:
    parts = [
        archive(("python/a", b"1"), ("x", b"file"), link("l", "python")),
        archive(("python/a", b"2"), ("python/b", b"2"), ("x/inner", b"2"), ("l/c", b"2")),
        archive(("python/b", b"3"), ("python/c", b"3"), ("tool", b"3", stat.S_IFREG | 0o755)),
    ][:sources]
    digests = [await add(store, part) for part in parts]
    async with store.merging(digests) as merged:
        root = store.path(merged)
    assert merged == merged_digest(digests) != merged_digest(digests[::-1])
    assert (root / "python/a").read_bytes() == b"1"
    assert (root / "python/b").read_bytes() == b"2"
    assert (root / "x").read_bytes() == b"file"
    assert (root / "l").is_symlink()
    if sources == 3:
        assert (root / "python/c").read_bytes() == b"3"
        assert os.access(root / "tool", os.X_OK)
    # The sources are as they were, and go without taking the merged files with them.
    await store.collect(frozenset({merged}))
    assert (root / "python/b").read_bytes() == b"2"


async def test_merging_one_or_none(store: PackageStore) -> None:
    digest = await add(store, archive(("a", b"1")))
    async with store.merging([digest]) as one, store.merging([]) as none:
        assert (one, none) == (digest, "")


async def test_garbage_is_collected_but_not_what_is_kept_or_being_added(store: PackageStore) -> None:
    kept, gone = await add(store, archive(("a", b"1"))), await add(store, archive(("a", b"2")))
    async with store.adding(archive(("a", b"3"))) as held:
        assert await store.collect(frozenset({kept})) == 1
        assert store.path(held.digest).is_dir()
    with pytest.raises(NotFound):
        store.path(gone)
    assert store.path(kept).is_dir()
    assert await store.collect(frozenset(), limit=1) == 1
    assert len(left_behind(store)) == 2


async def test_what_a_crash_left_half_written_is_removed_at_start(store: PackageStore) -> None:
    digest = await add(store, archive(("a", b"1")))
    (store.root / ".new-abc" / "files").mkdir(parents=True)
    (store.root / ".new-abc" / "files" / "f").write_text("x")
    store.open()
    assert left_behind(store) == [digest, digest + ".zip"]


async def test_an_archive_whose_folder_is_gone_is_unpacked_again(store: PackageStore) -> None:
    data = archive(("a", b"1"))
    digest = await add(store, data)
    (store.root / digest).rename(store.root / ".new-elsewhere")
    assert await add(store, data) == digest
    assert (store.path(digest) / "a").read_bytes() == b"1"


@pytest.mark.parametrize("name", ["", "..", "nothing", "../code"])
def test_a_digest_that_is_none_is_not_found(store: PackageStore, name: str) -> None:
    with pytest.raises(NotFound):
        store.archive(name)
    if name in {"", "nothing"}:
        with pytest.raises(NotFound):
            store.path(name)


@pytest.mark.parametrize(
    "text", ["no base64!", "AAA", "AA==A", "AAAA=", "AAA\n", "Ü===", "A" * (1 << 18) + "*" * 4, "AAA=" * (1 << 17)]
)
async def test_base64_that_is_none_is_refused(store: PackageStore, text: str) -> None:
    with pytest.raises(InvalidArgument, match="base64"):
        async with store.adding_base64(text):
            pass


async def test_long_base64_is_decoded_in_steps_to_the_same_bytes(store: PackageStore) -> None:
    data = archive(*[(f"f{size}", random.Random(size).randbytes(size)) for size in (300_001, 200_000, 7)])
    async with store.adding_base64(base64.b64encode(data).decode()) as package:
        assert store.archive(package.digest).read_bytes() == data


def test_the_checksum_is_crc64_xz() -> None:
    assert crc64([b"123456789"]) == 0x995DC9BBDF1939FA
    assert crc64([b"1234", b"", b"56789"]) == 0x995DC9BBDF1939FA
    assert crc64([]) == 0


@given(st.lists(st.binary(max_size=300), max_size=4))
def test_the_portable_checksum_agrees(chunks: list[bytes]) -> None:
    value = 0
    for chunk in chunks:
        value = portable_update(chunk, value)
    assert value == crc64(chunks)
