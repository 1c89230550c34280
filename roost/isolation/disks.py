"""Disks of rooms and volumes: sparse ext4 images on loop devices, so that a size is a hard limit with a clear ENOSPC.

No mount is made in the host's tree: a disk is held as a detached mount's descriptor, and the kernel releases the loop
device when the last mount of it has gone, also after a SIGKILL.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from roost.isolation import linux
from roost.model.errors import StorageFull, Unavailable

T = TypeVar("T")

_LOOP_CTL_GET_FREE = 0x4C82
_LOOP_CONFIGURE = 0x4C0A
_LO_FLAGS_AUTOCLEAR = 4
_LOOP_TRIES = 50
_RELEASE_TIMEOUT_S = 10.0
_TOOL_TIMEOUT_S = 120.0
_EXT4_STATE_OFFSET = 1024 + 0x3A
_EXT4_CLEAN = 1
_COPY_CHUNK = 1 << 20
#: Without a journal: an image that was not unmounted cleanly is checked before its next use. `noinit_itable`: the
#: kernel would otherwise fill each image's inode tables in the background.
_OPTIONS: dict[str, str | None] = {"noinit_itable": None, "errors": "remount-ro"}
_ATTRIBUTES = linux.MOUNT_ATTR_NOSUID | linux.MOUNT_ATTR_NODEV | linux.MOUNT_ATTR_NOATIME


class _InUse(Unavailable):
    """Something else has the image attached."""


class Disk:
    """An attached disk: the descriptor of a detached mount. The loop device lives as long as a mount of it does."""

    def __init__(self, device: str, mount_fd: int) -> None:
        self.device = device
        self._mount_fd = mount_fd

    @property
    def mount_fd(self) -> int:
        """The mount itself; whoever moves or idmaps it does so for every holder of the descriptor."""
        return self._mount_fd

    def clone(self) -> int:
        """Another detached mount of the same file system, the caller's to close."""
        return linux.new_mount("ext4", {"source": self.device, **_OPTIONS}, _ATTRIBUTES)

    def close(self) -> None:
        """Give up the descriptor. The file system is unmounted when no room has it either."""
        fd, self._mount_fd = self._mount_fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Disk:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Disks:
    """Makes and attaches disk images. `directory` keeps a blank image per size, and scratch images while they live."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._blank_locks: dict[int, asyncio.Lock] = {}

    async def create(self, path: Path, size_mb: int) -> None:
        """Make an empty image at `path`, which must not exist.

        Raises FileExistsError, StorageFull, or Unavailable if mkfs.ext4 is missing or fails.
        """
        await asyncio.to_thread(_copy_blank, await self._blank(size_mb), path)

    async def attach(self, path: Path, *, timeout_s: float = _RELEASE_TIMEOUT_S) -> Disk:
        """Attach the image at `path`. A former user of it may take `timeout_s` to release it.

        An image that was not unmounted cleanly is checked first. Raises Unavailable with the reason.
        """
        with _storage(path):
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            await _lock(fd, path, timeout_s)
            if not _is_clean(fd):
                await _check(path)
            return await _in_thread(_attach_and_close, os.dup(fd))
        finally:
            os.close(fd)

    async def mount(self, path: Path, *, timeout_s: float = _RELEASE_TIMEOUT_S) -> int:
        """A detached mount of an image that several rooms may share, the caller's to close.

        The kernel keeps the image attached while any mount of it lives, whoever attached it. Raises Unavailable.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            with contextlib.suppress(_InUse):
                return (await self.attach(path, timeout_s=0)).mount_fd
            device = _device_of(path)
            if device is not None:
                with contextlib.suppress(OSError):  # it was released meanwhile
                    mount_fd = linux.new_mount("ext4", {"source": device, **_OPTIONS}, _ATTRIBUTES)
                    # Mounted, the device cannot change its image any more; before, it could.
                    if _device_of(path) == device:
                        return mount_fd
                    os.close(mount_fd)
            if time.monotonic() >= deadline:
                raise Unavailable(f"The disk image {path} is in use, and cannot be shared.")
            await asyncio.sleep(0.005)

    async def scratch(self, size_mb: int) -> Disk:
        """An empty disk without a name: it goes when nothing uses it any more."""
        return await _in_thread(self._scratch, await self._blank(size_mb))

    def _scratch(self, blank: Path) -> Disk:
        with _storage(self._directory):
            fd = os.open(self._directory, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
        try:
            with _storage(self._directory):
                _copy_sparse(blank, fd)
            return _attach(fd, durable=False)
        finally:
            os.close(fd)

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
            making = self._directory / f"blank-{size_mb}.{os.getpid()}.making"
            with _storage(path):
                self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
                try:
                    with making.open("wb") as image:
                        image.truncate(size_mb << 20)
                    await _run("mkfs.ext4", *_mkfs_options(), str(making), good=(0,))
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


def _mkfs_options() -> list[str]:
    """One inode per 8 KiB, for the many small files of packages; nothing that a short life makes no use of."""
    features = "^has_journal,^resize_inode,^huge_file,metadata_csum,extent,flex_bg,sparse_super2"
    return ["-q", "-F", "-b", "4096", "-i", "8192", "-m", "0", "-O", features, "-E", "lazy_itable_init=1,nodiscard"]


@contextlib.contextmanager
def _storage(path: Path) -> Iterator[None]:
    """Errors of the host's own disk, in Roost's terms."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull(f"The disk that holds {path} is full.") from error
        if isinstance(error, FileExistsError):
            raise
        raise Unavailable(f"The disk image {path} cannot be used: {error.strerror}.") from error


def _copy_blank(blank: Path, path: Path) -> None:
    with _storage(path):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            _copy_sparse(blank, fd)
        except BaseException:
            os.unlink(path)  # noqa: PTH108
            raise
        finally:
            os.close(fd)


def _copy_sparse(source: Path, target: int) -> None:
    """Copy the parts of a file that hold data; the rest stays a hole."""
    with source.open("rb", buffering=0) as image:
        fd = image.fileno()
        size = os.fstat(fd).st_size
        os.ftruncate(target, size)
        end = 0
        while end < size:
            try:
                start = os.lseek(fd, end, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:  # only a hole is left
                    return
                raise
            end = os.lseek(fd, start, os.SEEK_HOLE)
            while start < end:
                part = os.pread(fd, min(_COPY_CHUNK, end - start), start)
                if not part:
                    raise OSError(errno.EIO, "the blank image became shorter")
                start += os.pwrite(target, part, start)


async def _lock(fd: int, path: Path, timeout_s: float) -> None:
    """Hold the image's lock. The loop device shares this open file, so the lock lasts until it lets go of it."""
    deadline = time.monotonic() + timeout_s
    pause = 0.001
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise _InUse(f"The disk image {path} is still in use.") from None
        await asyncio.sleep(pause)
        pause = min(pause * 2, 0.05)


def _device_of(path: Path) -> str | None:
    """The loop device that has this image."""
    wanted = str(path.resolve())
    for file in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            if file.read_text().rstrip("\n") == wanted:
                return f"/dev/{file.parents[1].name}"
    return None


def _is_clean(fd: int) -> bool:
    """Whether the file system was unmounted properly (`s_state` of the ext4 superblock)."""
    state = os.pread(fd, 2, _EXT4_STATE_OFFSET)
    return len(state) == 2 and struct.unpack("<H", state)[0] == _EXT4_CLEAN


async def _check(path: Path) -> None:
    # 1: errors were corrected.
    await _run("e2fsck", "-p", str(path), good=(0, 1))


async def _run(*command: str, good: tuple[int, ...]) -> None:
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        )
    except FileNotFoundError:
        raise Unavailable(f"{command[0]} is missing: apt install e2fsprogs.") from None
    try:
        output, _ = await asyncio.wait_for(process.communicate(), _TOOL_TIMEOUT_S)
    except BaseException as error:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        if isinstance(error, TimeoutError):
            raise Unavailable(f"{command[0]} did not end within {_TOOL_TIMEOUT_S:.0f} s.") from error
        raise
    if process.returncode not in good:
        text = output.decode(errors="replace").strip()[-500:]
        if "No space left" in text:
            raise StorageFull(f"The disk is full: {text}")
        raise Unavailable(f"{command[0]} failed: {text}")


def _attach(image_fd: int, *, durable: bool = True) -> Disk:
    """Put the image on a free loop device and mount it, detached."""
    try:
        device, device_fd = _configure_loop(image_fd)
        try:
            options = _OPTIONS if durable else {**_OPTIONS, "nobarrier": None}
            return Disk(device, linux.new_mount("ext4", {"source": device, **options}, _ATTRIBUTES))
        finally:
            os.close(device_fd)
    except OSError as error:
        raise Unavailable(f"A disk image could not be mounted: {error.strerror}.") from error


def _attach_and_close(image_fd: int) -> Disk:
    try:
        return _attach(image_fd)
    finally:
        os.close(image_fd)


def _configure_loop(image_fd: int) -> tuple[str, int]:
    """A loop device over the image, and a descriptor of it that keeps it until it is mounted."""
    try:
        control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise Unavailable(f"This machine has no loop devices ({error.strerror}): modprobe loop.") from error
    try:
        for _ in range(_LOOP_TRIES):
            number = fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
            device = f"/dev/loop{number}"
            device_fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.ioctl(device_fd, _LOOP_CONFIGURE, _loop_config(image_fd))
                return device, device_fd
            except OSError as error:
                os.close(device_fd)
                if error.errno != errno.EBUSY:  # another process took this number meanwhile
                    raise
    finally:
        os.close(control)
    raise Unavailable(f"No loop device was free in {_LOOP_TRIES} tries.")


def _loop_config(image_fd: int) -> bytes:
    """`struct loop_config`: fd, block size, `struct loop_info64` of which only the flags are set, reserved."""
    info = struct.pack("QQQQQIIII64s64s32sQQ", 0, 0, 0, 0, 0, 0, 0, 0, _LO_FLAGS_AUTOCLEAR, b"", b"", b"", 0, 0)
    return struct.pack("II", image_fd, 0) + info + bytes(64)
