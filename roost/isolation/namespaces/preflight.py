"""Whether this machine can make rooms of namespaces, and the command that mends what is missing. Where nothing is,
one is made. Leaves nothing."""

from __future__ import annotations

import os
import platform
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from roost.isolation import landlock, seccomp
from roost.isolation.boot import boot
from roost.isolation.cgroups import parse_mounts
from roost.isolation.driver import Preflight
from roost.isolation.namespaces.driver import NamespacesDriver
from roost.model.errors import Unavailable

LEVEL = "Linux namespaces, a user namespace per room, no capabilities, a system call allow-list, cgroup limits"
_OLDEST_KERNEL = (5, 19)  # overlays over idmapped layers
_CAP_SYS_ADMIN = 21


@dataclass(frozen=True, kw_only=True)
class Found:
    """What was looked at. `cgroups` and `seccomp` are empty, or say what is wrong; `closed` is a cgroup tree that this
    user can't write to, or empty."""

    root: bool
    privileged: bool
    kernel: str
    filesystems: frozenset[str]
    loop_devices: bool
    mkfs: bool
    user_namespaces: int
    cgroups: str
    closed: str
    seccomp: str


def preflight() -> Preflight:
    """Look at this machine, and try. Takes some seconds."""
    found = problems(_look())
    if not found and (problem := boot(lambda data, _, bundle: NamespacesDriver(data, bundle))):
        found = (problem,)
    wall = "Landlock" if landlock.abi() >= landlock.OLDEST else "no Landlock (Linux 5.19 with it switched on has it)"
    return Preflight(usable=not found, level=f"{LEVEL}, {wall}", problems=found)


def problems(found: Found) -> tuple[str, ...]:
    """What keeps rooms from being made, each with what mends it. Pure."""
    checks = (
        (found.root, "These rooms take root: sudo roost serve."),
        (
            found.privileged or not found.root,
            "Root has no CAP_SYS_ADMIN here: start the container with --privileged, or run on the host.",
        ),
        (_kernel(found.kernel) >= _OLDEST_KERNEL, f"Linux {found.kernel} is older than 5.19: upgrade the kernel."),
        ("overlay" in found.filesystems, "The overlay file system is missing: modprobe overlay."),
        ("ext4" in found.filesystems, "The ext4 file system is missing: modprobe ext4."),
        (found.loop_devices, "There are no loop devices: modprobe loop."),
        (found.mkfs, "mkfs.ext4 is missing: apt install e2fsprogs."),
        (found.user_namespaces > 0, "User namespaces are switched off: sysctl -w user.max_user_namespaces=65536."),
        (not found.cgroups, found.cgroups),
        (
            not found.closed or not found.root,
            f"{found.closed} is not writable: start the container with --privileged --cgroupns=host.",
        ),
        (not found.seccomp, found.seccomp),
    )
    return tuple(problem for good, problem in checks if not good)


def _kernel(release: str) -> tuple[int, ...]:
    match = re.match(r"(\d+)\.(\d+)", release)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def _look() -> Found:
    cgroups, closed = _cgroups()
    return Found(
        root=os.geteuid() == 0,
        privileged=bool(_capabilities() >> _CAP_SYS_ADMIN & 1),
        kernel=platform.release(),
        filesystems=frozenset(line.split()[-1] for line in _read("/proc/filesystems").splitlines() if line.strip()),
        loop_devices=Path("/dev/loop-control").exists(),
        mkfs=shutil.which("mkfs.ext4", path="/usr/sbin:/usr/bin:/sbin:/bin") is not None,
        user_namespaces=int(_read("/proc/sys/user/max_user_namespaces").strip() or 0),
        cgroups=cgroups,
        closed=closed,
        seccomp=_seccomp(),
    )


def _capabilities() -> int:
    match = re.search(r"^CapEff:\s*([0-9a-f]+)$", _read("/proc/self/status"), re.MULTILINE)
    return int(match[1], 16) if match else 0


def _cgroups() -> tuple[str, str]:
    """What is wrong with them, and which of their trees is closed to this user."""
    try:
        hierarchies = parse_mounts(_read("/proc/self/mounts"))
    except Unavailable as error:
        return error.message, ""
    available = set(_read(str(hierarchies.unified / "cgroup.controllers")).split())
    lacking = set(hierarchies.v2_controllers) - available
    if lacking:
        return f"The cgroup controllers {', '.join(sorted(lacking))} are missing: boot with cgroup_enable=memory.", ""
    return "", next((str(tree) for tree in hierarchies.trees if not os.access(tree, os.W_OK)), "")


def _seccomp() -> str:
    try:
        seccomp.program()
    except Unavailable as error:
        return error.message
    return ""


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
