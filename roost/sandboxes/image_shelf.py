"""Images that sandboxes stand on: files of snapshots and of built templates, never changed, removed when nobody needs
them.

<name>.img    a layer, complete or not there

Nobody counts who needs one: the records of sandboxes, templates and snapshots say so, and are asked when one of them
goes. What a killed server left without a record is found when the next one starts.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from roost.isolation.driver import MOST_LOWER
from roost.isolation.threads import remove_on_thread
from roost.model.errors import StorageFull

log = logging.getLogger(__name__)

T = TypeVar("T")


class Attached(Protocol):
    """Images that are kept attached for the next room."""

    def forget(self, path: Path) -> None: ...


def below(layers: Sequence[T]) -> tuple[T, ...]:
    """What lies below the own layer of a sandbox that stands on `layers`, newest first: of one more than a room can
    stand on, the newest is the beginning of its own layer instead (`Disks.layer_over`)."""
    return tuple(layers) if len(layers) <= MOST_LOWER else tuple(layers[1:])


def unused(candidates: Iterable[str], standing: Iterable[Sequence[str]], held: Iterable[str]) -> frozenset[str]:
    """The images that no stack of `standing` has and nobody holds."""
    left = set(candidates).difference(held)
    for layers in standing:
        if not left:
            break
        left.difference_update(layers)
    return frozenset(left)


class ImageShelf:
    """`most_bytes`: what all images may take of the host's disk."""

    def __init__(self, directory: Path, attached: Attached, *, most_bytes: int) -> None:
        self._directory = directory
        self._attached = attached
        self._most_bytes = most_bytes
        self._held: Counter[str] = Counter()
        self._making: dict[str, int] = {}  # what each of those is to take, as far as that is known
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)

    def path(self, name: str) -> Path:
        return self._directory / f"{name}.img"

    def paths(self, layers: Iterable[str]) -> tuple[Path, ...]:
        return tuple(self.path(name) for name in layers)

    def names(self) -> frozenset[str]:
        """All that are there."""
        return frozenset(path.stem for path in self._directory.glob("*.img"))

    @contextlib.contextmanager
    def making(self) -> Iterator[str]:
        """The name of an image to be made, which stays while the block lasts, whatever the records say."""
        name = secrets.token_hex(10)
        self._making[name] = 0
        try:
            with self.holding((name,)):
                yield name
        finally:
            del self._making[name]

    @contextlib.contextmanager
    def holding(self, layers: Sequence[str]) -> Iterator[None]:
        """None of these goes while the block lasts."""
        self._held.update(layers)
        try:
            yield
        finally:
            self._held.subtract(layers)
            self._held += Counter()  # drops what is at zero

    def used_bytes(self, name: str) -> int:
        """What it takes of the host's disk."""
        try:
            return self.path(name).stat().st_blocks * 512
        except OSError:
            return 0

    def reserve(self, name: str, size: int) -> None:
        """Keep so many bytes for an image that is being made, until it is. Raises StorageFull if others, with those
        that are being made, leave less."""
        others = (self.names() | self._making.keys()) - {name}
        used = sum(max(self.used_bytes(other), self._making.get(other, 0)) for other in others)
        if used + size > self._most_bytes:
            raise StorageFull(
                f"Snapshots and templates take {used >> 20} MB already, and may take {self._most_bytes >> 20} MB "
                "(snapshots_disk_mb); delete some."
            )
        self._making[name] = size

    def release(self, candidates: Iterable[str], standing: Iterable[Sequence[str]]) -> None:
        """Remove those of the candidates that nobody needs any more; no room stands on them. What can't be removed is
        tried again by the next server."""
        for name in unused(candidates, standing, self._held):
            path = self.path(name)
            try:
                self._attached.forget(path)
                remove_on_thread(path)
            except OSError as error:
                log.warning("the image %s can't be removed: %s", path, error)
