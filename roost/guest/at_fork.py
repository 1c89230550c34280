"""What libraries have registered for a fork, and what of it is left out in a copy of a process that has one thread.

Most of it makes locks anew that another thread may have held. Where there was none, nobody held them; but each function
that runs writes to a dozen pages of memory, which the copy shared until then.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

Hook = Callable[[], object]


class AtFork:
    """Of this process, and of what is forked from it."""

    def __init__(self) -> None:
        self._alone = False  # this stands still, or is a copy of what does, and has one thread
        self._left_out: list[tuple[Hook, Hook | None]] = []

    def before(self) -> None:
        """As before a fork, in a process that is going to be copied."""
        self._alone = len(sys._current_frames()) == 1
        ctypes.pythonapi.PyOS_BeforeFork()

    def after_in_original(self) -> None:
        """It goes on."""
        ctypes.pythonapi.PyOS_AfterFork_Parent()
        self._alone = False

    def arrange(self) -> None:
        """Once, in the zygote, before anybody's code has registered anything. Without effect where this interpreter
        keeps in another way what is registered."""
        known = list(_known())
        for found in gc.get_referrers(threading._after_fork):  # type: ignore[attr-defined]
            if type(found) is list and not self._left_out:
                self._left_out = [pair for pair in known if pair[0] in found]
                rest = [hook for hook in found if all(hook != pair[0] for pair in self._left_out)]
                found[:] = [self._in_child, *rest]

    def _in_child(self) -> None:
        alone, self._alone = self._alone, False
        for hook, instead in self._left_out:
            try:
                if not alone:
                    hook()
                elif instead is not None:
                    instead()
            except Exception:  # as the interpreter has it: it is reported, and those behind it are called
                kind, value, trace = sys.exc_info()
                told = SimpleNamespace(exc_type=kind, exc_value=value, exc_traceback=trace, err_msg=None, object=hook)
                sys.unraisablehook(told)


def _known() -> Iterator[tuple[Hook, Hook | None]]:
    """Hooks of a child, with what takes their place in a copy: the end of a lock that was taken before."""
    pool: Any = sys.modules.get("concurrent.futures.thread")
    ours: Any = logging
    release = ours._releaseLock if hasattr(ours, "_releaseLock") else ours._lock.release  # since Python 3.13
    yield threading._after_fork, None  # type: ignore[attr-defined]
    yield ours._after_at_fork_child_reinit_locks, release
    if pool is not None:
        yield pool._global_shutdown_lock._at_fork_reinit, pool._global_shutdown_lock.release


#: The process's own.
at_fork = AtFork()
