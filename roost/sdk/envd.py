"""The daemon of a sandbox: programs, terminals, files. What it says is hostile.

The protocol is Connect with the JSON codec. A unary call is plain JSON. A stream is a row of envelopes: a flag byte, a
length of four bytes, a JSON message; flag 2 marks the last one, which has the error if there is one.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from roost.sdk.client import Client
from roost.sdk.errors import Failed, Unreachable
from roost.sdk.sandbox_api import ENVD_PORT, Sandbox, judge

MAX_MESSAGE = 16 << 20
_HEADER = 5
_END = 2
#: The daemon says something at least this often, so that silence means that the connection is dead.
_KEEPALIVE_S = 30
_SILENCE_S = 3.0 * _KEEPALIVE_S
#: For a call that has nothing to wait for but the program's input.
_UNARY_S = 300.0

#: Of programs that a signal ended, by the daemon's words.
_SIGNALS = {
    "hangup": 1, "interrupt": 2, "quit": 3, "illegal instruction": 4, "trace/breakpoint trap": 5, "aborted": 6,
    "bus error": 7, "floating point exception": 8, "killed": 9, "segmentation fault": 11, "broken pipe": 13,
    "alarm clock": 14, "terminated": 15,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Size:
    """Of a terminal, in characters."""

    columns: int
    rows: int


@dataclass(frozen=True, kw_only=True)
class Program:
    """What is to run, in a terminal of this size or with pipes."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str = ""
    terminal: Size | None = None
    stdin: bool = True


@dataclass(frozen=True, kw_only=True)
class Started:
    pid: int


@dataclass(frozen=True, kw_only=True)
class Output:
    stream: str  # "stdout", "stderr" or "pty"
    data: bytes


@dataclass(frozen=True, kw_only=True)
class Ended:
    code: int  # as a shell tells it: 128 and the signal's number for what a signal ended
    signal: str  # the signal in words, else ""


Event = Started | Output | Ended


class Envd:
    """One sandbox's daemon; programs and files are those of `user`, or of the sandbox's default one."""

    def __init__(self, client: Client, sandbox: Sandbox, user: str = "") -> None:
        self.client = client
        self._sandbox = sandbox
        self._user = user
        self._headers = sandbox.headers(client.server.url, ENVD_PORT)
        if user:
            self._headers["authorization"] = "Basic " + base64.b64encode(f"{user}:".encode()).decode()

    @contextmanager
    def twin(self) -> Iterator[Envd]:
        """The same daemon by connections of its own, for another thread."""
        with Client(self.client.server) as client:
            yield Envd(client, self._sandbox, self._user)

    # --- programs ----------------------------------------------------------------------------------------------------

    @contextmanager
    def start(self, program: Program) -> Iterator[Iterator[Event]]:
        """Start a program: its events, `Started` first and `Ended` last. It outlives who does not read to the end."""
        process: dict[str, Any] = {"cmd": program.argv[0], "args": program.argv[1:], "envs": dict(program.env)}
        if program.cwd:
            process["cwd"] = program.cwd
        message: dict[str, Any] = {"process": process, "stdin": program.stdin}
        if program.terminal is not None:
            message["pty"] = {"size": _size(program.terminal)}
        headers = {
            **self._headers,
            "content-type": "application/connect+json",
            "connect-protocol-version": "1",
            "keepalive-ping-interval": str(_KEEPALIVE_S),
        }
        with self.client.unsigned(
            "POST",
            "/process.Process/Start",
            content=envelope(json.dumps(message).encode()),
            headers=headers,
            streaming=True,
            silence_s=_SILENCE_S,
            judge=judge,
        ) as response:
            yield events(messages(response.iter_bytes()))

    def send_input(self, pid: int, data: bytes, *, terminal: bool) -> None:
        kind = "pty" if terminal else "stdin"
        encoded = base64.b64encode(data).decode()
        self._unary("process.Process/SendInput", {"process": {"pid": pid}, "input": {kind: encoded}})

    def close_stdin(self, pid: int) -> None:
        self._unary("process.Process/CloseStdin", {"process": {"pid": pid}})

    def resize(self, pid: int, size: Size) -> None:
        self._unary("process.Process/Update", {"process": {"pid": pid}, "pty": {"size": _size(size)}})

    def kill(self, pid: int) -> None:
        """With all that it has started."""
        self._unary("process.Process/SendSignal", {"process": {"pid": pid}, "signal": "SIGNAL_SIGKILL"})

    # --- files -------------------------------------------------------------------------------------------------------

    def kind(self, path: str) -> str:
        """ "file", "directory" or "other"; "" when there is nothing."""
        try:
            said = self._unary("filesystem.Filesystem/Stat", {"path": path})
        except Failed as error:
            if error.status == 404:
                return ""
            raise
        kinds = {"FILE_TYPE_FILE": "file", "FILE_TYPE_DIRECTORY": "directory"}
        entry = said.get("entry")
        return kinds.get(str(entry.get("type")) if isinstance(entry, dict) else "", "other")

    def upload(self, path: str, chunks: Iterable[bytes]) -> None:
        """Write a file, and the directories above it; nothing of it is there until all has arrived."""
        headers = {**self._headers, "content-type": "application/octet-stream"}
        with self.client.unsigned(
            "POST", "/files", query=self._query(path), content=chunks, headers=headers, judge=judge
        ):
            pass

    @contextmanager
    def download(self, path: str) -> Iterator[tuple[int | None, Iterator[bytes]]]:
        """A file's size, if it is known, and its bytes."""
        headers = {**self._headers, "accept-encoding": "identity"}
        with self.client.unsigned(
            "GET", "/files", query=self._query(path), headers=headers, streaming=True, silence_s=_SILENCE_S, judge=judge
        ) as response:
            size = response.headers.get("content-length", "")
            yield (int(size) if size.isascii() and size.isdigit() else None), response.iter_raw()

    def _query(self, path: str) -> dict[str, str]:
        return {"path": path, **({"username": self._user} if self._user else {})}

    def _unary(self, method: str, message: Mapping[str, Any]) -> dict[str, Any]:
        headers = {**self._headers, "content-type": "application/json", "connect-protocol-version": "1"}
        content = json.dumps(message).encode()
        with self.client.unsigned(
            "POST", f"/{method}", content=content, headers=headers, silence_s=_UNARY_S, judge=judge
        ) as response:
            return _object(response.content)


def envelope(message: bytes) -> bytes:
    return b"\0" + len(message).to_bytes(4, "big") + message


def messages(chunks: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """The messages of a stream. Raises Failed for its error, Unreachable when it ends before its end."""
    buffer = bytearray()
    for chunk in chunks:
        buffer += chunk
        while len(buffer) >= _HEADER:
            length = int.from_bytes(buffer[1:_HEADER], "big")
            if length > MAX_MESSAGE:
                raise _strange(f"a message of {length} bytes")
            if len(buffer) < _HEADER + length:
                break
            last, message = buffer[0] & _END, _object(bytes(buffer[_HEADER : _HEADER + length]))
            del buffer[: _HEADER + length]
            if last:
                error = message.get("error")
                if isinstance(error, dict):
                    text = str(error.get("message") or error.get("code"))
                    raise Failed(f"{text.rstrip('.')}.", code=str(error.get("code") or ""))
                return
            yield message
    raise Unreachable("The connection to the sandbox broke.")


def events(found: Iterator[dict[str, Any]]) -> Iterator[Event]:
    """What the messages say of a program. Raises Failed for one that makes no sense."""
    for message in found:
        event: Any = message.get("event")
        match event:
            case {"start": {"pid": int(pid)}}:
                yield Started(pid=pid)
            case {"data": {**streams}}:
                for stream in ("stdout", "stderr", "pty"):
                    if isinstance(text := streams.get(stream), str):
                        yield Output(stream=stream, data=_bytes(text))
            case {"end": dict(end)}:
                yield _ended(end)
            case {"keepalive": _}:
                pass
            case _:
                raise _strange("an event of no known kind")


def _ended(end: Mapping[str, Any]) -> Ended:
    code = end.get("exitCode", 0)  # a zero need not be written
    status = str(end.get("status") or "")
    if end.get("exited", True) and isinstance(code, int):
        return Ended(code=code & 0xFF, signal="")
    words = status.removeprefix("signal: ").partition(" (")[0]
    digits = words.removeprefix("signal ")
    number = int(digits) if digits.isascii() and digits.isdigit() else _SIGNALS.get(words, 0)
    return Ended(code=128 + min(number, 127) if number else 1, signal=words or "a signal")


def _size(size: Size) -> dict[str, int]:
    return {"cols": size.columns, "rows": size.rows}


def _bytes(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise _strange("output that is not base64") from error


def _object(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data or b"{}")
    except (ValueError, RecursionError) as error:
        raise _strange("a message that is not JSON") from error
    if not isinstance(value, dict):
        raise _strange("a message that is no object")
    return value


def _strange(what: str) -> Failed:
    return Failed(f"The sandbox answered with {what}.")
