"""How a process ended, in the words of Go's os/exec, which E2B's clients are used to. Pure."""

from __future__ import annotations

from dataclasses import dataclass

_SIGNALS = {
    1: "hangup",
    2: "interrupt",
    3: "quit",
    4: "illegal instruction",
    5: "trace/breakpoint trap",
    6: "aborted",
    7: "bus error",
    8: "floating point exception",
    9: "killed",
    10: "user defined signal 1",
    11: "segmentation fault",
    12: "user defined signal 2",
    13: "broken pipe",
    14: "alarm clock",
    15: "terminated",
    16: "stack fault",
    17: "child exited",
    18: "continued",
    19: "stopped (signal)",
    20: "stopped",
    21: "stopped (tty input)",
    22: "stopped (tty output)",
    23: "urgent I/O condition",
    24: "CPU time limit exceeded",
    25: "file size limit exceeded",
    26: "virtual timer expired",
    27: "profiling timer expired",
    28: "window changed",
    29: "I/O possible",
    30: "power failure",
    31: "bad system call",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Ending:
    """`code` is -1 and `exited` false for a process that a signal ended. `error` is None for a success."""

    code: int
    exited: bool
    status: str
    error: str | None


def ending_of(code: int | None, signal: int | None, core: bool) -> Ending:
    if signal is not None:
        text = f"signal: {_SIGNALS.get(signal, f'signal {signal}')}{' (core dumped)' if core else ''}"
        return Ending(code=-1, exited=False, status=text, error=text)
    text = f"exit status {code}"
    return Ending(code=code or 0, exited=True, status=text, error=text if code else None)
