"""`nasConfig` and `ossMountConfig` to mounts of named volumes. Used for functions and for sessions."""

from __future__ import annotations

import re
from collections.abc import Sequence

from roost.functions.definition import NasConfig, OssMountConfig
from roost.model.errors import InvalidArgument
from roost.model.function import SESSION_TARGET, SHARED_SESSIONS_TARGET, IsolationMode, VolumeMount

_VOLUME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
#: Where a mount would hide what the room itself needs; /mnt/session(s) hold the sessions' own files.
_TAKEN = (
    "/.roost",
    "/bin",
    "/code",
    "/dev",
    "/etc",
    "/lib",
    "/lib64",
    SESSION_TARGET,
    SHARED_SESSIONS_TARGET,
    "/opt",
    "/proc",
    "/run",
    "/sbin",
    "/sys",
    "/usr",
)


def volume_mounts(
    nas: NasConfig | None,
    oss: OssMountConfig | None,
    quota_mb: int | None = None,
    *,
    mode: IsolationMode = IsolationMode.SHARE,
) -> tuple[VolumeMount, ...]:
    """All mounts, in order. Raises InvalidArgument naming the field. `mode` decides whether `{task}` may be used."""
    mounts: list[VolumeMount] = []
    for index, nas_point in enumerate((nas and nas.mount_points) or ()):
        where = f"nasConfig.mountPoints[{index}]"
        volume, _, path = nas_point.server_addr.partition(":")
        mounts.append(
            VolumeMount(
                volume=_volume(f"{where}.serverAddr", volume),
                path=_clean(f"{where}.serverAddr", path or "/"),
                target=_target(f"{where}.mountDir", nas_point.mount_dir),
                quota_mb=quota_mb,
            )
        )
    for index, oss_point in enumerate((oss and oss.mount_points) or ()):
        where = f"ossMountConfig.mountPoints[{index}]"
        mounts.append(
            VolumeMount(
                volume=_volume(f"{where}.bucketName", oss_point.bucket_name),
                path=_clean(f"{where}.bucketPath", oss_point.bucket_path or "/"),
                target=_target(f"{where}.mountDir", oss_point.mount_dir),
                read_only=bool(oss_point.read_only),
                quota_mb=quota_mb,
            )
        )
    for mount in mounts:
        _check_task_step(mount, mode)
    check_apart(mounts)
    return tuple(mounts)


def _check_task_step(mount: VolumeMount, mode: IsolationMode) -> None:
    """Raise InvalidArgument for a `{task}` that can't be honoured."""
    if "{task}" not in mount.path:
        return
    where = f"The path {mount.path} of volume {mount.volume}"
    if not mount.per_task or "{task}" in mount.base:
        raise InvalidArgument(f"{where}: {{task}} has to be its last step.")
    if mode is IsolationMode.SHARE:
        raise InvalidArgument(
            f"{where}: {{task}} needs a function whose instances are not shared "
            "(instanceIsolationMode SESSION_EXCLUSIVE or REQUEST_EXCLUSIVE)."
        )
    if mount.read_only:
        raise InvalidArgument(f"{where}: a folder for each {{task}} can't be read-only.")
    if mode is IsolationMode.REQUEST_EXCLUSIVE and mount.quota_mb is not None:
        raise InvalidArgument(
            f"{where}: {{task}} has no quota where each request has its instance; leave volumeQuotaMB out."
        )


def _volume(field: str, name: str) -> str:
    if not _VOLUME.fullmatch(name):
        raise InvalidArgument(
            f"{field}: {name[:80]!r} does not name a volume (letters, digits, '.', '_' and '-', at most 128)."
        )
    return name


def _clean(field: str, path: str) -> str:
    parts = [part for part in path.split("/") if part not in {"", "."}]
    if not path.startswith("/") or ".." in parts or any(ord(char) < 32 for char in path):
        raise InvalidArgument(f"{field}: {path[:80]!r} is not an absolute path without '..'.")
    return "/" + "/".join(parts)


def _target(field: str, path: str) -> str:
    target = _clean(field, path)
    if target == "/" or any(target == taken or target.startswith(taken + "/") for taken in _TAKEN):
        raise InvalidArgument(f"{field}: {target} is the room's own; mount below /mnt, /home, /data or the like.")
    return target


def check_apart(mounts: Sequence[VolumeMount]) -> None:
    """Raise InvalidArgument when one mount would hide another."""
    targets = [mount.target for mount in mounts]
    for index, target in enumerate(targets):
        for other in targets[:index]:
            if target == other or target.startswith(other + "/") or other.startswith(target + "/"):
                raise InvalidArgument(f"mountDir: {target} and {other} lie in each other.")
