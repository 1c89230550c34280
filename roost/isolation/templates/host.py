"""The `host` template: the machine's own programs, read-only, around a generated skeleton without anything of its own.

The room sees the host's /usr (and /bin, /lib... where these are no links into it) and, of /etc, what programs need to
run: the loader's cache, alternatives, certificates, names of services. Accounts, hosts and the like are written anew.
Nothing else of the host is visible: no keys, no configuration that may hold credentials, no /opt, no home directory.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from roost.isolation.driver import Template

NAME = "host"
_ROOT_LINKS = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_FOLDERS = (
    (".roost", 0o755),
    ("code", 0o755),
    ("dev", 0o755),
    ("etc", 0o755),
    ("home", 0o755),
    ("media", 0o755),
    ("mnt", 0o755),
    ("opt", 0o755),
    ("proc", 0o555),
    ("root", 0o700),
    ("run", 0o755),
    ("srv", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
    ("usr", 0o755),
    ("var", 0o755),
    ("var/cache", 0o755),
    ("var/lib", 0o755),
    ("var/log", 0o755),
    ("var/spool", 0o755),
    ("var/tmp", 0o1777),
)
_USER_ID = 1000
#: Where a room has no resolver, to ask for one costs a refused packet.
_NAME_SERVICES = {
    "passwd": "files",
    "group": "files",
    "shadow": "files",
    "hosts": "files dns",
    "services": "files",
    "protocols": "files",
}
#: Of the host's /etc, by pattern. Only what every user of the host may read is taken; `_SECRET` is never looked into.
_FROM_ETC = (
    "R",
    "alternatives",
    "bash.bashrc",
    "ca-certificates",
    "ca-certificates.conf",
    "debian_version",
    "fonts",
    "gai.conf",
    "host.conf",
    "inputrc",
    "java-*",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "locale.alias",
    "localtime",
    "magic",
    "magic.mime",
    "mailcap",
    "mime.types",
    "os-release",
    "perl",
    "pki",
    "protocols",
    "python3*",
    "rpc",
    "services",
    "shells",
    "ssl",
    "terminfo",
    "timezone",
)
_SECRET = frozenset({"private", "entitlement", "consumer"})
_FILE_LIMIT = 4 << 20
_ENTRY_LIMIT = 20_000


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One entry of the skeleton: a directory, or a link if `target` is set, or a file if `content` is."""

    path: str
    mode: int = 0o755
    owner: int = 0
    target: str | None = None
    content: bytes | None = None


def prepare(folder: Path, *, host: Path = Path("/"), boot_id: str) -> Template:
    """The template over a skeleton in `folder`, made if this boot of the machine has none with the same content yet.

    A skeleton that rooms may use is never changed: another content is another directory. What earlier boots left is
    removed, as no room of theirs lives.
    """
    entries = list(plan(host))
    root = folder / f"{boot_id[:8]}-{_digest(entries)}"
    folder.mkdir(parents=True, exist_ok=True)
    for other in folder.iterdir():
        if not other.name.startswith(boot_id[:8]):
            shutil.rmtree(other)
    if not root.is_dir():
        building = folder / f"{boot_id[:8]}.building-{os.getpid()}"
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir()
        try:
            write(entries, building)
            building.rename(root)
        except OSError:
            shutil.rmtree(building, ignore_errors=True)
            # Another process may have made it meanwhile.
            if not root.is_dir():
                raise
    return Template(name=NAME, root=root, binds=tuple(binds(host)))


def plan(host: Path) -> Iterator[Entry]:
    """What the skeleton consists of, parents before children."""
    for path, mode in _FOLDERS:
        yield Entry(path=path, mode=mode)
    yield Entry(path="home/user", mode=0o755, owner=_USER_ID)
    yield Entry(path="var/run", target="/run")
    for name in _ROOT_LINKS:
        place = host / name
        if place.is_symlink():
            yield Entry(path=name, target=str(place.readlink()))
        elif place.is_dir():
            yield Entry(path=name)
    yield from _generated(host)
    taken = sorted({path for pattern in _FROM_ETC for path in (host / "etc").glob(pattern)})
    budget = _ENTRY_LIMIT
    for source in taken:
        for entry in _copied(source, host):
            budget -= 1
            if budget < 0:
                return
            yield entry


def binds(host: Path) -> Iterator[tuple[Path, str]]:
    """The host's directories that hold programs: /usr, and those beside it that are no links."""
    yield host / "usr", "/usr"
    for name in _ROOT_LINKS:
        if (host / name).is_dir() and not (host / name).is_symlink():
            yield host / name, f"/{name}"


def write(entries: list[Entry], root: Path) -> None:
    """Write the skeleton into an empty directory."""
    root.chmod(0o755)
    for entry in entries:
        path = root / entry.path
        if entry.target is not None:
            path.symlink_to(entry.target)
            continue
        if entry.content is not None:
            path.write_bytes(entry.content)
        else:
            path.mkdir()
        if os.geteuid() == 0:  # else everything is the one id's that there is
            os.chown(path, entry.owner, entry.owner)
        path.chmod(entry.mode)


def _generated(host: Path) -> Iterator[Entry]:
    shell = "/bin/bash" if (host / "usr/bin/bash").exists() or (host / "bin/bash").exists() else "/bin/sh"
    files = {
        "passwd": f"root:x:0:0:root:/root:{shell}\n"
        f"user:x:{_USER_ID}:{_USER_ID}:user:/home/user:{shell}\n"
        "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
        "group": f"root:x:0:\ntty:x:5:\nuser:x:{_USER_ID}:\nnogroup:x:65534:\n",
        "hosts": "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n",
        "nsswitch.conf": "".join(f"{database}: {sources}\n" for database, sources in _NAME_SERVICES.items()),
        "resolv.conf": "",
        "profile": "umask 022\n",
    }
    for name, text in files.items():
        yield Entry(path=f"etc/{name}", mode=0o644, content=text.encode())


def _copied(source: Path, host: Path) -> Iterator[Entry]:
    """The entry itself and what is below it, as far as every user of the host may read it."""
    path = str(source.relative_to(host))
    try:
        status = source.lstat()
        if stat.S_ISLNK(status.st_mode):
            yield Entry(path=path, target=str(source.readlink()))
        elif stat.S_ISDIR(status.st_mode) and status.st_mode & 0o005 == 0o005 and source.name not in _SECRET:
            yield Entry(path=path)
            for child in sorted(source.iterdir()):
                yield from _copied(child, host)
        elif stat.S_ISREG(status.st_mode) and status.st_mode & 0o004 and status.st_size <= _FILE_LIMIT:
            content = source.read_bytes()
            if b"PRIVATE KEY-----" not in content:
                yield Entry(path=path, mode=0o755 if status.st_mode & 0o001 else 0o644, content=content)
    except FileNotFoundError:
        # Removed while it was looked at, as certificates are when they are renewed.
        return


def _digest(entries: list[Entry]) -> str:
    digest = hashlib.sha256()
    for entry in entries:
        content = hashlib.sha256(entry.content or b"").hexdigest()
        digest.update(repr((entry.path, entry.mode, entry.owner, entry.target, content)).encode())
    return digest.hexdigest()[:16]
