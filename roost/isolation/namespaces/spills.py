"""Kept branches on disk: each is an image while its memory is not wanted, and a branch again when it is.

An image is a file without a name. It is of use only to the tracer that knows the rest of the branch, and goes with this
process; nothing is left to be found by the next one.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from roost.isolation.driver import MemoryLost
from roost.isolation.futures import seen
from roost.isolation.images import storage
from roost.isolation.namespaces import wire
from roost.isolation.namespaces.held import Held
from roost.isolation.tracing import images
from roost.isolation.tracing.memory import Unfit
from roost.model.errors import Unavailable

T = TypeVar("T")

_AT_ONCE = 2


class Spills:
    """What writes and reads images, in threads of its own: no other work of the server waits for a large one."""

    def __init__(self, shelf: Callable[[], AbstractContextManager[list[int]]]) -> None:
        """`shelf`: as the method of that name, without its errors."""
        self._shelf = shelf
        self._pool = ThreadPoolExecutor(max_workers=_AT_ONCE, thread_name_prefix="roost-spill")
        self._closing = threading.Event()

    @contextmanager
    def shelf(self) -> Iterator[list[int]]:
        """Descriptors of where branches are that outlive their room. Raises Unavailable."""
        with ExitStack() as opened:
            try:
                into = opened.enter_context(self._shelf())
            except OSError as error:  # as where this process may open no more
                raise Unavailable(f"its memory can't be kept: {error.strerror}") from error
            yield into

    async def write(self, held: Held, directory: Path, most: int) -> int:
        """A descriptor of the image of a branch, which is used by nobody meanwhile; the branch stays. Raises
        StorageFull, Unavailable."""
        message, fds = await held.open("look")
        begin, end = message["area"]
        with storage(directory):
            return await self._run(lambda: self._write(fds, (begin, end), directory, most), fds)

    def _write(self, fds: Sequence[int], area: tuple[int, int], directory: Path, most: int) -> int:
        smaps, pagemap, memory, base_smaps, base_pagemap = fds
        source = images.Source(smaps, pagemap, memory, base_smaps, base_pagemap, area)
        image = os.open(directory, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
        try:
            images.write(source, image, most, self._closing.is_set)
        except BaseException:
            os.close(image)
            raise
        return image

    async def read(self, held: Held, image: int) -> Held:
        """The branch again. Raises MemoryLost, Unavailable, and it is not there then."""
        image = os.dup(image)  # it may be dropped meanwhile
        try:
            with self.shelf() as into:
                message, opened = await held.open("unshelve", [*into, image])
            if "lost" in message:
                raise MemoryLost(f"its image can't be used: {message['lost']}")
        except BaseException:
            os.close(image)
            raise
        try:
            await self._run(lambda: images.restore(image, opened[0], self._closing.is_set), [image, *opened])
        except (images.Corrupt, OSError, Unavailable) as error:
            await held.shelve()
            match error:
                case images.Corrupt():
                    raise MemoryLost(f"its image can't be used: {error}") from error
                case OSError():  # as where its group may have no more memory
                    raise Unavailable(f"its memory can't be written: {error.strerror}") from error
                case _:
                    raise
        return replace(held, process=message["process"])

    async def _run(self, work: Callable[[], T], fds: Sequence[int]) -> T:
        """In a thread, after which `fds` are closed. Raises Unavailable for what is Unfit."""
        future = self._pool.submit(work)
        future.add_done_callback(lambda _: wire.close_all(fds))
        try:
            return await asyncio.wrap_future(future)
        except Unfit as error:
            raise Unavailable(str(error)) from error

    def close(self) -> None:
        """What is under way fails."""
        self._closing.set()
        self._pool.shutdown(wait=False)


class Kept:
    """A branch that is kept, in memory or on disk. Who has it moved sees to it that nobody uses it meanwhile.

    It may be dropped at any time. What has begun goes on to its end, whoever waits for that: else the tracer would know
    otherwise than this where it is.
    """

    def __init__(self, held: Held, spills: Spills) -> None:
        self._held = held
        self._spills = spills
        self._image = -1
        self._dropped = False
        self._moving = asyncio.Lock()

    async def spill(self, directory: Path, most: int) -> int:
        """As `LiveCopy.spill`."""
        return await _to_its_end(self._spill(directory, most))

    async def _spill(self, directory: Path, most: int) -> int:
        async with self._moving:
            image = await self._spills.write(self._held, directory, most)
            try:
                await self._held.ask("shelve")
            except BaseException:
                os.close(image)
                raise
            self._image = image
            if self._dropped:
                self._forget_image()
                raise Unavailable("it was dropped")
            return os.fstat(image).st_size

    async def recall(self) -> None:
        """As `LiveCopy.recall`."""
        await _to_its_end(self._recall())

    async def _recall(self) -> None:
        async with self._moving:
            if self._image >= 0:
                self._held = await self._spills.read(self._held, self._image)
                self._forget_image()

    def _forget_image(self) -> None:
        image, self._image = self._image, -1
        if image >= 0:
            os.close(image)

    async def drop(self) -> None:
        """Idempotent."""
        self._dropped = True
        self._forget_image()
        await self._held.drop()

    async def alive(self) -> bool:
        return await self._held.alive()

    async def measure(self) -> int:
        """Of an image, nothing."""
        return 0 if self._image >= 0 else await self._held.measure()


async def _to_its_end(work: Coroutine[Any, Any, T]) -> T:
    task = asyncio.ensure_future(work)
    task.add_done_callback(seen)
    return await asyncio.shield(task)
