"""Volumes of sandboxes: disk images with names, which outlive every sandbox that mounts them."""

from __future__ import annotations

import contextlib
import hmac
import os
import re
import secrets
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Protocol

from roost.instances.volumes import Volumes
from roost.model.errors import Conflict, InvalidArgument, NotFound, Throttled, Unauthenticated
from roost.model.sandbox import Volume
from roost.store.volumes import Volumes as Store

#: Of one account.
MOST_VOLUMES = 1000
#: Whose the root of a new volume is: `user` of every sandbox.
OWNER = 1000
#: Apart from the volumes that functions name.
_PREFIX = "sandbox-"
_NAME = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,127}")


class Images(Protocol):
    """Disk images. Methods raise RoostError."""

    async def create(self, path: Path, size_mb: int) -> None: ...

    async def mount(self, path: Path) -> int: ...


async def _nobody(volume: Volume) -> None: ...


class VolumeShelf:
    """`load` before the first use."""

    def __init__(
        self,
        *,
        store: Store,
        places: Volumes,
        images: Images,
        size_mb: int,
        clock: Callable[[], float],
        gone: Callable[[Volume], Awaitable[None]] = _nobody,
    ) -> None:
        """`gone` is told of each that was removed."""
        self._gone = gone
        self._store = store
        self._places = places
        self._images = images
        self._size_mb = size_mb
        self._clock = clock
        self._known: dict[str, Volume] = {}
        self.remove_tree = places.remove_tree

    async def load(self) -> None:
        self._known = {volume.id: volume for volume in await self._store.list_all()}

    def of_account(self, account: str) -> list[Volume]:
        """All, by the time they were made."""
        return [volume for volume in self._known.values() if volume.account == account]

    def get(self, account: str, id: str) -> Volume:
        """Raises NotFound."""
        volume = self._known.get(id)
        if volume is None or volume.account != account:
            raise NotFound(f"Volume {id[:64]} not found")
        return volume

    def named(self, account: str, name: str) -> Volume:
        """Raises NotFound."""
        for volume in self._known.values():
            if (volume.account, volume.name) == (account, name):
                return volume
        raise NotFound(f"Volume '{name[:128]}' not found")

    def opened_by(self, id: str, token: str) -> Volume:
        """The volume, for who has its token. Raises Unauthenticated."""
        volume = self._known.get(id)
        if volume is None or not hmac.compare_digest(volume.token.encode(), token.encode("utf-8", "surrogateescape")):
            raise Unauthenticated("This token opens no such volume.")
        return volume

    async def create(self, account: str, name: str) -> Volume:
        """A new, empty one. Raises InvalidArgument, Conflict, Throttled, StorageFull."""
        if not _NAME.fullmatch(name):
            raise InvalidArgument("name: 1 to 128 letters, digits, '_', '-' or '.' are expected.")
        if len(self.of_account(account)) >= MOST_VOLUMES:
            raise Throttled(f"An account has at most {MOST_VOLUMES} volumes.")
        volume = Volume(
            account=account,
            id=str(uuid.uuid4()),
            name=name,
            token=secrets.token_urlsafe(32),
            created=self._clock(),
        )
        await self._store.create(volume)
        try:
            await self._images.create(self.image(volume), self._size_mb)
            root = await self._images.mount(self.image(volume))
            try:
                with contextlib.suppress(FileNotFoundError):  # of a disk image
                    os.rmdir("lost+found", dir_fd=root)
                if os.geteuid() == 0:  # else all its users have one id
                    os.chown(".", OWNER, OWNER, dir_fd=root)
            finally:
                os.close(root)
        except BaseException:
            await self._store.delete(volume.id)
            await self._places.remove(account, _PREFIX + volume.id, "/")
            raise
        self._known[volume.id] = volume
        return volume

    async def remove(self, volume: Volume, users: list[str]) -> None:
        """It and its files go. `users`: the sandboxes that mount it. Raises Conflict when there are any."""
        if users:
            raise Conflict(f"Volume {volume.name} is mounted by sandbox {users[0]}.")
        self._known.pop(volume.id, None)
        await self._store.delete(volume.id)
        await self._places.remove(volume.account, _PREFIX + volume.id, "/")
        await self._gone(volume)

    def image(self, volume: Volume) -> Path:
        """The disk image with its files. Raises RoostError."""
        return self._places.image(volume.account, _PREFIX + volume.id, "/")

    @contextlib.asynccontextmanager
    async def root(self, volume: Volume) -> AsyncIterator[int]:
        """A descriptor of its root folder."""
        root = await self._images.mount(self.image(volume))
        try:
            yield root
        finally:
            os.close(root)
