"""A directory as a zip: the same bytes for the same contents, whatever the machine, time and order of the files."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import zipfile
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

from roost.sdk.errors import UsageError

#: Name in the package -> file.
Members = Mapping[str, Path]

IGNORE_FILE = ".roostignore"
ALWAYS_IGNORED = (
    ".git",
    ".hg",
    "__pycache__",
    ".venv",
    ".mypy_cache",
    ".ruff_cache",
    ".pytest_cache",
    "*.pyc",
    ".roostignore",
)
#: What the server unpacks at most, in bytes.
MAX_BYTES = 500 * 1024 * 1024
#: The oldest time a zip can hold; a real one would change the bytes without changing the contents.
_EPOCH = (1980, 1, 1, 0, 0, 0)


def ignore_rules(directory: Path) -> tuple[str, ...]:
    """What is left out: the fixed list, and the patterns of the directory's .roostignore."""
    path = directory / IGNORE_FILE
    lines = path.read_text().splitlines() if path.is_file() else []
    return ALWAYS_IGNORED + tuple(line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#"))


def ignored(name: str, is_directory: bool, rules: tuple[str, ...]) -> bool:
    """Whether `name`, a path inside the directory, is left out.

    A pattern with a `/` inside is matched against the whole path, any other against the last part; one that ends in `/`
    names directories only.
    """
    for rule in rules:
        if rule.endswith("/") and not is_directory:
            continue
        pattern = rule.strip("/")
        whole = "/" in rule.rstrip("/")
        if fnmatchcase(name if whole else name.rsplit("/", 1)[-1], pattern):
            return True
    return False


def files(directory: Path) -> Iterator[tuple[str, Path]]:
    """Every file of the package as (name in it, path), in order. Links are followed inside the directory only."""
    rules = ignore_rules(directory)
    root = directory.resolve()
    for folder, folders, names in os.walk(directory):
        here = Path(folder)
        prefix = "" if here == directory else here.relative_to(directory).as_posix() + "/"
        folders[:] = sorted(one for one in folders if not ignored(prefix + one, True, rules))
        for one in folders:
            if (here / one).is_symlink():
                raise UsageError(f"{here / one} is a link to a folder; a package can't hold one.")
        for one in sorted(names):
            path = here / one
            if ignored(prefix + one, False, rules):
                continue
            if not path.resolve().is_relative_to(root):
                raise UsageError(f"{path} is a link out of {directory}; a package can't hold one.")
            if not path.is_file():
                raise UsageError(f"{path} is not a regular file; name it in {IGNORE_FILE} to leave it out.")
            yield prefix + one, path


def collect(directory: Path, vendored: Path | None = None) -> Members:
    """The files of `directory`, and those below `vendored` where the directory has none of that name.

    Raises UsageError for what no package can hold, or more than the server takes.
    """
    members = dict(files(vendored)) if vendored else {}
    members |= dict(files(directory))
    if not members:
        raise UsageError(f"{directory} holds no files to deploy.")
    if size(members) > MAX_BYTES:
        largest = max(members, key=lambda name: members[name].stat().st_size)
        raise UsageError(
            f"{directory} makes a package of {size(members) >> 20} MB and a server takes {MAX_BYTES >> 20} MB; "
            f"the largest file is {largest} ({members[largest].stat().st_size >> 20} MB). "
            f"{IGNORE_FILE} names what is left out."
        )
    return members


def size(members: Members) -> int:
    """Bytes that these files hold."""
    return sum(path.stat().st_size for path in members.values())


def digest(members: Members) -> str:
    """SHA-256 over names, modes and contents: equal for equal packages."""
    whole = hashlib.sha256()
    for name in sorted(members):
        content = hashlib.sha256(members[name].read_bytes()).hexdigest()
        whole.update(f"{name}\0{_executable(members[name])}\0{content}\0".encode())
    return whole.hexdigest()


def build(members: Members) -> bytes:
    """The zip of these files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for name in sorted(members):
            info = zipfile.ZipInfo(name, _EPOCH)
            info.create_system = 3
            info.external_attr = (stat.S_IFREG | (0o755 if _executable(members[name]) else 0o644)) << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, members[name].read_bytes())
    return buffer.getvalue()


def _executable(path: Path) -> bool:
    return bool(path.stat().st_mode & stat.S_IXUSR)
