"""Root file systems that try to get out of their directory, or to fill the machine."""

import contextlib
import gzip
import io
import os
import random
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from roost.isolation.templates.oci import _Gunzip
from roost.isolation.templates.rootfs import BuildLimits, Progress, RootWriter
from roost.isolation.templates.tree import copy_directory, extract_tar
from roost.model.errors import InvalidArgument, RoostError

TYPES = {
    "dir": tarfile.DIRTYPE,
    "file": tarfile.REGTYPE,
    "link": tarfile.SYMTYPE,
    "hard": tarfile.LNKTYPE,
    "char": tarfile.CHRTYPE,
    "block": tarfile.BLKTYPE,
    "fifo": tarfile.FIFOTYPE,
}


def archive(*members: tuple[str, str, str], **attributes: int) -> bytes:
    """Members as (name, type, content or link target)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, kind, content in members:
            member = tarfile.TarInfo(name)
            member.type = TYPES[kind]
            member.mode = 0o755
            for key, value in attributes.items():
                setattr(member, key, value)
            if kind == "file":
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content.encode()))
            else:
                member.linkname = content
                tar.addfile(member)
    return out.getvalue()


@pytest.fixture
def place(tmp_path) -> Path:
    """The directory to unpack into, with something beside it that must stay as it is."""
    (tmp_path / "root").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "victim").write_text("untouched")
    return tmp_path


def unpack(place: Path, content: bytes, *, limits: BuildLimits | None = None, whiteouts: bool = False) -> Progress:
    progress = Progress(report=lambda _: None)
    with RootWriter(place / "root", limits or BuildLimits(), progress) as root:
        extract_tar(io.BytesIO(content), root, limit=1 << 30, whiteouts=whiteouts)
        root.complete()
    return progress


def outside(place: Path) -> dict[str, str]:
    return {str(p.relative_to(place)): p.read_text() for p in place.rglob("*") if p.is_file() and "root" not in p.parts}


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/etc/evil", "a/..", "x" * 300, "/".join("d" * 300)])
@pytest.mark.parametrize("kind", ["file", "dir", "link", "fifo"])
def test_a_name_that_leaves_the_root_is_refused_by_name(place, name, kind):
    with pytest.raises(InvalidArgument) as refused:
        unpack(place, archive((name, kind, "target")))
    assert refused.value.message.startswith(name[:200].rstrip("/"))
    assert outside(place) == {"outside/victim": "untouched"}


@pytest.mark.parametrize("target", ["../outside", "../../outside", "{place}/outside"])
def test_what_goes_through_a_link_stays_inside(place, target):
    content = archive(("way", "link", target.format(place=place)), ("way/victim", "file", "overwritten"))
    with pytest.raises(InvalidArgument, match="way/victim"):
        unpack(place, content)
    assert outside(place) == {"outside/victim": "untouched"}


def test_an_absolute_link_leads_to_the_templates_own_folder(place):
    unpack(place, archive(("etc", "dir", ""), ("way", "link", "/etc"), ("way/passwd", "file", "the template's")))
    assert (place / "root/etc/passwd").read_text() == "the template's"


def test_a_link_loop_is_refused(place):
    with pytest.raises(InvalidArgument, match="a/x"):
        unpack(place, archive(("a", "link", "b"), ("b", "link", "a"), ("a/x", "file", "")))


@pytest.mark.parametrize("target", ["../outside/victim", "/etc/passwd", "absent", "way/victim", "folder", ""])
def test_a_hard_link_to_anything_but_a_file_of_the_archive_is_refused(place, target):
    content = archive(("folder", "dir", ""), ("way", "link", "../outside"), ("hard", "hard", target))
    with pytest.raises(InvalidArgument, match="hard"):
        unpack(place, content)
    assert outside(place) == {"outside/victim": "untouched"}
    assert (place / "outside/victim").stat().st_nlink == 1


def test_a_hard_link_to_a_link_does_not_follow_it(place):
    unpack(place, archive(("way", "link", "../outside/victim"), ("hard", "hard", "way")))
    assert (place / "root/hard").is_symlink()
    assert (place / "outside/victim").stat().st_nlink == 1


@pytest.mark.parametrize(
    "mark", [".wh.outside", ".wh..", ".wh...", ".wh.", "../.wh.outside", "way/.wh.victim", "way/.wh..wh..opq"]
)
def test_a_whiteout_removes_nothing_outside(place, mark):
    content = archive(("way", "link", "../outside"), (mark, "file", ""))
    with contextlib.suppress(InvalidArgument):
        unpack(place, content, whiteouts=True)
    assert outside(place) == {"outside/victim": "untouched"}


def test_nodes_pipes_and_sockets_are_left_out(place):
    content = archive(("mem", "char", ""), ("disk", "block", ""), ("pipe", "fifo", ""), ("kept", "file", "x"))
    assert unpack(place, content).skipped == 3
    assert (place / "root/kept").exists()
    assert not any((place / "root" / name).exists() for name in ("mem", "disk", "pipe"))


def test_attributes_that_could_matter_to_the_kernel_are_not_kept(place):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        member = tarfile.TarInfo("f")
        member.pax_headers = {"SCHILY.xattr.trusted.overlay.opaque": "y", "SCHILY.xattr.user.overlay.redirect": "/etc"}
        tar.addfile(member)
    unpack(place, out.getvalue())
    assert os.listxattr(place / "root/f") == []


@pytest.mark.parametrize(("key", "value"), [("uid", 65536), ("gid", 1 << 31), ("uid", -1)])
def test_owners_that_no_room_has_are_refused(place, key, value):
    with pytest.raises(InvalidArgument, match="f: its owner"):
        unpack(place, archive(("f", "file", ""), **{key: value}))


def test_too_many_bytes_and_too_many_entries_are_refused_by_name(place):
    bomb = gzip.compress(archive(("small", "file", "x"), ("big", "file", "\0" * (8 << 20))))
    assert len(bomb) < 50_000
    progress = Progress(report=lambda _: None)
    with (
        RootWriter(place / "root", BuildLimits(bytes=1 << 20), progress) as root,
        pytest.raises(InvalidArgument, match="big"),
    ):
        extract_tar(_Gunzip(io.BytesIO(bomb)), root, limit=1 << 30)
    with pytest.raises(InvalidArgument, match=r"n3: .* 3 entries"):
        unpack(place, archive(*((f"n{i}", "file", "") for i in range(9))), limits=BuildLimits(entries=3))


def test_a_stream_without_end_is_refused_even_if_nothing_is_written(place):
    class Endless:
        def __init__(self) -> None:
            self.header = archive(("skipped", "fifo", ""))[:512]

        def read(self, size: int, /) -> bytes:
            return (self.header * (size // 512 + 1))[:size]

    with (
        RootWriter(place / "root", BuildLimits(), Progress(report=lambda _: None)) as root,
        pytest.raises(InvalidArgument, match="limit"),
    ):
        extract_tar(Endless(), root, limit=1 << 20)


def test_a_header_that_would_fill_the_memory_is_refused(place):
    header = tarfile.TarInfo("pax")
    header.type = tarfile.XHDTYPE
    header.size = 1 << 40
    with pytest.raises(InvalidArgument, match="header of"):
        unpack(place, header.tobuf(format=tarfile.GNU_FORMAT) + b"\0" * 4096)


def test_a_sparse_file_counts_with_its_full_size(place):
    source = place / "sparse"
    with source.open("wb") as file:
        file.truncate(1 << 40)
    with (
        RootWriter(place / "root", BuildLimits(bytes=4 << 20), Progress(report=lambda _: None)) as root,
        pytest.raises(InvalidArgument, match="sparse"),
    ):
        (place / "tree").mkdir()
        source.rename(place / "tree/sparse")
        copy_directory(place / "tree", root)


def test_a_name_is_shown_without_control_characters(place):
    with pytest.raises(InvalidArgument) as refused:
        unpack(place, archive(("../\x1b[2Jevil\n", "file", "")))
    assert refused.value.message.startswith("../?[2Jevil?: ")


NAMES = st.lists(st.sampled_from(["a", "b", "c", "..", ".", "", ".wh.a", ".wh..wh..opq"]), min_size=1, max_size=4)
MEMBERS = st.tuples(NAMES.map("/".join), st.sampled_from(sorted(TYPES)), NAMES.map("/".join))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
@given(members=st.lists(MEMBERS, max_size=12), climb=st.sampled_from(["", "../outside/", "/"]))
def test_no_sequence_of_members_changes_anything_outside(tmp_path_factory, members, climb):
    place = tmp_path_factory.mktemp("hostile")
    (place / "root").mkdir()
    (place / "outside").mkdir()
    (place / "outside/victim").write_text("untouched")
    content = archive(*((n, k, climb + c if k == "link" else c) for n, k, c in members))
    with contextlib.suppress(RoostError):
        unpack(place, content, whiteouts=True)
    assert outside(place) == {"outside/victim": "untouched"}
    assert sorted(p.name for p in place.iterdir()) == ["outside", "root"]
    assert list((place / "outside").iterdir()) == [place / "outside/victim"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
@given(seed=st.integers(0, 1 << 30), flips=st.integers(1, 30))
def test_a_damaged_archive_is_the_callers_fault(tmp_path_factory, seed, flips):
    place = tmp_path_factory.mktemp("damaged")
    (place / "root").mkdir()
    content = bytearray(archive(("a", "dir", ""), ("a/f", "file", "x" * 900), ("l", "link", "a"), ("h", "hard", "a/f")))
    chance = random.Random(seed)
    for _ in range(flips):
        content[chance.randrange(len(content))] = chance.randrange(256)
    try:
        unpack(place, bytes(content[: chance.randrange(len(content))]))
    except InvalidArgument as error:
        assert error.message
