"""The parts of a guest bundle: what is taken from the host's interpreter, and how it is copied."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from roost.isolation import elf
from roost.model.errors import Unavailable

#: Folders of the standard library that no agent runs; the first four hold tests or desktop programs.
_LEFT_OUT_FOLDERS = frozenset(
    {"test", "tests", "idlelib", "tkinter", "turtledemo", "site-packages", "dist-packages", "__pycache__"}
)
#: Host customisation, and the mark with which a distribution asks pip to keep off its own interpreter.
_LEFT_OUT_FILES = frozenset({"sitecustomize.py", "usercustomize.py", "EXTERNALLY-MANAGED"})
_LEFT_OUT_MODULES = ("_tkinter.", "_test", "_ctypes_test.", "xxlimited")
#: Loaded by name at run time, or expected of every system by binary wheels (PEP 600), so no link leads to them.
_EXTRA_LIBRARIES = (
    "libgcc_s.so.1",
    "libstdc++.so.6",
    "libatomic.so.1",
    "libz.so.1",
    "libnss_files.so.2",
    "libnss_dns.so.2",
    "libresolv.so.2",
    "libm.so.6",
    "libdl.so.2",
    "librt.so.1",
    "libpthread.so.0",
    "libutil.so.1",
)

_SOURCES = frozenset({".py", ".typed", ".R", ".cjs", ".java", ".sh"})
_WHEELS = "share/python-wheels"

_INSPECT = """
import json, site, sys, sysconfig
print(json.dumps({
    "version": sys.version, "prefix": sys.base_prefix, "cache_tag": sys.implementation.cache_tag,
    "stdlib": sysconfig.get_path("stdlib"), "platstdlib": sysconfig.get_path("platstdlib"),
    "include": sysconfig.get_path("include"), "site": site.getsitepackages([sys.base_prefix])[0],
    "wheels": sysconfig.get_config_var("WHEEL_PKG_DIR") or ""}))
"""


@dataclass(frozen=True, kw_only=True)
class Interpreter:
    """What is known of the host's interpreter. Paths are the host's; `site` is where its own prefix keeps packages."""

    executable: Path
    loader: Path
    version: str
    prefix: Path
    cache_tag: str
    stdlib: Path
    platstdlib: Path
    include: Path
    site: Path
    wheels: Path | None  # where a distribution keeps the wheels that `venv` installs, apart from `ensurepip`
    pip_wheel: Path | None
    pip_version: str

    def inside(self, path: Path) -> Path:
        """`path` relative to the prefix: where it lies in the bundle."""
        return path.relative_to(self.prefix)


def inspect_interpreter(executable: Path) -> Interpreter:
    """Ask the interpreter about itself. Raises Unavailable if it cannot be bundled."""
    loader = elf.interpreter_of(executable)
    if loader is None:
        raise Unavailable(f"{executable} names no loader: only a dynamically linked interpreter can be bundled.")
    asked = subprocess.run([executable, "-I", "-c", _INSPECT], capture_output=True, text=True, timeout=60, check=False)
    if asked.returncode != 0:
        raise Unavailable(f"{executable} does not run: {asked.stderr.strip()}")
    told = json.loads(asked.stdout)
    stdlib = Path(told["stdlib"])
    wheels = Path(told["wheels"]) if told["wheels"] else None
    wheel = _pip_wheel(wheels or stdlib / "ensurepip" / "_bundled")
    return Interpreter(
        executable=executable,
        loader=Path(loader),
        version=told["version"],
        prefix=Path(told["prefix"]),
        cache_tag=told["cache_tag"],
        stdlib=stdlib,
        platstdlib=Path(told["platstdlib"]),
        include=Path(told["include"]),
        site=Path(told["site"]),
        wheels=wheels,
        pip_wheel=wheel,
        pip_version=wheel.name if wheel else _installed_pip().version,
    )


def copy_standard_library(base: Interpreter, root: Path, prefix: str) -> None:
    """Copy the standard library with its compiled modules, extension modules, headers and the wheels of `venv`."""

    def left_out(folder: str, names: list[str]) -> set[str]:
        return {name for name in names if _is_left_out(name)}

    for source in dict.fromkeys((base.stdlib, base.platstdlib)):
        shutil.copytree(
            source,
            root / base.inside(source),
            ignore=left_out,
            copy_function=_copy_with_compiled(base.cache_tag),
            ignore_dangling_symlinks=True,
            dirs_exist_ok=True,
        )
    if base.include.is_dir():
        shutil.copytree(base.include, root / base.inside(base.include), ignore_dangling_symlinks=True)
    if base.wheels is not None and base.wheels.is_dir():
        (root / _WHEELS).mkdir(parents=True)
        for wheel in base.wheels.glob("*.whl"):
            shutil.copyfile(wheel, root / _WHEELS / wheel.name)
    _adapt_build_configuration(base, root, prefix)


def copy_program(base: Interpreter, root: Path, prefix: str) -> None:
    """Copy the interpreter, patched to start through the bundle's loader, and link its usual names to it."""
    (root / "bin").mkdir()
    program = bytearray(base.executable.read_bytes())
    elf.carry_own_loader(program, loader=f"{prefix}/ld.so", libraries=f"{prefix}/lib")
    target = root / "bin" / base.executable.name
    target.write_bytes(program)
    target.chmod(0o755)
    for name in ("python3", "python"):
        if name != target.name:
            (root / "bin" / name).symlink_to(target.name)
    shutil.copyfile(base.loader, root / "ld.so")
    (root / "ld.so").chmod(0o755)


def copy_libraries(base: Interpreter, root: Path) -> None:
    """Copy every shared library that the program or an extension module loads, directly or not."""
    found = _libraries_of(base, [base.executable, *_extension_modules(base.stdlib, base.platstdlib)])
    folders = list(dict.fromkeys(path.parent for path in found.values()))
    wanted = [name for name in _EXTRA_LIBRARIES if name not in found]
    places = ([folder / name for folder in folders if (folder / name).is_file()] for name in wanted)
    extra = [place[0] for place in places if place]
    found |= {path.name: path for path in extra}
    found |= _libraries_of(base, extra)
    for name, path in found.items():
        data = bytearray(path.read_bytes())
        elf.drop_search_path(data)
        target = root / "lib" / name
        target.write_bytes(data)
        target.chmod(0o755)
    for module in _extension_modules(root):
        data = bytearray(module.read_bytes())
        elf.drop_search_path(data)
        module.write_bytes(data)


def site_directory(base: Interpreter, root: Path) -> Path:
    """The directory of the bundle from which its interpreter imports packages; made if absent."""
    site = root / base.inside(base.site)
    site.mkdir(parents=True, exist_ok=True)
    return site


def python_sources(package: Path) -> list[Path]:
    """The sources of a package, and the programs in other languages that belong to it, in a fixed order."""
    return sorted(p for p in package.rglob("*") if p.suffix in _SOURCES and p.is_file())


def copy_sources(package: Path, target: Path) -> None:
    """Copy a pure Python package without its compiled files."""
    for source in python_sources(package):
        place = target / source.relative_to(package)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, place)


def copy_pip(base: Interpreter, site: Path, scripts: Path, python: str) -> None:
    """Install pip from the wheel that comes with the interpreter, else from the running environment."""
    if base.pip_wheel is not None:
        with zipfile.ZipFile(base.pip_wheel) as wheel:
            wheel.extractall(site)
    else:
        installed = _installed_pip()
        for file in installed.files or ():
            if file.parts[0].startswith("pip") and file.suffix != ".pyc":
                place = site / PurePosixPath(file)
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(Path(str(installed.locate_file(file))), place)
    for name in ("pip", "pip3"):
        script = scripts / name
        script.write_text(f"#!{python}\nimport sys\nfrom pip._internal.cli.main import main\nsys.exit(main())\n")
        script.chmod(0o755)


def write_sudo(scripts: Path, python: str) -> None:
    """The `sudo` of sandboxes. Nothing that the caller's variables name is imported."""
    script = scripts / "sudo"
    script.write_text(
        f"#!{python} -I\nimport sys\nfrom roost.guest.sandbox.sudo_client import main\nsys.exit(main())\n"
    )
    script.chmod(0o755)


def compile_sources(base: Interpreter, root: Path, prefix: str) -> None:
    """Compile what came without a valid compiled file; tracebacks then name files as the room sees them."""
    subprocess.run(
        [base.executable, "-I", "-m", "compileall", "-qq", "-s", root, "-p", prefix, root],
        stdout=subprocess.DEVNULL,
        timeout=600,
        check=False,
    )


def open_to_all(root: Path) -> None:
    """Make everything readable by every user and writable by none but the owner, whatever the umask was."""
    for folder, _, names in os.walk(root):
        Path(folder).chmod(0o755)
        for name in names:
            path = Path(folder, name)
            if not path.is_symlink():
                path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)


def _is_left_out(name: str) -> bool:
    return (
        name in _LEFT_OUT_FOLDERS
        or name in _LEFT_OUT_FILES
        or name.startswith(_LEFT_OUT_MODULES)
        or (name.startswith("config-") and "." in name)  # the static library and what embedding it takes
    )


def _copy_with_compiled(cache_tag: str) -> Callable[[str, str], object]:
    """A copy function that keeps a source's time stamp and, with it, the compiled file that names this time stamp."""

    def copy(source: str, target: str) -> None:
        shutil.copy2(source, target)
        compiled = Path(source).parent / "__pycache__" / f"{Path(source).stem}.{cache_tag}.pyc"
        if source.endswith(".py") and compiled.is_file():
            cache = Path(target).parent / "__pycache__"
            cache.mkdir(exist_ok=True)
            shutil.copy2(compiled, cache / compiled.name)

    return copy


def _adapt_build_configuration(base: Interpreter, root: Path, prefix: str) -> None:
    """Name the bundle's place, not the host's, where `sysconfig` tells how the interpreter was built."""
    for file in (root / base.inside(base.stdlib)).glob("_sysconfigdata_*.py"):
        text = file.read_text()
        if base.wheels is not None:
            text = text.replace(str(base.wheels), f"{prefix}/{_WHEELS}")
        # A distribution's prefix is a part of paths that stay true in the room, such as its compiler's.
        if base.prefix != Path("/usr"):
            text = text.replace(str(base.prefix), prefix)
        file.write_text(text)


def _extension_modules(*roots: Path) -> list[Path]:
    found = {
        path
        for root in roots
        for path in root.rglob("*.so")
        if "lib-dynload" in path.parts and not _is_left_out(path.name)
    }
    return sorted(found)


def _libraries_of(base: Interpreter, files: Iterable[Path]) -> dict[str, Path]:
    """Soname to path of all that the loader would load for these files, as it finds them on this host."""
    found: dict[str, Path] = {}
    for file in files:
        listed = subprocess.run([base.loader, "--list", file], capture_output=True, text=True, timeout=60, check=False)
        for line in listed.stdout.splitlines():
            name, arrow, rest = line.strip().partition(" => ")
            path = rest.rpartition(" (")[0]
            if arrow and path.startswith("/") and "/" not in name:
                found[name] = Path(path)
    return found


def _pip_wheel(folder: Path) -> Path | None:
    return max(folder.glob("pip-*.whl"), default=None)


def _installed_pip() -> importlib.metadata.Distribution:
    try:
        return importlib.metadata.distribution("pip")
    except importlib.metadata.PackageNotFoundError:
        raise Unavailable("pip is neither bundled with this interpreter nor installed: install python3-pip.") from None
