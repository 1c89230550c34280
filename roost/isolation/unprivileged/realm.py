"""The user namespace in which everything of a server happens that isn't root: its helpers, and around them its rooms.

Whoever makes one is root in it, of himself alone: his id is 0 there, and no other id is anybody.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

from roost.isolation import linux
from roost.model.errors import Unavailable

_SLEEP_S = 10  # for which the namespace lives without a descriptor, if this process is killed meanwhile
#: What commonly forbids it, and what allows it.
_SWITCHES = (
    ("kernel/unprivileged_userns_clone", "0", "sudo sysctl -w kernel.unprivileged_userns_clone=1"),
    (
        "kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
    ),
    ("user/max_user_namespaces", "0", "sudo sysctl -w user.max_user_namespaces=65536"),
)


def make_realm() -> int:
    """A descriptor of a new one. Raises Unavailable with what forbids it."""
    try:
        pid = linux.start_sleeper(linux.CLONE_NEWUSER, _SLEEP_S)
    except OSError as error:
        raise Unavailable(f"This user can't make user namespaces ({error.strerror}): {remedy()}.") from error
    try:
        place = Path(f"/proc/{pid}")
        (place / "setgroups").write_text("deny")
        (place / "uid_map").write_text(f"0 {os.geteuid()} 1")
        (place / "gid_map").write_text(f"0 {os.getegid()} 1")
        return os.open(place / "ns/user", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise Unavailable(f"This user can't be root of a user namespace ({error.strerror}): {remedy()}.") from error
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def remedy(sysctls: Path = Path("/proc/sys")) -> str:
    """What allows user namespaces here, as far as it is known."""
    for name, forbidding, command in _SWITCHES:
        try:
            value = (sysctls / name).read_text().strip()
        except OSError:
            continue
        if value == forbidding:
            return command
    return "the kernel or a container around this has to allow it, or run Roost as root"
