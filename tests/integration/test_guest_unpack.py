"""What a COPY puts where, as the room's root does it."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from pathlib import Path

import pytest

from roost.guest.unpack import fixed_part, main

FILES = {"src/a.py": "a", "src/deep/b.py": "b", "one.txt": "one", "src/link": "-> a.py"}


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return pack(tmp_path / "archive", FILES)


def pack(path: Path, files: dict[str, str]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.uid, member.mode, member.size = 4242, 0o664, len(text)
            if text.startswith("-> "):
                member.type, member.linkname, member.size = tarfile.SYMTYPE, text[3:], 0
            tar.addfile(member, io.BytesIO(text.encode()))
    return path


def tree(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): f"-> {path.readlink()}" if path.is_symlink() else path.read_text()
        for path in sorted(root.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        ("one.txt", "new/name.txt", {"new/name.txt": "one"}),
        ("one.txt", "new/", {"new/one.txt": "one"}),
        ("one.txt", "there", {"there/one.txt": "one"}),
        ("src", "new", {"new/a.py": "a", "new/deep/b.py": "b", "new/link": "-> a.py"}),
        ("src/", "there/", {"there/a.py": "a", "there/deep/b.py": "b", "there/link": "-> a.py"}),
        ("src/*.py", "new", {"new/a.py": "a", "new/deep/b.py": "b", "new/link": "-> a.py"}),
        ("src/deep/b.py", "c.py", {"c.py": "b"}),
        ("src/link", "linked", {"linked": "-> a.py"}),
        (".", "new", {f"new/{name}": text for name, text in FILES.items()}),
    ],
)
def test_entries_come_to_their_place(
    archive: Path, tmp_path: Path, source: str, target: str, expected: dict[str, str]
) -> None:
    root = tmp_path / "root"
    (root / "there").mkdir(parents=True)
    assert main([str(archive), source, f"{root}/{target}", "0:0", ""]) == 0
    assert tree(root) == expected


def test_folders_are_merged_and_files_replaced(archive: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "deep").mkdir(parents=True)
    (root / "deep/old.py").write_text("old")
    (root / "a.py").write_text("old")
    (root / "link").symlink_to("deep/old.py")
    assert main([str(archive), "src", str(root), "0:0", ""]) == 0
    assert tree(root) == {"a.py": "a", "deep/b.py": "b", "deep/old.py": "old", "link": "-> a.py"}


def test_owner_and_mode_go_for_everything(archive: Path, tmp_path: Path) -> None:
    target = tmp_path / "app" / "new"
    assert main([str(archive), "src", str(target), "1001:7", "0750"]) == 0
    for path in (target.parent, target, target / "a.py", target / "deep", target / "deep/b.py", target / "link"):
        about = path.lstat()
        assert (about.st_uid, about.st_gid) == (1001, 7)
    assert stat.S_IMODE((target / "deep/b.py").stat().st_mode) == 0o750
    assert main([str(archive), "one.txt", str(target / "x"), "root:", ""]) == 0
    about = (target / "x").stat()
    assert (about.st_uid, about.st_gid, stat.S_IMODE(about.st_mode)) == (0, 0, 0o664)


@pytest.mark.parametrize("name", ["../out", "/out", "a/../../out"])
def test_names_that_lead_out_are_refused(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    archive = pack(tmp_path / "archive", {name: "x"})
    assert main([str(archive), ".", str(tmp_path / "new"), "0:0", ""]) == 1
    assert "leads out" in capsys.readouterr().err and not (tmp_path / "new").exists()


def test_what_is_wrong_is_told(archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(archive), "missing", str(tmp_path / "new"), "0:0", ""]) == 1
    assert main([str(archive), "src", str(tmp_path / "new"), "nobody-here:", ""]) == 1
    archive.write_bytes(archive.read_bytes()[:60])
    assert main([str(archive), "src", str(tmp_path / "new"), "0:0", ""]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and all(line.startswith("COPY ") for line in lines)
    assert not [name for name in os.listdir("/tmp") if name.startswith(".roost-copy-")]


@pytest.mark.parametrize(
    ("source", "fixed"), [("a/b", "a/b"), ("a/*/b", "a"), ("*.py", "."), ("./a/", "a"), (".", "."), ("a?/b", ".")]
)
def test_the_part_without_wildcards(source: str, fixed: str) -> None:
    assert fixed_part(source) == fixed
