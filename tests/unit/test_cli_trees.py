"""What of an archive is taken."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.sdk.errors import Failed
from roost.sdk.trees import Unpacker, leads_inside, pack, parts_of

PART = st.sampled_from(["a", "b", "..", ".", ""])


@given(place=st.lists(st.sampled_from("ab"), min_size=1, max_size=4), target=st.lists(PART, max_size=6).map("/".join))
def test_a_link_that_leads_inside_does(place: list[str], target: str) -> None:
    """Without other links the way can be followed part by part."""
    here = place[:-1]
    inside = bool(target) and not target.startswith("/")
    for part in target.split("/"):
        if part == ".." and not here:
            inside = False
            break
        if part == "..":
            here = here[:-1]
        elif part not in ("", "."):
            here = [*here, part]
    assert inside or not leads_inside(tuple(place), target)


def test_a_link_through_another_one_may_not_lead_upwards() -> None:
    assert leads_inside(("a", "b", "c"), "../../x/y")
    assert not leads_inside(("a", "b", "c"), "../../../x")
    assert not leads_inside(("a", "b"), "link/../..")
    assert not leads_inside(("a", "b"), "/etc/passwd")
    assert not leads_inside(("a",), "")


@pytest.mark.parametrize(("name", "parts"), [("./a//b/", ["a", "b"]), (".", []), ("/a", None), ("a/../b", None)])
def test_names(name: str, parts: list[str] | None) -> None:
    assert parts_of(name) == parts


def archive(*members: tuple[str, bytes, str]) -> io.BytesIO:
    buffer = io.BytesIO()
    with tarfile.open(mode="w", fileobj=buffer) as file:
        for name, kind, link in members:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, link
            member.size = 3 if kind == tarfile.REGTYPE else 0
            file.addfile(member, io.BytesIO(b"new"))
    return io.BytesIO(buffer.getvalue())


def test_a_link_of_an_earlier_copy_leads_nobody_out(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("old")
    top = tmp_path / "top"
    top.mkdir()
    (top / "way").symlink_to(outside)
    (top / "file").symlink_to(outside / "file")
    unpacker = Unpacker(top)
    unpacker.unpack(
        archive(("way/file", tarfile.REGTYPE, ""), ("file", tarfile.REGTYPE, ""), ("way", tarfile.DIRTYPE, ""))
    )
    assert unpacker.skipped == ["way/file", "way"]
    assert (outside / "file").read_text() == "old"
    assert (top / "file").read_text() == "new"
    assert not (top / "file").is_symlink()


def test_hard_links_are_copies_and_bits_are_harmless(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(mode="w", fileobj=buffer) as file:
        member = tarfile.TarInfo("set-uid")
        member.mode, member.size = 0o6777, 3
        file.addfile(member, io.BytesIO(b"abc"))
        second = tarfile.TarInfo("second")
        second.type, second.linkname = tarfile.LNKTYPE, "./set-uid"
        file.addfile(second)
    Unpacker(tmp_path).unpack(io.BytesIO(buffer.getvalue()))
    assert (tmp_path / "set-uid").stat().st_mode & 0o7777 == 0o755
    assert (tmp_path / "second").read_bytes() == b"abc"
    assert (tmp_path / "second").stat().st_nlink == 1


def test_a_header_without_a_bound_and_a_broken_archive_are_refused(tmp_path: Path) -> None:
    huge = tarfile.TarInfo("pax")
    huge.type, huge.size = tarfile.XHDTYPE, 1 << 30
    good = archive(("good", tarfile.REGTYPE, "")).getvalue()[:1024]
    for data in (huge.tobuf() + bytes(4096), good + huge.tobuf() + bytes(4096), b"not an archive" * 100, good[:700]):
        with pytest.raises(Failed, match="broken"):
            Unpacker(tmp_path).unpack(io.BytesIO(data))


def test_what_is_packed_is_unpacked(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "a" / "b").mkdir(parents=True)
    (source / "a" / "b" / "c").write_text("x")
    (source / "a" / "up").symlink_to("../a/b")
    os.mkfifo(source / "queue")
    stream = io.BytesIO()
    pack(source, stream)
    unpacker = Unpacker(tmp_path / "target")
    unpacker.unpack(io.BytesIO(stream.getvalue()))
    assert unpacker.skipped == []
    assert (tmp_path / "target" / "a" / "up" / "c").read_text() == "x"
    assert not (tmp_path / "target" / "queue").exists()
