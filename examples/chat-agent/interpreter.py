"""The session's Python interpreter: a process of its own whose variables live on between calls."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

SCRIPT = Path(__file__).with_name("interpreter_process.py")
INTERRUPT_GRACE_S = 2.0


class Interpreter:
    """Runs code one piece at a time. Starts by itself at the first call and again after it has died.

    `directory` is the working directory; `packages` is where imports are looked up last. Of the output, the first
    and the last `output_bytes // 2` are kept.
    """

    def __init__(
        self, *, directory: Path, packages: Path, timeout_s: float = 120.0, output_bytes: int = 64 << 10
    ) -> None:
        self._directory = directory
        self._packages = packages
        self._timeout_s = timeout_s
        self._output_bytes = output_bytes
        self._lock = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None
        self._unread = b""
        self._running: bytes | None = None  # the end marker of code that has not finished

    async def run(self, code: str) -> str:
        """Run code; return what it printed (stdout, stderr and traceback in order) and its last expression's value."""
        async with self._lock:
            if self._running and not await self._interrupt():
                await self._kill()
            process = await self._started()
            assert process.stdin
            self._running = end = os.urandom(16).hex().encode()
            process.stdin.write(json.dumps([code, end.decode()]).encode() + b"\n")
            output = Output(self._output_bytes)
            note = ""
            try:
                async with asyncio.timeout(self._timeout_s):
                    await self._read_to(end, output)
            except TimeoutError:
                kept = await self._interrupt(output)
                note = f"[stopped after {self._timeout_s:g} s; variables are {'kept' if kept else 'lost'}]"
                if not kept:
                    await self._kill()
            except EOFError:
                await self._kill()
                note = "[the interpreter ended; variables are lost]"
            except asyncio.CancelledError:
                # Nobody waits for the result any more. The next call waits for the end of this one.
                self._signal(signal.SIGINT)
                raise
            return "\n".join(part for part in (output.text().rstrip("\n"), note) if part)

    async def close(self) -> None:
        """End the process and everything it started in its process group."""
        await self._kill()

    async def _started(self) -> asyncio.subprocess.Process:
        if self._process is None:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._unread = b""
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, str(SCRIPT), str(self._packages),
                cwd=self._directory, start_new_session=True, env={**os.environ, "PYTHONIOENCODING": "utf-8"},
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
            )  # fmt: skip
        return self._process

    async def _read_to(self, end: bytes, output: Output) -> None:
        """Move output up to the marker. Raises EOFError when the process ended before it."""
        assert self._process and self._process.stdout
        while (at := self._unread.find(end)) < 0:
            safe = max(0, len(self._unread) - len(end))  # what follows may be the beginning of the marker
            output.add(self._unread[:safe])
            self._unread = self._unread[safe:]
            data = await self._process.stdout.read(1 << 16)
            if not data:
                output.add(self._unread)
                raise EOFError
            self._unread += data
        output.add(self._unread[:at])
        self._unread = self._unread[at + len(end) :]
        self._running = None

    async def _interrupt(self, output: Output | None = None) -> bool:
        """Raise KeyboardInterrupt in the running code; whether it ended upon that."""
        assert self._running
        self._signal(signal.SIGINT)
        with suppress(TimeoutError, EOFError):
            async with asyncio.timeout(INTERRUPT_GRACE_S):
                await self._read_to(self._running, output or Output(0))
                return True
        return False

    def _signal(self, number: signal.Signals) -> None:
        if self._process and self._process.returncode is None:
            self._process.send_signal(number)

    async def _kill(self) -> None:
        process, self._process, self._running = self._process, None, None
        if process is not None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


class Output:
    """Bytes, of which only the beginning and the end are kept."""

    def __init__(self, limit: int) -> None:
        self._half = limit // 2
        self._head = bytearray()
        self._tail = bytearray()
        self._dropped = 0

    def add(self, data: bytes) -> None:
        room = self._half - len(self._head)
        self._head += data[:room]
        self._tail += data[room:]
        excess = len(self._tail) - self._half
        if excess > 0:
            del self._tail[:excess]
            self._dropped += excess

    def text(self) -> str:
        gap = f"\n[... {self._dropped} bytes left out ...]\n".encode() if self._dropped else b""
        return bytes(self._head + gap + self._tail).decode(errors="replace")
