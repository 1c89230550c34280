"""What runsc is told of a room: an OCI runtime configuration, and its command line. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

#: Where things are in the file system that runsc has to itself (see `inside`).
PROGRAM, BUNDLE, STATE, ROOM = "/runsc", "/bundle", "/state", "/room"


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """How a room's guest is run: `flags` are runsc's, `command` is the guest's, as the room sees it."""

    flags: tuple[str, ...]
    command: tuple[str, ...]


#: The room's name to runsc, also in what it writes down of it.
NAME = "room"
PID_FILE = f"{STATE}/pid"
_OPTIONS = {
    "run": (f"--bundle={BUNDLE}",),
    "restore": (f"--bundle={BUNDLE}", "--detach", f"--pid-file={PID_FILE}"),
    "checkpoint": ("--leave-running", "--compression=none"),
}


def command_line(kernel: Kernel, verb: str, image: int = -1) -> list[str]:
    """`run` lives as long as the sandbox does; `restore` ends, so that it lets go of the copy, and leaves the number of
    the sandbox's process in PID_FILE. `image`: the directory of a copy, as a descriptor."""
    where = [f"--image-path=/proc/self/fd/{image}"] if image >= 0 else []
    return [PROGRAM, f"--root={STATE}", *kernel.flags, verb, *_OPTIONS.get(verb, ()), *where, NAME]


def configuration(
    kernel: Kernel,
    *,
    hostname: str,
    capabilities: Sequence[str],
    open_files: int,
    shm_mb: int,
    run_mb: int,
    mounts: Sequence[tuple[str, bool]],
) -> dict[str, Any]:
    """The contents of config.json. `mounts` are (target, read only): they are at their targets below `ROOM` already,
    and named so that the kernel does not keep what it has seen of them, for others change them too. Any release of
    runsc takes it."""
    held = [f"CAP_{name}" for name in sorted(capabilities)]
    return {
        "ociVersion": "1.0.0",
        "hostname": hostname,
        "root": {"path": ROOM, "readonly": False},
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": list(kernel.command),
            "env": [],
            "cwd": "/",
            "noNewPrivileges": True,
            # Neither inheritable nor ambient: a process that becomes another user has none of it.
            "capabilities": {"bounding": held, "effective": held, "permitted": held},
            "rlimits": [
                {"type": "RLIMIT_NOFILE", "soft": open_files, "hard": open_files},
                {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
            ],
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            _memory("/dev/shm", f"size={shm_mb}m", "mode=1777"),  # noqa: S108 - of the room
            _memory("/run", f"size={run_mb}m", "mode=755"),
            *(_bind(target, read_only=read_only) for target, read_only in mounts),
        ],
        "linux": {"namespaces": [{"type": kind} for kind in ("pid", "mount", "network", "ipc", "uts")]},
    }


def _bind(target: str, *, read_only: bool) -> dict[str, Any]:
    options = ["rbind", "nosuid", "nodev", "ro" if read_only else "rw"]
    return {"destination": target, "type": "bind", "source": f"{ROOM}{target}", "options": options}


def _memory(target: str, *options: str) -> dict[str, Any]:
    return {"destination": target, "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev", *options]}
