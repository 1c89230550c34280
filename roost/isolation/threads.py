"""Work on a thread that nobody leaves behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def on_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """`asyncio.to_thread`, but a caller that is cancelled goes when the work has ended: what it works with is about to
    be closed, and a descriptor's number would be another file's."""
    running = asyncio.ensure_future(asyncio.to_thread(work, *args, **kwargs))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        raise


def close_on_thread(fd: int) -> None:
    """Close a descriptor whose end frees more than itself: the blocks of a file without a name, a file system. That
    takes milliseconds, for which nobody waits."""
    asyncio.get_running_loop().run_in_executor(None, os.close, fd)


def remove_on_thread(path: Path) -> None:
    """Its name is gone at once, what it has of the disk in a moment; also after a SIGKILL. Raises OSError."""
    fd = -1
    with contextlib.suppress(OSError):  # it is not there, or this process may open no more
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        path.unlink(missing_ok=True)
    finally:
        if fd >= 0:
            close_on_thread(fd)
