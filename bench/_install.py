"""Installs what the queues of bench/tasks.py are made of, below `.venv-bench`; nothing of the system is changed.

Each client library has an environment of its own: Celery and arq can't share one. What can't be installed raises
Missing, and its row says so.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bench._servers import PEERS, Missing

#: Debian's packages of redis-server, and of the libraries that a machine may lack for it.
REDIS_PACKAGES = ("redis-server", "redis-tools", "libjemalloc2", "liblzf1", "libatomic1")
RESTATE = "@restatedev/restate-server@1.7.12"


def environment(name: str, packages: Sequence[str]) -> Path:
    """The bin directory of a virtual environment with these packages. Raises Missing."""
    directory = PEERS / "queues" / name
    stamp = directory / "installed"
    wanted = "\n".join(packages)
    if not stamp.exists() or stamp.read_text() != wanted:
        _run([sys.executable, "-m", "venv", "--clear", str(directory)])
        pip = [str(directory / "bin" / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        _run([*pip, *packages])
        stamp.write_text(wanted)
    return directory / "bin"


def redis() -> tuple[Path, dict[str, str]]:
    """redis-server of this machine, or of Debian's packages, unpacked, and its environment. Raises Missing."""
    if (found := shutil.which("redis-server")) is not None:
        return Path(found), {}
    directory = PEERS / "queues" / "redis"
    program = directory / "usr" / "bin" / "redis-server"
    if not program.exists():
        directory.mkdir(parents=True, exist_ok=True)
        options = ["-qq", "-o", "APT::Sandbox::User=root"] if os.geteuid() == 0 else ["-qq"]
        if os.geteuid() == 0:
            _run(["apt-get", *options, "update"])
        _run(["apt-get", *options, "download", *REDIS_PACKAGES], cwd=directory)
        for package in directory.glob("*.deb"):
            _run(["dpkg", "-x", str(package), str(directory)])
            package.unlink()
    libraries = {str(file.parent) for file in directory.glob("usr/lib/**/*.so*")}
    return program, {"LD_LIBRARY_PATH": os.pathsep.join(sorted(libraries))}


def restate() -> Path:
    """restate-server. Raises Missing."""
    directory = PEERS / "queues" / "restate-server"
    pattern = "node_modules/@restatedev/restate-server-*/bin/restate-server"
    if not list(directory.glob(pattern)):
        directory.mkdir(parents=True, exist_ok=True)
        # Its one script only reports the installation to its authors.
        _run(["npm", "install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", RESTATE], cwd=directory)
    return next(directory.glob(pattern))


def postgres() -> Path:
    """The directory of initdb and postgres. Raises Missing."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if found:
        return found[-1].parent
    if (initdb := shutil.which("initdb")) is not None:
        return Path(initdb).resolve().parent
    raise Missing("PostgreSQL is not installed: apt-get install postgresql")


def _run(command: list[str], cwd: Path | None = None) -> None:
    try:
        subprocess.run(command, cwd=cwd, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=600)
    except FileNotFoundError as error:
        raise Missing(f"{command[0]} is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise Missing(f"{' '.join(command)[:120]} took more than 10 minutes") from error
    except subprocess.CalledProcessError as error:
        last = error.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise Missing(f"{' '.join(command)[:120]} failed: {' '.join(last)[:200]}") from error
