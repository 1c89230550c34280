"""Bytecode of a package: the same for the same sources, never of another source, and what a room really imports."""

import importlib.util
import marshal
import subprocess
import sys
from pathlib import Path

import pytest

from roost.sdk import bytecode, package
from roost.sdk.errors import Failed

SOURCE = "from json import loads as of\nNAMES = {'one', 'two', 'three'}\ndef f(x):\n    return x in {'a', 'b', 'c'}\n"
HEADER = 16  # magic number, flags, hash of the source
UNCHECKED_HASH = 1


def tree(root: Path, **sources: str) -> Path:
    for name, text in sources.items():
        path = root / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def packed(directory: Path, vendored: Path | None, folder: Path) -> bytes:
    members = package.collect(directory, vendored)
    return package.build({**members, **bytecode.of_package(members, vendored, folder)})


def test_equal_sources_give_equal_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = tree(tmp_path / "one", b=SOURCE, a="import b\n", pkg__c=SOURCE)
    two = tree(tmp_path / "elsewhere" / "two", pkg__c=SOURCE, a="import b\n", b=SOURCE)
    monkeypatch.setenv("PYTHONHASHSEED", "1")
    first = packed(one, None, tmp_path / "first")
    monkeypatch.setenv("PYTHONHASHSEED", "2")
    assert packed(two, None, tmp_path / "second") == first


def test_it_lies_where_imports_look_and_names_the_source_in_the_room(tmp_path: Path) -> None:
    source = tree(tmp_path / "own", pkg__c=SOURCE)
    (made,) = bytecode.of_package(package.collect(source), None, tmp_path / "made").items()
    assert tmp_path / made[0] == Path(importlib.util.cache_from_source(str(tmp_path / "pkg" / "c.py")))
    content = made[1].read_bytes()
    assert content[:4] == importlib.util.MAGIC_NUMBER
    assert int.from_bytes(content[4:8], "little") == UNCHECKED_HASH
    assert marshal.loads(content[HEADER:]).co_filename == "/code/pkg/c.py"


def test_a_module_is_imported_from_it_without_its_source_being_read(tmp_path: Path) -> None:
    source = tree(tmp_path / "own", told="print('from the bytecode')\n")
    made = bytecode.of_package(package.collect(source), None, source)
    assert list(made) == [bytecode.place("told.py")]
    (source / "told.py").write_text("print('from the source')\n")
    ran = subprocess.run([sys.executable, "-B", "-c", "import told"], cwd=source, capture_output=True, check=True)
    assert ran.stdout == b"from the bytecode\n"


def test_a_replaced_vendored_module_leaves_no_bytecode(tmp_path: Path) -> None:
    vendored = tree(tmp_path / "vendored", six="THEIRS = 1\n", broken="THEIRS = 1\n", other="THEIRS = 1\n")
    bytecode.compile_members(dict(package.files(vendored)), vendored)
    own = tree(tmp_path / "own", six="OURS = 1\n", broken="def broken(\n")
    made = bytecode.of_package(package.collect(own, vendored), vendored, tmp_path / "made")
    assert set(made) == {bytecode.place("six.py"), bytecode.place("other.py")}
    assert b"OURS" in made[bytecode.place("six.py")].read_bytes()
    assert made[bytecode.place("other.py")].is_relative_to(vendored)


def test_what_is_no_python_is_passed_over(tmp_path: Path) -> None:
    source = tree(tmp_path / "own", a="x = 1\n", template="{{ no }} python", nulls="\0", deep="(" * 5000)
    (source / "notes.txt").write_text("no source")
    assert set(bytecode.of_package(package.collect(source), None, tmp_path / "made")) == {bytecode.place("a.py")}


def test_bytecode_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    source = tree(tmp_path / "own", a="x = 1\n")
    (tmp_path / "file").write_text("")
    with pytest.raises(Failed, match="could not be compiled"):
        bytecode.of_package(package.collect(source), None, tmp_path / "file")
