"""Packing: the same contents give the same bytes; what does not belong stays out."""

import io
import os
import zipfile
from pathlib import Path

import pytest

from roost.sdk import package
from roost.sdk.errors import UsageError


def tree(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return root


def packed(directory: Path, vendored: Path | None = None) -> bytes:
    return package.build(package.collect(directory, vendored))


def names_in(content: bytes) -> list[str]:
    return zipfile.ZipFile(io.BytesIO(content)).namelist()


def test_same_contents_same_bytes(tmp_path: Path) -> None:
    one = tree(tmp_path / "one", "b.py", "a.py", "pkg/c.py")
    two = tree(tmp_path / "two", "pkg/c.py", "a.py", "b.py")
    os.utime(two / "a.py", (1, 1))
    (one / "a.py").chmod(0o600)
    assert packed(one) == packed(two)
    (two / "a.py").write_text("changed")
    assert packed(one) != packed(two)


def test_digest_changes_with_names_modes_and_contents(tmp_path: Path) -> None:
    one = tree(tmp_path / "one", "a.py", "b.py")
    first = package.digest(package.collect(one))
    assert package.digest(package.collect(tree(tmp_path / "two", "b.py", "a.py"))) == first
    seen = {first}
    (one / "a.py").chmod(0o755)
    seen.add(package.digest(package.collect(one)))
    (one / "a.py").write_text("more")
    seen.add(package.digest(package.collect(one)))
    (one / "b.py").rename(one / "c.py")
    seen.add(package.digest(package.collect(one)))
    assert len(seen) == 4


def test_ignored_files_stay_out(tmp_path: Path) -> None:
    tree(tmp_path, "a.py", ".git/config", "x/__pycache__/a.pyc", "x/a.pyc", "x/keep.txt", "data/big.bin", "secret.env")
    tree(tmp_path, "deep/data/kept.bin", "log", "logs/log/inner")
    (tmp_path / ".roostignore").write_text("# comment\n\n/data\n*.env\nlog/\n")
    assert names_in(packed(tmp_path)) == ["a.py", "deep/data/kept.bin", "log", "x/keep.txt"]


def test_executable_stays_executable(tmp_path: Path) -> None:
    tree(tmp_path, "bootstrap", "a.py")
    (tmp_path / "bootstrap").chmod(0o755)
    infos = {one.filename: one for one in zipfile.ZipFile(io.BytesIO(packed(tmp_path))).infolist()}
    assert infos["bootstrap"].external_attr >> 16 == 0o100755
    assert infos["a.py"].external_attr >> 16 == 0o100644


def test_own_file_wins_over_a_vendored_one(tmp_path: Path) -> None:
    own = tree(tmp_path / "own", "six.py")
    vendored = tree(tmp_path / "vendored", "six.py", "other.py")
    (vendored / "six.py").write_text("theirs")
    archive = zipfile.ZipFile(io.BytesIO(packed(own, vendored)))
    assert archive.namelist() == ["other.py", "six.py"]
    assert archive.read("six.py") == b"six.py"


def test_links(tmp_path: Path) -> None:
    inside = tree(tmp_path / "inside", "a.py")
    (inside / "b.py").symlink_to("a.py")
    assert zipfile.ZipFile(io.BytesIO(packed(inside))).read("b.py") == b"a.py"
    (inside / "c.py").symlink_to("/etc/hostname")
    with pytest.raises(UsageError, match=r"c\.py"):
        packed(inside)
    (inside / "c.py").unlink()
    (inside / "folder").symlink_to("/etc")
    with pytest.raises(UsageError, match="folder"):
        packed(inside)


def test_a_folder_that_no_server_takes_is_refused_before_it_is_read(tmp_path: Path) -> None:
    tree(tmp_path, "a.py")
    with (tmp_path / "weights.bin").open("wb") as sparse:
        sparse.truncate(package.MAX_BYTES)
    with pytest.raises(UsageError, match=r"weights\.bin \(500 MB\)"):
        packed(tmp_path)
    (tmp_path / ".roostignore").write_text("*.bin\n")
    assert names_in(packed(tmp_path)) == ["a.py"]


def test_nothing_to_deploy_and_pipes(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no files"):
        packed(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="pipe"):
        packed(tmp_path)
