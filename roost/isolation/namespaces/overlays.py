"""The overlays of a room: the template's trees, the layers of snapshots over them, and the room's own layer on top.

Runs in the room's first process, as root of the host in the room's own mount namespace. A layer holds, for each
overlay, a directory with `upper` and `work`; `upper` is what becomes a lower tree of rooms that stand on the layer.
"""

from __future__ import annotations

import contextlib
import os

from roost.isolation import linux
from roost.isolation.namespaces.targets import DIRECTORY, attach, open_directory

LAYER = "/.room/layer"
_BELOW = "/.room/below"
_TREES = "/.room/lower"


def options(*, by_user: bool) -> dict[str, str | None]:
    """How an overlay notes what it hides. A user who is not root can't write the attributes that are only root's; with
    those of his own there are no redirects, so a directory of the template can't be renamed (EXDEV)."""
    if by_user:
        return {"userxattr": None}
    return {"metacopy": "off", "redirect_dir": "on", "index": "off"}  # redirects: else renaming one fails


class Overlays:
    """`layer` and those below it, `lower`, newest first, are detached mounts. `attributes` are those of every mount;
    `userns` maps ids of what is on the disks, if it is given. `by_user`: made by a user who is not root."""

    def __init__(
        self, layer: int, lower: tuple[int, ...], userns: int | None, attributes: int, *, by_user: bool = False
    ) -> None:
        self._userns = userns
        self._options = options(by_user=by_user)
        self._attributes = attributes
        self._layers = len(lower)
        linux.set_mount_attributes(layer, attributes, userns)
        attach(layer, os.open(LAYER, DIRECTORY))
        if lower:
            self._attach_layers(lower)

    def _attach_layers(self, mounts: tuple[int, ...]) -> None:
        """Whole layers at `/.room/below/<number>`, the newest first; what overlays need of them goes beside."""
        places = linux.new_mount("tmpfs", {"size": "64k", "mode": "700"}, self._attributes)
        opened = os.open(".", DIRECTORY, dir_fd=places)
        attach(places, os.open(_BELOW, DIRECTORY))
        for number, mount in enumerate(mounts):
            linux.set_mount_attributes(mount, self._attributes | linux.MOUNT_ATTR_RDONLY, self._userns)
            attach(mount, open_directory(opened, str(number)))
        os.close(opened)

    def root(self) -> int:
        """The room's root, opened."""
        return self._make("root", "root", os.open("/.room/root", DIRECTORY))

    def bind(self, root: int, number: int, target: str) -> None:
        """The template's bind of this number, at its place below the room's root."""
        os.close(self._make(str(number), "bind-" + target.encode().hex(), open_directory(root, target)))

    def _make(self, tree: str, name: str, target: int) -> int:
        """The template's tree, lower layers and a writable one, attached at `target`; its root, opened."""
        template = linux.clone_tree(f"/.base/{tree}")
        linux.set_mount_attributes(template, self._attributes | linux.MOUNT_ATTR_RDONLY, self._userns)
        attach(template, os.open(f"{_TREES}/{tree}", DIRECTORY))
        for part in (f"{LAYER}/{name}", f"{LAYER}/{name}/upper", f"{LAYER}/{name}/work"):
            with contextlib.suppress(FileExistsError):
                os.mkdir(part)  # noqa: PTH102 - pathlib's many functions would each cost the new process memory
        layers = {
            "lowerdir": ":".join([*self._lower(name), f"{_TREES}/{tree}"]),
            "upperdir": f"{LAYER}/{name}/upper",
            "workdir": f"{LAYER}/{name}/work",
        }
        merged = linux.new_mount("overlay", {**layers, **self._options}, self._attributes)
        opened = os.open(".", DIRECTORY, dir_fd=merged)
        attach(merged, target)
        return opened

    def _lower(self, name: str) -> list[str]:
        """The layers' trees for an overlay. Their paths are relative and short: the kernel takes 255 bytes of them."""
        if not self._layers:
            return []
        os.chdir(_BELOW)
        places = os.open(".", DIRECTORY)
        os.mkdir(name)  # noqa: PTH102
        found = []
        for number in range(self._layers):
            try:
                tree = linux.clone_tree(f"{number}/{name}/upper")
            except FileNotFoundError:  # made where this overlay was not: it has nothing to add
                continue
            attach(tree, open_directory(places, f"{name}/{number}"))
            found.append(str(number))
        os.close(places)
        os.chdir(name)
        return found
