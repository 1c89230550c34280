"""Calls that Python has no function for."""

from __future__ import annotations

import ctypes
import signal

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_libc = ctypes.CDLL(None)


def die_with_parent() -> None:
    """Be killed when the parent ends. Forgotten when the process changes its user."""
    _libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


def set_dumpable() -> None:
    """Own its files in /proc again, which a change of the user gives to root."""
    _libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)


def flush_c_streams() -> None:
    """Write out what C's standard streams hold back."""
    _libc.fflush(None)
