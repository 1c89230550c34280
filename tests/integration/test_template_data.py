"""The packages of the template `code-interpreter-v1`: installed once, complete or not at all."""

from __future__ import annotations

import threading
import zipfile
from pathlib import Path

import pytest

from roost.isolation.bundle import DATA
from roost.isolation.driver import Template
from roost.isolation.templates import data
from roost.isolation.templates.data import build_data, code_interpreter
from roost.model.errors import Unavailable


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In place of the real packages one that this test made, found without an index."""
    source = tmp_path / "tiny"
    source.mkdir()
    wheel = source / "tiny-1.0-py3-none-any.whl"
    _write_wheel(wheel)
    requirements = tmp_path / "requirements.txt"
    requirements.write_text(f"--no-index\n--find-links {source}\ntiny==1.0\n")
    monkeypatch.setattr(data, "_REQUIREMENTS", requirements)
    monkeypatch.setattr(data, "_CHECK", "import tiny")
    monkeypatch.setattr(data, "_NODE_PACKAGES", ())
    monkeypatch.setattr(data.shutil, "which", lambda name: None)
    return requirements


def _write_wheel(path: Path) -> None:
    info = "tiny-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("tiny.py", "x = 1\n")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", f"tiny.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")


def test_packages_are_installed_once_whoever_asks_at_the_same_time(tmp_path, small):
    found: list[Path] = []
    askers = [threading.Thread(target=lambda: found.append(build_data(tmp_path / "data"))) for _ in range(3)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    assert len(found) == 3
    [packages] = set(found)
    assert (packages / "tiny.py").stat().st_mode & 0o777 == 0o644
    assert [path.name for path in packages.parent.iterdir() if path.name != ".lock"] == [packages.name]
    stamp = (packages / "tiny.py").stat().st_mtime_ns
    assert build_data(tmp_path / "data") == packages
    assert (packages / "tiny.py").stat().st_mtime_ns == stamp


def test_what_can_not_be_installed_is_named_and_leaves_nothing(tmp_path, small):
    small.write_text("--no-index\nnosuchpackage==1.0\n")
    with pytest.raises(Unavailable, match="No matching distribution found for nosuchpackage"):
        build_data(tmp_path / "data")
    assert [path.name for path in (tmp_path / "data/packages").iterdir()] == [".lock"]


def test_packages_that_can_not_be_imported_are_never_used(tmp_path, small, monkeypatch):
    monkeypatch.setattr(data, "_CHECK", "import tiny, nosuchmodule")
    with pytest.raises(Unavailable, match="nosuchmodule"):
        build_data(tmp_path / "data")
    assert [path.name for path in (tmp_path / "data/packages").iterdir()] == [".lock"]


def test_a_folder_that_can_not_be_written_is_named(tmp_path, small):
    (tmp_path / "data").write_text("a file")
    with pytest.raises(Unavailable, match="could not be installed"):
        build_data(tmp_path / "data")


def test_the_template_is_the_hosts_with_the_packages(tmp_path):
    host = Template(name="host", root=tmp_path, binds=((Path("/usr"), "/usr"),))
    template = code_interpreter(host, tmp_path / "packages")
    assert template.name == "code-interpreter-v1"
    assert template.root == host.root
    assert template.binds == ((Path("/usr"), "/usr"), (tmp_path / "packages", DATA))
    assert template.preload
