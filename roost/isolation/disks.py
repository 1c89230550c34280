"""Disks of rooms and volumes: sparse ext4 images on loop devices, so that a size is a hard limit with a clear ENOSPC.

No mount is made in the host's tree: a disk is held as a detached mount's descriptor, and the kernel releases the loop
device when the last mount of it has gone, also after a SIGKILL.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from roost.isolation import images, linux, loops
from roost.isolation.drafts import Draft, Drafts
from roost.isolation.driver import MOST_LOWER
from roost.isolation.images import storage
from roost.isolation.threads import close_on_thread, on_thread, remove_on_thread
from roost.model.errors import Unavailable

T = TypeVar("T")

_RELEASE_TIMEOUT_S = 10.0
#: Without a journal: an image that was not unmounted cleanly is checked before its next use. `noinit_itable`: the
#: kernel would otherwise fill each image's inode tables in the background.
_OPTIONS: dict[str, str | None] = {"noinit_itable": None, "errors": "remount-ro"}
_READ_ONLY: dict[str, str | None] = {"ro": None}
_ATTRIBUTES = linux.MOUNT_ATTR_NOSUID | linux.MOUNT_ATTR_NODEV | linux.MOUNT_ATTR_NOATIME
_NAMELESS = ".nameless"
_MAKING = ".making"  # blank images that are not complete
_MOST_SHARED = 64  # images that are kept attached for the next room


class _InUse(Unavailable):
    """Something else has the image attached."""


class Disk:
    """An attached disk: the descriptor of a detached mount. The loop device lives as long as a mount of it does.

    `image_fd`: of its image, where that has no name.
    """

    def __init__(self, device: str, mount_fd: int, options: dict[str, str | None], image_fd: int = -1) -> None:
        self.device = device
        self._mount_fd = mount_fd
        self._options = options
        self._image_fd = image_fd

    def used_bytes(self) -> int:
        """Of one without a name: what it takes of the host's disk, and is going to when all that was written is there;
        0 once it was given up. Also of files that were removed: who has it mounted may be hostile."""
        if self._image_fd < 0:
            return 0
        files = os.fstatvfs(self._mount_fd)
        return max(os.fstat(self._image_fd).st_blocks * 512, (files.f_blocks - files.f_bfree) * files.f_frsize)

    @property
    def mount_fd(self) -> int:
        """The mount itself; whoever moves or idmaps it does so for every holder of the descriptor."""
        return self._mount_fd

    def clone(self) -> int:
        """Another detached mount of the same file system, the caller's to close."""
        return linux.new_mount("ext4", {"source": self.device, **self._options}, _ATTRIBUTES)

    def close(self) -> None:
        """Give up the descriptor. The file system is unmounted when no room has it either."""
        self._forget_image()
        fd, self._mount_fd = self._mount_fd, -1
        if fd >= 0:
            os.close(fd)

    def let_go(self) -> None:
        """The same, without a wait for what that frees."""
        self._forget_image()
        fd, self._mount_fd = self._mount_fd, -1
        if fd >= 0:
            close_on_thread(fd)

    def _forget_image(self) -> None:
        """Before the mount: what frees its blocks is the end of the loop device, for which nobody waits."""
        fd, self._image_fd = self._image_fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Disk:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Nameless:
    """An empty disk that is attached before it is known whose it is going to be."""

    def __init__(self, disk: Disk, image: Path) -> None:
        self._disk = disk
        self._image = image

    @property
    def mount_fd(self) -> int:
        """As `Disk.mount_fd`."""
        return self._disk.mount_fd

    def name(self, path: Path) -> Disk:
        """Its image is `path` from now on, where there must be none. If that fails it is gone.

        Raises StorageFull, Unavailable."""
        try:
            with storage(path):
                self._image.rename(path)
        except BaseException:
            self.discard()
            raise
        return self._disk

    def discard(self) -> None:
        """Nobody wants it."""
        self._disk.close()
        with contextlib.suppress(OSError):
            self._image.unlink()


class Disks:
    """Makes and attaches disk images. `directory` keeps a blank image per size, and scratch images while they live."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._blank_locks: dict[int, asyncio.Lock] = {}
        self._drafts = Drafts()
        self._shared: dict[tuple[int, int], Disk] = {}
        self._sharing = asyncio.Lock()

    def close(self) -> None:
        """Give up what is kept attached. Rooms keep what they have."""
        while self._shared:
            self._shared.popitem()[1].close()
        self._drafts.close()
        loops.unbound()

    async def create(self, path: Path, size_mb: int) -> None:
        """Make an empty image at `path`, which must not exist.

        Raises FileExistsError, StorageFull, or Unavailable if mkfs.ext4 is missing or fails.
        """
        await on_thread(_copy_blank, await self._blank(size_mb), path)

    async def attach(self, path: Path, *, timeout_s: float = _RELEASE_TIMEOUT_S) -> Disk:
        """Attach the image at `path`. A former user of it may take `timeout_s` to release it.

        An image that was not unmounted cleanly is checked first. Raises Unavailable with the reason.
        """
        with storage(path):
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            await _lock(fd, path, timeout_s)
            if not images.is_clean(fd):
                await images.check(path)
            return await _in_thread(_attach_and_close, os.dup(fd))
        finally:
            os.close(fd)

    async def mount(self, path: Path, *, timeout_s: float = _RELEASE_TIMEOUT_S) -> int:
        """A detached mount of an image that several rooms may write to, the caller's to close.

        The kernel keeps the image attached while any mount of it lives, whoever attached it. Raises Unavailable.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            with contextlib.suppress(_InUse):
                return (await self.attach(path, timeout_s=0)).mount_fd
            if (mount_fd := _mount_again(path)) is not None:
                return mount_fd
            if time.monotonic() >= deadline:
                raise Unavailable(f"The disk image {path} is in use, and cannot be shared.")
            await asyncio.sleep(0.005)

    async def lower(self, path: Path) -> int:
        """A detached read-only mount of an image that nobody writes, the caller's to close.

        The image is attached once, and kept for those who come next. Raises Unavailable.
        """
        with storage(path):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            about = os.fstat(fd)
            async with self._sharing:
                key = (about.st_dev, about.st_ino)
                disk = self._shared.pop(key, None)
                if disk is None:
                    await _lock(fd, path, _RELEASE_TIMEOUT_S, fcntl.LOCK_SH)
                    disk = await _in_thread(_attach_and_close, os.dup(fd))
                self._shared[key] = disk  # the last one used is the last one given up
                while len(self._shared) > _MOST_SHARED:
                    self._shared.pop(next(iter(self._shared))).let_go()
                with storage(path):
                    return disk.clone()
        finally:
            os.close(fd)

    def discard(self, path: Path) -> None:
        """This image is wanted no more, and no room uses it. Raises OSError."""
        remove_on_thread(path)

    def forget(self, path: Path) -> None:
        """Do not keep this image attached any longer, as it is about to be removed. Rooms keep what they have."""
        with contextlib.suppress(FileNotFoundError):
            about = path.stat()
            if disk := self._shared.pop((about.st_dev, about.st_ino), None):
                disk.let_go()

    async def draft(self, layer: Path, target: Path) -> Draft:
        """Copy an image as it is now; the copy comes to be at `target` when it is published.

        Whoever could write to the image stands still until this returns. Raises StorageFull, Unavailable.
        """
        with storage(layer):
            fd = os.open(layer, os.O_RDONLY | os.O_CLOEXEC)
        try:
            mount_fd = None
            try:
                await _lock(fd, layer, 0)  # nothing has it attached: keep it so
                if not images.is_clean(fd):
                    await images.check(layer)
                await _lock(fd, layer, _RELEASE_TIMEOUT_S, fcntl.LOCK_SH)  # others may read it too
            except _InUse:
                mount_fd = _mount_again(layer)
                if mount_fd is None:  # it is attached for reading, or copied
                    await _lock(fd, layer, _RELEASE_TIMEOUT_S, fcntl.LOCK_SH)
            try:
                return await self._drafts.copy(fd, mount_fd, target)
            finally:
                if mount_fd is not None:
                    os.close(mount_fd)
        finally:
            os.close(fd)

    async def snapshot(self, layer: Path, target: Path) -> None:
        """Copy an image to a new one at `target`, which exists complete or not at all, also after a SIGKILL.

        As in `draft`, nobody writes to it meanwhile. Raises FileExistsError, StorageFull, Unavailable.
        """
        draft = await self.draft(layer, target)
        await draft.publish()

    async def layer_over(self, snapshots: Sequence[Path], layer: Path, size_mb: int) -> tuple[Path, ...]:
        """Make the writable layer of a room that stands on snapshots, newest first; what then lies below it.

        That is all of them, and the layer is empty; or, if they are one more than a room can stand on, the layer begins
        as a copy of the newest one, so that forks of forks have no end. Raises as `create` and `snapshot`.
        """
        if len(snapshots) <= MOST_LOWER:
            await self.create(layer, size_mb)
            return tuple(snapshots)
        await self.snapshot(snapshots[0], layer)
        return tuple(snapshots[1:])

    async def scratch(self, size_mb: int) -> Disk:
        """An empty disk without a name: it goes when nothing uses it any more."""
        return await _in_thread(self._scratch, await self._blank(size_mb))

    def _scratch(self, blank: Path) -> Disk:
        with storage(self._directory):
            fd = os.open(self._directory, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
        try:
            with storage(self._directory):
                _fill(blank, fd)
            return _attach(fd, {**_OPTIONS, "nobarrier": None}, keep=True)
        except BaseException:
            os.close(fd)
            raise

    async def nameless(self, size_mb: int) -> Nameless:
        """An empty disk for a room that is yet to come. Its image lies in this object's folder until it gets a name."""
        image = self._directory / f"{secrets.token_hex(8)}{_NAMELESS}"
        blank = await self._blank(size_mb)
        try:
            await on_thread(_copy_blank, blank, image)
            return Nameless(await self.attach(image), image)
        except BaseException:
            image.unlink(missing_ok=True)
            raise

    def is_beside(self, path: Path) -> bool:
        """Whether a disk without a name can get this one: it has to lie in the same file system."""
        with storage(path):
            return path.parent.stat().st_dev == self._directory.stat().st_dev

    def sweep(self) -> None:
        """Have a folder, without what a killed server had made ahead or begun. Nothing of this object may be in use."""
        with storage(self._directory):
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        for ending in (_NAMELESS, _MAKING):
            for image in self._directory.glob(f"*{ending}"):
                image.unlink()
        loops.unbound()

    async def released(self, path: Path, *, timeout_s: float = _RELEASE_TIMEOUT_S) -> bool:
        """Wait until nothing uses the image (its file system is unmounted); False if the time is up first."""
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return True
        try:
            await _lock(fd, path, timeout_s)
        except Unavailable:
            return False
        finally:
            os.close(fd)
        return True

    async def _blank(self, size_mb: int) -> Path:
        """The blank image of a size; made once and renamed into place, so that it exists complete or not at all."""
        path = self._directory / f"blank-{size_mb}.img"
        if path.exists():
            return path
        async with self._blank_locks.setdefault(size_mb, asyncio.Lock()):
            if path.exists():
                return path
            making = self._directory / f"blank-{size_mb}.{os.getpid()}{_MAKING}"
            with storage(path):
                self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
                try:
                    await images.make_file_system(making, size_mb)
                    making.rename(path)
                finally:
                    making.unlink(missing_ok=True)
        return path


async def _in_thread(make: Callable[[T], Disk], argument: T) -> Disk:
    """Attaching a loop device waits in the kernel for milliseconds, in which the event loop goes on."""
    made = asyncio.get_running_loop().run_in_executor(None, make, argument)
    try:
        return await asyncio.shield(made)
    except asyncio.CancelledError:
        made.add_done_callback(_close_unwanted)
        raise


def _close_unwanted(made: asyncio.Future[Disk]) -> None:
    if not made.cancelled() and made.exception() is None:
        made.result().close()


def _copy_blank(blank: Path, path: Path) -> None:
    with storage(path):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            _fill(blank, fd)
        except BaseException:
            os.unlink(path)  # noqa: PTH108
            raise
        finally:
            os.close(fd)


def _fill(blank: Path, fd: int) -> None:
    with blank.open("rb", buffering=0) as source:
        images.copy(source.fileno(), fd)


async def _lock(fd: int, path: Path, timeout_s: float, kind: int = fcntl.LOCK_EX) -> None:
    """Hold the image's lock. The loop device shares this open file, so the lock lasts until it lets go of it."""
    deadline = time.monotonic() + timeout_s
    pause = 0.001
    while True:
        try:
            fcntl.flock(fd, kind | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise _InUse(f"The disk image {path} is still in use.") from None
        await asyncio.sleep(pause)
        pause = min(pause * 2, 0.05)


def _mount_again(path: Path) -> int | None:
    """Another detached mount of an image that is attached somewhere; None if it is not, or no longer."""
    device = loops.device_of(path)
    if device is None:
        return None
    try:
        mount_fd = linux.new_mount("ext4", {"source": device, **_OPTIONS}, _ATTRIBUTES)
    except OSError:  # it was released meanwhile
        return None
    # Mounted, the device cannot change its image any more; before, it could.
    if loops.device_of(path) == device:
        return mount_fd
    os.close(mount_fd)
    return None


def _attach(image_fd: int, options: dict[str, str | None] = _OPTIONS, *, keep: bool = False) -> Disk:
    """Put the image on a free loop device and mount it, detached. `keep`: its descriptor is the disk's from now on."""
    try:
        device, device_fd = loops.configure(image_fd)
        try:
            mount_fd = linux.new_mount("ext4", {"source": device, **options}, _ATTRIBUTES)
            return Disk(device, mount_fd, options, image_fd if keep else -1)
        finally:
            os.close(device_fd)
    except OSError as error:
        raise Unavailable(f"A disk image could not be mounted: {error.strerror}.") from error


def _attach_and_close(image_fd: int) -> Disk:
    """An image that was opened for reading is attached for reading."""
    writable = fcntl.fcntl(image_fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
    try:
        return _attach(image_fd, _OPTIONS if writable else _READ_ONLY)
    finally:
        os.close(image_fd)
