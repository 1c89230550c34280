"""The daemon of a sandbox: programs, terminals, files. What it says is hostile."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from roost.sdk.client import Client
from roost.sdk.errors import Failed
from roost.sdk.programs import Event, Program, Size, envelope, events, messages, parsed
from roost.sdk.sandbox_api import ENVD_PORT, Sandbox, judge

#: The daemon says something at least this often, so that silence means that the connection is dead.
_KEEPALIVE_S = 30
_SILENCE_S = 3.0 * _KEEPALIVE_S
#: For a call that has nothing to wait for but the program's input.
_UNARY_S = 300.0


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
            return parsed(response.content)


def _size(size: Size) -> dict[str, int]:
    return {"cols": size.columns, "rows": size.rows}
