"""One task that is held at a stop, and what it is made to do there."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Sequence

from roost.isolation.tracing import ptrace
from roost.isolation.tracing.x86_64 import CALLS, SYSCALL, Call, Registers, assemble

# An area: one system call, a program, and more.
_PROGRAM_AT = 64
EXTRA = 16 << 10  # where there is room for what a program's data points to
MOST_EXTRA = 32 << 10  # as much as a filter of system calls can have
AREA = EXTRA + MOST_EXTRA  # its size
_TRIES, _PAUSE_S = 1000, 0.001
_READ_WRITE_EXECUTE, _PRIVATE_ANONYMOUS = 7, 0x22


class Refused(Exception):
    """It can't be done, for the reason that the text gives. Nothing is left of it."""


class Tracee:
    """Held by this process. `insn`: where a system call is in its memory."""

    def __init__(self, pid: int, insn: int, base: Registers) -> None:
        self.pid = pid
        self.insn = insn
        self.base = base
        self._memory = -1

    @classmethod
    def seize(cls, pid: int, number: int) -> Tracee:
        """Hold a task that waits in the system call `number`, or soon does. Raises OSError, Refused."""
        ptrace.seize(pid, ptrace.OPTIONS)
        try:
            base = _stopped(pid)
            for _ in range(_TRIES):
                if base.call == number:
                    break
                ptrace.resume(pid)
                time.sleep(_PAUSE_S)
                base = _stopped(pid)
            else:
                raise Refused("it does not wait where it is to be held")
            held = cls(pid, base.instruction - len(SYSCALL), base)
            held.check_call()
        except BaseException:
            end(pid)
            raise
        return held

    def check_call(self) -> None:
        """Raises Refused unless there is a system call where one was."""
        try:
            found = self.read(self.insn, len(SYSCALL))
        except OSError:
            found = b""
        if found != SYSCALL:
            raise Refused("its code is not what it was")

    def read(self, address: int, size: int) -> bytes:
        return os.pread(self._mem(), size, address)

    def write(self, address: int, data: bytes) -> None:
        while data:
            done = os.pwrite(self._mem(), data, address)
            address, data = address + done, data[done:]

    def _mem(self) -> int:
        if self._memory < 0:
            self._memory = os.open(f"/proc/{self.pid}/mem", os.O_RDWR | os.O_CLOEXEC)
        return self._memory

    def call(self, name: str, *arguments: int) -> int:
        """Make one system call, and execute nothing else whatever is in its memory. Raises OSError, Refused."""
        return self._call(name, arguments)[0]

    def branch(self, name: str, *arguments: int) -> int:
        """Make one call that makes a process, which is held then; its id as the tracer knows it."""
        return self.branch_known(name, *arguments)[0]

    def branch_known(self, name: str, *arguments: int) -> tuple[int, int]:
        """The same; its id as the tracer knows it, and as this task does."""
        result, child = self._call(name, arguments)
        if not child:
            raise Refused(f"{name} made no process ({result})")
        return child, result

    def _call(self, name: str, arguments: Sequence[int]) -> tuple[int, int]:
        ptrace.set_registers(self.pid, self.base.calling(self.insn, CALLS[name], arguments))
        child = 0
        try:
            while True:
                # Not PTRACE_SYSCALL: if there were another instruction, it would go on with what follows.
                ptrace.step(self.pid)
                number, event = await_stop(self.pid)
                if event in ptrace.CHILD_EVENTS:
                    child = ptrace.event_message(self.pid)
                    await_stop(child)
                elif number == signal.SIGTRAP and not event:
                    break
                else:
                    raise Refused(f"{name} was interrupted by signal {number}")
            after = Registers()
            ptrace.registers(self.pid, after)
            if after.instruction != self.insn + len(SYSCALL):
                raise Refused("its code is not what it was")
            if after.result < 0:
                raise OSError(-after.result, f"{name}: {os.strerror(-after.result)}")
        except BaseException:
            if child:
                end(child)
            raise
        return after.result, child

    def map_area(self) -> int:
        """Memory for `run`, in a task whose memory no other one runs in; it begins with a system call, for `call`."""
        area = self.call("mmap", 0, AREA, _READ_WRITE_EXECUTE, _PRIVATE_ANONYMOUS, -1, 0)
        self.write(area, SYSCALL)
        return area

    def unmap_area(self) -> None:
        """Of a task that is `within` it."""
        self.call("munmap", self.insn, AREA)

    def within(self, area: int) -> Tracee:
        """The same task; what it is made to do, it does in its area. The other is not used meanwhile."""
        return Tracee(self.pid, area, self.base)

    def run(self, calls: Sequence[Call]) -> tuple[list[int], list[int]]:
        """Make many calls at once, within its area: their results, and the processes that they made, which are held.

        Raises Refused with the call that failed.
        """
        address = self.insn + _PROGRAM_AT
        program = assemble(address, tuple(calls))
        if len(program.image) > EXTRA - _PROGRAM_AT:
            raise Refused("what it would have to do is too long")
        self.write(address, program.image)
        ptrace.set_registers(self.pid, self.base.at(program.start))
        made: list[int] = []
        try:
            while True:
                ptrace.resume(self.pid)
                number, event = await_stop(self.pid)
                if event in ptrace.CHILD_EVENTS:
                    made.append(ptrace.event_message(self.pid))
                    await_stop(made[-1])
                elif number == signal.SIGTRAP and not event:
                    break
                else:
                    raise Refused(f"it was interrupted by signal {number}")
            after = Registers()
            ptrace.registers(self.pid, after)
            results = program.results(self.read(address, program.results_size))
            if after.instruction != program.done:
                failed, result = calls[len(results) - 1], results[-1]
                raise Refused(f"{failed.name}: {os.strerror(-result) if result < 0 else result}")
        except BaseException:
            for pid in made:
                end(pid)
            raise
        return results, made

    def close(self) -> None:
        """Forget it; the task stays as it is."""
        if self._memory >= 0:
            os.close(self._memory)
            self._memory = -1


def _stopped(pid: int) -> Registers:
    """Those of a task that is stopped now, wherever it is."""
    ptrace.interrupt(pid)
    await_stop(pid)
    found = Registers()
    ptrace.registers(pid, found)
    return found


def await_stop(pid: int) -> tuple[int, int]:
    """(signal, event) of its next stop. Raises Refused if it ends instead."""
    _, status = os.waitpid(pid, ptrace.WAIT_ALL)
    if not os.WIFSTOPPED(status):
        raise Refused("it has ended")
    return os.WSTOPSIG(status), status >> 16


def end(pid: int) -> None:
    """Kill a task that is held, and take note of its end. Nothing happens where that was done before: its number may be
    another's."""
    wait = ptrace.WAIT_ALL | os.WNOHANG
    while True:
        try:
            found, status = os.waitpid(pid, wait)
        except ChildProcessError:
            return
        if found and not os.WIFSTOPPED(status):
            return
        os.kill(pid, signal.SIGKILL)
        wait = ptrace.WAIT_ALL


def let_go(pid: int) -> bool:
    """Hold a process no more, which goes on as if it never had been. False where it does not stand yet: it is made to,
    and is to be let go again when it stirs."""
    try:
        found, status = os.waitpid(pid, ptrace.WAIT_ALL | os.WNOHANG)
    except ChildProcessError:
        return True
    if found and not os.WIFSTOPPED(status):
        return True
    try:
        ptrace.detach(pid, os.WSTOPSIG(status) if found and not status >> 16 else 0)
    except OSError:
        with contextlib.suppress(OSError):  # it just ends, which stirs too
            ptrace.interrupt(pid)
        return False
    return True
