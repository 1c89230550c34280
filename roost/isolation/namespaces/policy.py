"""What a room's processes may do, as data: one value is the product's, weaker ones are the tests' positive controls."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

#: Entries of /proc that tell of the host or its kernel rather than of the room. Skipped are those that do not exist,
#: and with a user namespace those that only the host's root may open: to a room's root they are another's.
MASKED = (
    "acpi",
    "asound",
    "bus",
    "cmdline",
    "config.gz",
    "diskstats",
    "driver",
    "fs",
    "interrupts",
    "irq",
    "kallsyms",
    "kcore",
    "key-users",
    "keys",
    "kmsg",
    "kpagecgroup",
    "kpagecount",
    "kpageflags",
    "latency_stats",
    "partitions",
    "sched_debug",
    "scsi",
    "softirqs",
    "sysrq-trigger",
    "timer_list",
    "timer_stats",
    "vmallocinfo",
)


@dataclass(frozen=True, kw_only=True)
class RoomPolicy:
    """`seccomp` is a classic BPF program; empty means no filter."""

    seccomp: bytes
    masked: tuple[str, ...] = MASKED  # under /proc
    proc_read_only: bool = True
    hide_boot_id: bool = True
    no_new_privileges: bool = True
    no_setuid: bool = True  # no file system of the room honours setuid bits
    user_namespace: bool = True  # False: root in the room is root of the host
    #: Made by a user who is not root, in a user namespace of the server's: the room's ids are few and the same as other
    #: rooms', so nothing is idmapped; devices are the host's nodes; the user's groups can't be given up.
    by_user: bool = False
    landlock: bool = True  # where the kernel has it
    capabilities: frozenset[int] = frozenset()  # kept by every room, beside what it is asked for with

    @property
    def idmapped(self) -> bool:
        """Whether what is on the disk with ids 0..65535 is shown with the room's."""
        return self.user_namespace and not self.by_user

    def to_json(self) -> dict[str, Any]:
        return {
            "seccomp": base64.b64encode(self.seccomp).decode(),
            "masked": list(self.masked),
            "proc_read_only": self.proc_read_only,
            "hide_boot_id": self.hide_boot_id,
            "no_new_privileges": self.no_new_privileges,
            "no_setuid": self.no_setuid,
            "user_namespace": self.user_namespace,
            "by_user": self.by_user,
            "landlock": self.landlock,
            "capabilities": sorted(self.capabilities),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> RoomPolicy:
        return cls(
            seccomp=base64.b64decode(data["seccomp"]),
            masked=tuple(data["masked"]),
            proc_read_only=data["proc_read_only"],
            hide_boot_id=data["hide_boot_id"],
            no_new_privileges=data["no_new_privileges"],
            no_setuid=data["no_setuid"],
            user_namespace=data["user_namespace"],
            by_user=data["by_user"],
            landlock=data["landlock"],
            capabilities=frozenset(data["capabilities"]),
        )
