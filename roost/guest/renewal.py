"""What a copy of a Python process mends of itself, beside what it had open (see `descriptors`)."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

#: `signal` without its enumerations, which take a hundred times as long for all signals.
_signals: Any = importlib.import_module("_signal")
_ALL = _signals.valid_signals()


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """In the main thread: no handler of a signal, which is user code and may raise, is called meanwhile, unless another
    thread is there that takes the signal."""
    before = _signals.pthread_sigmask(signal.SIG_BLOCK, ())
    _signals.pthread_sigmask(signal.SIG_BLOCK, _ALL)
    try:
        yield
    finally:
        _signals.pthread_sigmask(signal.SIG_SETMASK, before)


def handle_signals() -> None:
    """The kernel knows of no handlers in a new process."""
    for number in range(1, signal.NSIG):
        handler = _signals.getsignal(number)
        if handler is not None:
            with contextlib.suppress(OSError, ValueError):
                _signals.signal(number, handler)


def prepare() -> None:
    """Have OpenSSL's generator made, if there is OpenSSL: it takes more than a millisecond, of each copy otherwise."""
    ssl: Any = sys.modules.get("ssl")
    if ssl is not None:
        with contextlib.suppress(Exception):  # whatever has that name
            ssl.RAND_status()


def reseed(*, forked: bool = False) -> None:
    """Of what is in memory. What a fork mends by itself goes by the process' number, which may be the original's.
    `forked`: Python's hooks for that have been called, of which `random` has one."""
    for name, renewed in _GENERATORS.items():
        library = sys.modules.get(name)
        if library is not None and not (forked and name == "random"):
            with contextlib.suppress(Exception):  # whatever version that is, or has that name
                renewed(library)


def _no_names(tempfile: Any) -> None:
    tempfile._name_sequence = None


_GENERATORS: dict[str, Callable[[Any], object]] = {
    "random": lambda random: random.seed(),
    "numpy": lambda numpy: numpy.random.seed(int.from_bytes(os.urandom(4))),
    "torch": lambda torch: torch.manual_seed(int.from_bytes(os.urandom(7))),
    "ssl": lambda ssl: ssl.RAND_add(os.urandom(64), 64.0),
    "tempfile": _no_names,
}
