"""Edits of ELF headers, on this interpreter's own program and libraries."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from roost.isolation import elf
from roost.model.errors import Unavailable

PROGRAM = Path(getattr(sys, "_base_executable", sys.executable)).resolve()


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> Path:
    """A program and a library that carries a search path of its own."""
    folder = tmp_path_factory.mktemp("elf")
    (folder / "part.c").write_text("int answer(void) { return 42; }")
    (folder / "main.c").write_text(
        '#include <stdio.h>\nint answer(void);\nint main(void) { printf("%d\\n", answer()); return 0; }'
    )
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-Wl,-rpath,/nowhere", "-o", folder / "libpart.so", folder / "part.c"], check=True
    )
    subprocess.run(["gcc", "-o", folder / "main", folder / "main.c", folder / "libpart.so"], check=True)
    subprocess.run(["gcc", "-static", "-o", folder / "static", "-x", "c", "-"], input=b"int main(){}", check=True)
    return folder


def dynamic(path: Path) -> str:
    return subprocess.run(["readelf", "-dW", path], capture_output=True, text=True, check=True).stdout


def test_names_the_loader_of_a_program_and_none_of_a_library(compiled):
    assert elf.interpreter_of(PROGRAM) == elf.interpreter_of(Path(shutil.which("ls")))
    assert elf.interpreter_of(compiled / "libpart.so") is None
    assert elf.interpreter_of(compiled / "static") is None


def test_a_program_starts_through_its_own_loader_and_libraries(compiled, tmp_path):
    # Short names, as the new paths must fit into the old loader's place.
    place = Path("/tmp") / f"r{tmp_path.stat().st_ino % 10**6}"
    place.mkdir()
    try:
        shutil.copy(elf.interpreter_of(PROGRAM), place / "l")
        for library in ("libc.so.6", "libpart.so"):
            found = subprocess.run(["ldd", compiled / "main"], capture_output=True, text=True, check=True).stdout
            line = next(entry for entry in found.splitlines() if library in entry)
            source = line.split(" => ")[1].split(" (")[0] if " => " in line else line.split()[0]
            shutil.copy(source, place / library)
        data = bytearray((compiled / "main").read_bytes())
        elf.carry_own_loader(data, loader=f"{place}/l", libraries=str(place))
        program = place / "main"
        program.write_bytes(data)
        program.chmod(0o755)
        assert elf.interpreter_of(program) == f"{place}/l"
        ran = subprocess.run([program], capture_output=True, text=True, check=True, env={"LD_DEBUG": "libs"})
        assert ran.stdout == "42\n"
        assert f"trying file={place}/libc.so.6" in ran.stderr
    finally:
        shutil.rmtree(place)


def test_a_librarys_own_search_path_is_dropped_and_the_rest_kept(compiled):
    library = compiled / "libpart.so"
    before = dynamic(library)
    assert "/nowhere" in before
    data = bytearray(library.read_bytes())
    elf.drop_search_path(data)
    edited = compiled / "edited.so"
    edited.write_bytes(data)
    after = dynamic(edited)
    assert "/nowhere" not in after
    assert after.count("NEEDED") == before.count("NEEDED")
    twice = bytearray(data)
    elf.drop_search_path(twice)
    assert twice == data


def test_refuses_what_it_cannot_edit(compiled):
    with pytest.raises(Unavailable, match="ELF"):
        elf.drop_search_path(bytearray(b"#!/bin/sh\n" + b"\0" * 64))
    with pytest.raises(Unavailable, match="dynamically linked"):
        elf.carry_own_loader(bytearray((compiled / "static").read_bytes()), loader="/l", libraries="/d")
    with pytest.raises(Unavailable, match="bytes"):
        elf.carry_own_loader(
            bytearray(PROGRAM.read_bytes()), loader="/a/path/that/is/far/too/long", libraries="/and/another"
        )
