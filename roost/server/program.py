"""The program: `python -m roost.server [--host H] [--port P] [--data-dir D] [--config F]`."""

from __future__ import annotations

import argparse
import contextlib
import errno
import logging
import os
import resource
import signal
import socket
import stat
import sys
from pathlib import Path

import uvloop

from roost.config import Config, load
from roost.model.errors import RoostError, Unavailable
from roost.server.life import Server


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="roost serve", description="Run the Roost server in the foreground.")
    parser.add_argument("--host", help="address to listen on (default 127.0.0.1)")
    parser.add_argument("--port", type=_whole_number, help="port to listen on (default 8700; 0: a free one)")
    parser.add_argument("--data-dir", type=Path, help="where everything is kept (default ~/.local/share/roost)")
    parser.add_argument("--database", metavar="URL", help="PostgreSQL instead of SQLite (postgresql://user@host/name)")
    parser.add_argument("--config", type=Path, help="TOML file with settings")
    return parser.parse_args(arguments)


def _whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None


def _raise_file_limit() -> None:
    """Every instance and every connection is a descriptor."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _leave_no_core() -> None:
    """There are secrets in this process. One byte and not none: that is what keeps a core from a program, too, which
    the kernel would give it to."""
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (1 if hard else 0, hard))


def _make_directory(directory: Path, purpose: str) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        why = "it is not a directory" if error.errno == errno.EEXIST else error.strerror
        raise Unavailable(f"The {purpose} {directory} can't be used: {why}.") from error


def _own_parent(directory: Path) -> None:
    """In a folder that every user can make things in, another may have made this one first. Raises Unavailable."""
    found = directory.parent.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise Unavailable(f"The directory of sockets {directory.parent} is not this user's own: remove it.")


def _explained(error: OSError, config: Config) -> str:
    """What kept the server from starting or running, and what mends it where that is known."""
    if error.errno == errno.EADDRINUSE:
        return (
            f"Port {config.port} on {config.host} is in use; end the program that uses it, "
            "or take another port with --port (0: a free one)."
        )
    if error.errno == errno.EADDRNOTAVAIL or isinstance(error, socket.gaierror):
        return f"This machine has no address {config.host}; take one of its own with --host."
    reason = error.strerror or str(error)
    return f"{error.filename} can't be used: {reason}." if error.filename else f"{reason}."


def main(arguments: list[str] | None = None) -> int:
    """Exit codes: 0 stopped as asked, 1 it could not start or run, 2 wrong arguments or settings, 130 interrupted while
    it started. SIGINT may come in blocked (see `roost serve`): it is heard from here on."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for name in ("httpx", "uvicorn"):
        logging.getLogger(name).setLevel(logging.WARNING)
    options = {k: v for k, v in vars(_parse(arguments)).items() if v is not None}
    file = options.pop("config", None)
    try:
        config = load(file, options)
    except RoostError as error:
        print(f"roost: {error.message}", file=sys.stderr)
        return 2
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        _raise_file_limit()
        _leave_no_core()
        _make_directory(config.data_dir, "data directory")
        _make_directory(config.run_dir.parent, "directory of sockets")
        _own_parent(config.run_dir)
        _make_directory(config.run_dir, "directory of sockets")
        server = Server(config)
        uvloop.run(server.run())
    except RoostError as error:
        print(f"roost: {error.message}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"roost: {_explained(error, config)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("roost: interrupted", file=sys.stderr)
        return 130
    finally:
        with contextlib.suppress(OSError):  # it is not empty while another server, or an instance to adopt, uses it
            config.run_dir.rmdir()
    return 0
