"""Files and directories between this machine and a sandbox, as streams: nothing is collected, whatever its size."""

from __future__ import annotations

import contextlib
import os
import posixpath
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from roost.sdk.envd import Envd
from roost.sdk.errors import CliError, Failed, UsageError
from roost.sdk.programs import Ended, Event, Output, Program, Started
from roost.sdk.running import CHUNK, Input, Wake, run
from roost.sdk.trees import Unpacker, pack

_REMOTE = re.compile(r"([a-z0-9]{1,20}):(.*)", re.DOTALL)
_MOST_WORDS = 2000

#: `(bytes so far, of how many)`; None for what is not known.
Progress = Callable[[int, int | None], None]
_UNPACK = 'mkdir -p -- "$1" && exec tar -xf - -C "$1"'


@dataclass(frozen=True, kw_only=True)
class Place:
    """One side of a copy: in the sandbox whose id begins so, or here."""

    sandbox: str | None
    path: str


def place(text: str) -> Place:
    """`ID:path`, or a path here; one that has a colon is told by a slash before it, as in `./a:b`."""
    match = _REMOTE.fullmatch(text)
    return Place(sandbox=match[1], path=match[2]) if match else Place(sandbox=None, path=text)


def send(envd: Envd, source: Path, target: str, progress: Progress) -> str:
    """Copy into the sandbox; where it is there. A directory that exists takes it under its own name."""
    if not source.exists():
        raise UsageError(f"{source} does not exist.")
    target = _destination(target, source.resolve().name, envd.kind(target or "."))
    if source.is_dir():
        _send_tree(envd, source, target, progress)
    else:
        _send_file(envd, source, target, progress)
    return target


def fetch(envd: Envd, source: str, target: str, progress: Progress) -> tuple[Path, list[str]]:
    """Copy out of the sandbox; where it is here, and what of a directory was not taken."""
    kind = envd.kind(source)
    if not kind:
        raise Failed(f"{source} does not exist in the sandbox.", status=404)
    local = Path(target)
    there = "directory" if local.is_dir() else "file" if local.exists() else ""
    name = posixpath.basename(posixpath.normpath(source))
    path = Path(_destination(target, name if name not in ("", ".", "..", "/") else "sandbox", there))
    if kind == "directory":
        return path, _fetch_tree(envd, source, path, progress)
    _fetch_file(envd, source, path, progress)
    return path, []


def _destination(target: str, name: str, kind: str) -> str:
    if kind == "directory" or target.endswith("/") or not target:
        return f"{target.rstrip('/') or ('/' if target else '.')}/{name}".replace("//", "/")
    return target


def _send_file(envd: Envd, source: Path, target: str, progress: Progress) -> None:
    with source.open("rb") as file:
        status = os.fstat(file.fileno())

        def chunks() -> Iterator[bytes]:
            done = 0
            while data := file.read(CHUNK):
                yield data
                done += len(data)
                progress(done, status.st_size)

        envd.upload(target, chunks())
    if status.st_mode & 0o111:
        _whole(envd, ("chmod", "a+x", "--", target))


def _send_tree(envd: Envd, source: Path, target: str, progress: Progress) -> None:
    def feed(given: Input, wake: Wake) -> None:
        pack(source, _Counted(given, progress))

    words = _Words()
    with Wake() as wake:
        ended = run(envd, Program(argv=("/bin/sh", "-c", _UNPACK, "sh", target)), feed, words.add, wake)
    words.check(ended, "could not be unpacked in the sandbox")


def _fetch_file(envd: Envd, source: str, path: Path, progress: Progress) -> None:
    """Beside its place first: what is there stays until the new one is whole."""
    path = Path(os.path.realpath(path))
    if not path.parent.is_dir():
        raise UsageError(f"{path.parent} is not a directory here.")
    if path.exists() and not path.is_file():  # a pipe, /dev/stdout
        with path.open("wb") as file:
            _receive(envd, source, file, progress)
        return
    fd, temporary = tempfile.mkstemp(prefix=f".{path.name[:100]}.", dir=path.parent)
    try:
        with os.fdopen(fd, "wb") as file:
            _receive(envd, source, file, progress)
            umask = os.umask(0)
            os.umask(umask)
            os.fchmod(fd, 0o666 & ~umask)
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise


def _receive(envd: Envd, source: str, file: IO[bytes], progress: Progress) -> None:
    with envd.download(source) as (size, chunks):
        done = 0
        for data in chunks:
            file.write(data)
            done += len(data)
            progress(done, size)
        if size is not None and done != size:
            raise Failed(f"Only {done} of {size} bytes of {source} have come.")


def _fetch_tree(envd: Envd, source: str, path: Path, progress: Progress) -> list[str]:
    unpacker = Unpacker(path)
    program = Program(argv=("tar", "-cf", "-", "-C", source, "."), stdin=False)
    with envd.start(program) as events:
        stream = _Archive(events, progress)
        try:
            unpacker.unpack(stream)
            stream.finish()
        except BaseException:
            stream.kill(envd)
            raise
    return unpacker.skipped


class _Counted:
    def __init__(self, given: Input, progress: Progress) -> None:
        self._given = given
        self._progress = progress
        self._done = 0

    def write(self, data: bytes) -> int:
        self._given.write(data)
        self._done += len(data)
        self._progress(self._done, None)
        return len(data)


class _Words:
    """The end of what a helper program in the sandbox says."""

    def __init__(self) -> None:
        self._text = ""

    def add(self, output: Output) -> None:
        self._text = (self._text + output.data.decode(errors="replace"))[-_MOST_WORDS:]

    def check(self, ended: Ended, what: str) -> None:
        if ended.code:
            lines = self._text.strip().splitlines()
            why = lines[-1] if lines else ended.signal or f"exit code {ended.code}"
            raise Failed(f"The directory {what}: {why.rstrip('.')}.")


class _Archive:
    """What `tar` writes, to be read piece by piece; the sandbox waits meanwhile."""

    def __init__(self, events: Iterator[Event], progress: Progress) -> None:
        self._events = events
        self._progress = progress
        self._buffer = bytearray()
        self._words = _Words()
        self._pid: int | None = None
        self._ended: Ended | None = None
        self._done = 0

    def read(self, size: int) -> bytes:
        while len(self._buffer) < size and self._next():
            pass
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        self._done += len(data)
        self._progress(self._done, None)
        return data

    def finish(self) -> None:
        """Read on to the end of the program. Raises Failed if it failed."""
        while self._next():
            self._buffer.clear()
        if self._ended is not None:
            self._words.check(self._ended, "could not be read in the sandbox")

    def kill(self, envd: Envd) -> None:
        """Where it has not ended by itself."""
        if self._pid is not None and self._ended is None:
            with contextlib.suppress(CliError):
                envd.kill(self._pid)

    def _next(self) -> bool:
        event = next(self._events, None)
        match event:
            case Started(pid=pid):
                self._pid = pid
            case Output(stream="stdout", data=data):
                self._buffer += data
            case Output():
                self._words.add(event)
            case Ended():
                self._ended = event
        return event is not None


def _whole(envd: Envd, argv: tuple[str, ...]) -> None:
    words = _Words()
    with Wake() as wake:
        ended = run(envd, Program(argv=argv, stdin=False), None, words.add, wake)
    if ended.code:
        words.check(ended, "could not be made executable")
