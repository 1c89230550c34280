"""The users of the room: who they are, what a login of theirs looks like, and how a process becomes one."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from roost.guest.environment import BUNDLE_BIN, PATH

_LOWEST, _HIGHEST = 0, 2**32 - 2  # the last id means "none" to the kernel
MAX_DATABASE = 4 << 20  # of /etc/passwd and /etc/group


class UnknownUser(LookupError):
    """The room has no user of this name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class User:
    """A user of the room. `groups` are all of theirs, the primary one among them."""

    name: str
    uid: int
    gid: int
    home: str
    shell: str
    groups: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Names:
    """Of users and groups by their ids; the number itself for an id that nobody has."""

    users: Mapping[int, str]
    groups: Mapping[int, str]

    def user(self, uid: int) -> str:
        return self.users.get(uid) or str(uid)

    def group(self, gid: int) -> str:
        return self.groups.get(gid) or str(gid)


@dataclass(kw_only=True, slots=True)
class _Database:
    """What /etc/passwd and /etc/group say. The first entry of a name or an id wins, as in the C library."""

    stamp: tuple[object, ...] = ()
    users: dict[str, User] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)
    group_names: dict[int, str] = field(default_factory=dict)
    group_ids: dict[str, int] = field(default_factory=dict)
    members: dict[str, list[int]] = field(default_factory=dict)


class Identities:
    """Reads the room's user database itself: the guest's C library would load name service modules of the room.

    `env` is the sandbox's environment, `default` the user who acts when a request names none, `workdir` where relative
    work of theirs starts. With `own_python`, `python3` is first of all the guest's own, on which code contexts run.

    A room that no root made may have one id alone: then every user of it is that one, its root, and has the groups that
    all its processes have, since nobody there can change them. Names, homes and shells are the users' own.
    """

    def __init__(
        self,
        *,
        default: str,
        env: Mapping[str, str],
        workdir: str = "",
        own_python: bool = False,
        database: Path = Path("/etc"),
        id_map: Path = Path("/proc/self/uid_map"),
    ) -> None:
        self.default = default
        self._path = f"{BUNDLE_BIN}:{PATH}" if own_python else f"{PATH}:{BUNDLE_BIN}"
        self.env = {"E2B_SANDBOX": "true", **env}
        self.workdir = workdir
        self._passwd = database / "passwd"
        self._group = database / "group"
        self._known = _Database()
        self._one_id = has_one_id(id_map)

    def lookup(self, name: str) -> User:
        """Raises UnknownUser."""
        known = self._read()
        user = known.users.get(name)
        if user is None:
            raise UnknownUser(f"user: unknown user {name}")
        if self._one_id:
            return replace(user, uid=0, gid=0, groups=tuple(os.getgroups()))
        return User(
            name=user.name,
            uid=user.uid,
            gid=user.gid,
            home=user.home,
            shell=user.shell,
            groups=tuple(dict.fromkeys([user.gid, *known.members.get(name, ())])),
        )

    def by_uid(self, uid: int) -> User:
        """Raises UnknownUser."""
        name = self._read().names.get(uid)
        if name is None:
            raise UnknownUser(f"user: unknown userid {uid}")
        return self.lookup(name)

    def names(self) -> Names:
        """The names of ids, as they are now."""
        known = self._read()
        return Names(users=known.names, groups=known.group_names)

    def group_id(self, name: str) -> int | None:
        return self._read().group_ids.get(name)

    def environment(self, user: User) -> dict[str, str]:
        """The variables of a login of `user`; the sandbox's own win."""
        return {
            "PATH": self._path,
            "HOME": user.home,
            "USER": user.name,
            "LOGNAME": user.name,
            "SHELL": user.shell,
            **self.env,
        }

    def _read(self) -> _Database:
        stamp = (_stamp(self._passwd), _stamp(self._group))
        if stamp != self._known.stamp:
            self._known = _parse(stamp, _lines(self._passwd), _lines(self._group))
        return self._known


def become(user: User) -> None:
    """Turn this process (a fork) into one of `user`, for good. OSError if the room's root may not do that."""
    take_groups(user.groups)
    os.setresgid(user.gid, user.gid, user.gid)
    os.setresuid(user.uid, user.uid, user.uid)


def take_groups(groups: Sequence[int]) -> None:
    """Be in these alone. OSError if that is a change which the room's root may not make."""
    if list(groups) != os.getgroups():
        os.setgroups(groups)


def has_one_id(id_map: Path) -> bool:
    """Whether the user namespace of that table has no other id than 0."""
    try:
        return [line.split()[::2] for line in id_map.read_text().splitlines()] == [["0", "1"]]
    except OSError:
        return False


def _stamp(path: Path) -> tuple[int, ...]:
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_ino, found.st_size, found.st_mtime_ns


def _lines(path: Path) -> list[list[str]]:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_DATABASE)
    except OSError:
        return []
    return [line.split(":") for line in os.fsdecode(data).splitlines() if line and not line.startswith("#")]


def _parse(stamp: tuple[object, ...], passwd: list[list[str]], group: list[list[str]]) -> _Database:
    known = _Database(stamp=stamp)
    for entry in passwd:
        if len(entry) < 7 or not entry[0]:
            continue
        uid, gid = _id(entry[2]), _id(entry[3])
        if uid is None or gid is None:
            continue
        user = User(name=entry[0], uid=uid, gid=gid, home=entry[5] or "/", shell=entry[6] or "/bin/sh")
        known.users.setdefault(user.name, user)
        known.names.setdefault(uid, user.name)
    for entry in group:
        gid = _id(entry[2]) if len(entry) > 3 else None
        if gid is None:
            continue
        known.group_names.setdefault(gid, entry[0])
        known.group_ids.setdefault(entry[0], gid)
        for member in entry[3].split(","):
            if member:
                known.members.setdefault(member, []).append(gid)
    return known


def _id(text: str) -> int | None:
    if not text.isascii() or not text.isdigit() or len(text) > 10:
        return None
    return number if _LOWEST <= (number := int(text)) <= _HIGHEST else None
