"""The guest bundle, run by chroot in a directory that has nothing else, as in a room: mounted read-only at /.roost."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from roost.isolation import bundle as bundles
from roost.isolation.bundle import Bundle, build_bundle

ENTER = """
set -e
mount --bind "$1" "$2/.roost"; mount -o remount,bind,ro "$2/.roost"; mount -t proc proc "$2/proc"
mount --bind /dev/null "$2/dev/null"
root="$2"; shift 2
exec env -i HOME=/root TERM=dumb "$(command -v chroot)" "$root" "$@"
"""


SOURCE = Path(bundles.__file__).parents[2]
RUNNING = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
#: The interpreter that runs the tests, and the distribution's own, which is laid out differently.
INTERPRETERS = {RUNNING, *(p for p in Path("/usr/bin").glob("python3.1[1-9]") if not p.is_symlink())}
BUILD = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from roost.isolation.bundle import build_bundle
print(build_bundle(Path(sys.argv[2])).root)
"""


@pytest.fixture(scope="session", params=sorted(INTERPRETERS), ids=str)
def bundle(request, tmp_path_factory) -> Bundle:
    data_dir = tmp_path_factory.mktemp("roost-data")
    if request.param == RUNNING:
        return build_bundle(data_dir)
    built = subprocess.run(
        [request.param, "-I", "-c", BUILD, SOURCE, data_dir], capture_output=True, text=True, check=True
    )
    return Bundle(Path(built.stdout.strip()))


@pytest.fixture
def enter(bundle, tmp_path):
    """Run a command in an otherwise empty root file system; the mounts end with the command."""
    root = tmp_path / "root"
    for name in (".roost", "proc", "tmp", "root", "dev/shm"):
        (root / name).mkdir(parents=True)
    (root / "dev" / "null").touch()

    def run(*argv: str) -> str:
        ran = subprocess.run(
            ["unshare", "--mount", "sh", "-c", ENTER, "sh", bundle.root, root, *argv],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout.strip()

    run.root = root
    return run


def test_imports_its_extension_modules_in_an_empty_root(enter):
    code = (
        "import ssl, ctypes, sqlite3, json, asyncio, hashlib, zoneinfo, lzma, bz2, uuid, curses, roost\n"
        "assert sqlite3.connect(':memory:').execute('select 1').fetchone() == (1,)\n"
        "assert len(hashlib.sha256(b'').hexdigest()) == 64 and ssl.create_default_context()\n"
        "import sys; print(sys.prefix, sys.base_prefix, sys.executable)"
    )
    assert enter("/.roost/bin/python3", "-c", code) == "/.roost /.roost /.roost/bin/python3"


def test_every_path_it_imports_from_is_its_own(enter):
    paths = enter("/.roost/bin/python3", "-P", "-c", "import sys; print(*sys.path, sep='\\n')").splitlines()
    assert paths
    assert all(path.startswith("/.roost/") for path in paths)


def test_names_no_path_of_the_host(enter):
    code = "import sysconfig, roost.isolation.bundle as b; print(sysconfig.get_config_vars(), b.build_bundle.__code__)"
    shown = enter("/.roost/bin/python3", "-c", code)
    # A distribution's prefix is part of true paths, such as its compiler's.
    assert sys.base_prefix == "/usr" or sys.base_prefix not in shown
    assert str(Path(bundles.__file__).parent) not in shown


def test_the_command_runs_a_module(enter, bundle):
    assert enter(*bundle.command("json.tool", "--help")).startswith("usage:")
    assert bundle.command("roost.guest", "a")[0] == bundle.python == "/.roost/bin/python3"


def test_a_module_in_the_working_directory_is_not_taken_for_the_bundles(enter, bundle):
    (enter.root / "json.py").write_text("raise SystemExit('taken from the working directory')")
    assert enter(*bundle.command("json.tool", "--help")).startswith("usage:")


def test_pip_runs_as_script_and_as_module(enter):
    shown = enter("/.roost/bin/pip", "--version")
    assert shown.startswith("pip ")
    assert "/.roost/" in shown
    assert enter("/.roost/bin/python3", "-m", "pip", "--version") == shown


def test_sudo_runs_without_what_its_callers_variables_name(enter):
    call = "s.run(['/.roost/bin/sudo', 'ls'], capture_output=True, env={'PYTHONPATH': '/x'})"
    code = f"import subprocess as s; print({call})"
    assert "sudo: the sandbox does not answer: No such file or directory" in enter("/.roost/bin/python3", "-c", code)


def test_reexecution_by_subprocess_and_spawn(enter):
    (enter.root / "tmp" / "program.py").write_text(
        "import multiprocessing, os, subprocess, sys\n"
        "if __name__ == '__main__':\n"
        "    child = subprocess.run([sys.executable, '-c', 'import os, sys; print(sys.prefix, sorted(os.environ))'],\n"
        "                           capture_output=True, text=True, check=True)\n"
        "    print(child.stdout.strip())\n"
        "    spawn = multiprocessing.get_context('spawn')\n"
        "    queue = spawn.SimpleQueue()\n"
        "    process = spawn.Process(target=exec, args=('queue.put(7 * 7)', {'queue': queue}))\n"
        "    process.start(); print(queue.get()); process.join()\n"
    )
    lines = enter("/.roost/bin/python3", "/tmp/program.py").splitlines()
    # Nothing of the loader reaches children through the environment.
    assert lines[0] in ("/.roost ['HOME', 'TERM']", "/.roost ['HOME', 'LC_CTYPE', 'TERM']")
    assert lines[1] == "49"


def test_a_virtual_environment_works(enter):
    enter("/.roost/bin/python3", "-m", "venv", "/tmp/environment")
    shown = enter("/tmp/environment/bin/python", "-c", "import sys; print(sys.prefix, sys.base_prefix)")
    assert shown == "/tmp/environment /.roost"
    assert "/tmp/environment/" in enter("/tmp/environment/bin/pip", "--version")


def test_pip_installs_for_the_user_as_the_bundle_is_read_only(enter):
    project = enter.root / "tmp" / "wheel.py"
    project.write_text(
        "import zipfile\n"
        "with zipfile.ZipFile('/tmp/tiny_thing-1-py3-none-any.whl', 'w') as wheel:\n"
        "    wheel.writestr('tiny_thing.py', 'answer = 42')\n"
        "    wheel.writestr('tiny_thing-1.dist-info/METADATA',\n"
        "                   'Metadata-Version: 2.1\\nName: tiny-thing\\nVersion: 1\\n')\n"
        "    wheel.writestr('tiny_thing-1.dist-info/WHEEL',\n"
        "                   'Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n')\n"
        "    wheel.writestr('tiny_thing-1.dist-info/RECORD', '')\n"
    )
    enter("/.roost/bin/python3", "/tmp/wheel.py")
    enter("/.roost/bin/pip", "install", "--no-index", "/tmp/tiny_thing-1-py3-none-any.whl")
    assert enter("/.roost/bin/python3", "-c", "import tiny_thing; print(tiny_thing.__file__)").startswith(
        "/root/.local"
    )


def test_everything_is_readable_by_all_and_writable_by_the_owner_alone(bundle):
    for folder, _, names in os.walk(bundle.root):
        for path in (Path(folder), *(Path(folder, name) for name in names)):
            if not path.is_symlink():
                mode = path.stat().st_mode
                assert mode & 0o444 == 0o444, path
                assert mode & 0o022 == 0, path


def test_built_once_and_the_same_for_concurrent_builders(tmp_path):
    built: list[Bundle] = []
    builders = [threading.Thread(target=lambda: built.append(build_bundle(tmp_path))) for _ in range(3)]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join()
    assert len({b.root for b in built}) == 1
    assert len(built) == 3
    assert sorted(p.name for p in (tmp_path / "guest").iterdir()) == [".lock", built[0].root.name]
    before = (built[0].root / "bin" / "python3").stat().st_ino
    assert (build_bundle(tmp_path).root / "bin" / "python3").stat().st_ino == before


def test_versions_that_no_room_uses_are_removed(tmp_path):
    built = build_bundle(tmp_path)
    guest = built.root.parent
    unused, mounted, fresh = (guest / f"{letter * 24}" for letter in "abc")
    for old in (unused, mounted, fresh):
        old.mkdir()
    for old in (unused, mounted):
        os.utime(old, (time.time() - 7200,) * 2)
    target = tmp_path / "target"
    target.mkdir()
    holder = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", f"mount --bind {mounted} {target}; echo ready; read end"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout.readline() == b"ready\n"
        assert build_bundle(tmp_path).root == built.root
        assert not unused.exists()
        assert mounted.exists()
        assert fresh.exists()
    finally:
        holder.communicate(b"\n")
    assert build_bundle(tmp_path).root == built.root
    assert not mounted.exists()


def test_an_interrupted_build_leaves_nothing_that_counts_as_built(tmp_path, monkeypatch):
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(bundles.parts, "compile_sources", fail)
    with pytest.raises(KeyboardInterrupt):
        build_bundle(tmp_path)
    assert [p.name for p in (tmp_path / "guest").iterdir()] == [".lock"]
    (tmp_path / "guest" / ".building-1").mkdir()
    monkeypatch.undo()
    build_bundle(tmp_path)
    assert not (tmp_path / "guest" / ".building-1").exists()
