"""Sandboxes as the API shows them. Pure."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

from roost.model.function import Limits
from roost.model.sandbox import PauseMode, Sandbox, SandboxState
from roost.sandboxes.lines import LogLine
from roost.sandboxes.samples import Sample
from roost.sandboxes.templates import ENVD_VERSION

#: The field names a machine of a cluster; this server is one machine.
CLIENT_ID = "roost"


def moment(at: float) -> str:
    """Unix seconds as RFC 3339, to the microsecond."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def created(sandbox: Sandbox, domain: str) -> dict[str, Any]:
    """The answer to who made it, or connects to it: with its tokens."""
    return {
        "templateID": sandbox.template,
        "sandboxID": sandbox.id,
        "clientID": CLIENT_ID,
        "envdVersion": ENVD_VERSION,
        "alias": sandbox.alias or sandbox.template,
        "envdAccessToken": sandbox.envd_token,
        "trafficAccessToken": sandbox.traffic_token,
        "domain": domain,
    }


def listed(sandbox: Sandbox) -> dict[str, Any]:
    """One line of a listing."""
    return {
        "templateID": sandbox.template,
        "sandboxID": sandbox.id,
        "clientID": CLIENT_ID,
        "alias": sandbox.alias or sandbox.template,
        "startedAt": moment(sandbox.created),
        "endAt": moment(sandbox.ends_at),
        "state": sandbox.state.value,
        "cpuCount": cpu_count(sandbox.limits),
        "memoryMB": sandbox.limits.memory_mb,
        "diskSizeMB": sandbox.limits.disk_mb,
        "envdVersion": ENVD_VERSION,
        "metadata": dict(sandbox.metadata),
        "volumeMounts": [{"name": volume.name, "path": volume.path} for volume in sandbox.volumes],
    }


def detail(sandbox: Sandbox, domain: str) -> dict[str, Any]:
    """All that there is to know of it.

    `allowInternetAccess` is what is true, not what was asked for: a room has no way out but the host's doors.
    """
    shown = {
        **listed(sandbox),
        "envdAccessToken": sandbox.envd_token,
        "domain": domain,
        "allowInternetAccess": False,
        "network": {**sandbox.network, "allowPublicTraffic": sandbox.public},
        "lifecycle": {
            "autoResume": sandbox.auto_resume,
            "onTimeout": "pause" if sandbox.auto_pause else "kill",
        },
    }
    if sandbox.state is SandboxState.PAUSED:
        shown["pauseMode"] = (sandbox.pause_mode or PauseMode.FILESYSTEM).value
        shown["pauseReason"] = sandbox.reason
    return shown


def metric(sandbox: Sandbox, sample: Sample) -> dict[str, Any]:
    """One sample. The room's page cache counts as used memory; how much of it is cache is not told apart."""
    return {
        "timestamp": moment(sample.at),
        "timestampUnix": int(sample.at),
        "cpuCount": cpu_count(sandbox.limits),
        "cpuUsedPct": sample.cpu_pct,
        "memUsed": sample.memory_bytes,
        "memTotal": sandbox.limits.memory_mb << 20,
        "memCache": 0,
        "diskUsed": sample.disk_bytes,
        "diskTotal": sandbox.limits.disk_mb << 20,
    }


def log_entry(line: LogLine) -> dict[str, Any]:
    """A line with its fields."""
    return {
        "timestamp": moment(line.at),
        "message": line.text,
        "level": "error" if line.stream == "stderr" else "info",
        "fields": {"stream": line.stream},
    }


def cpu_count(limits: Limits) -> int:
    """Whole CPUs, at least one."""
    return max(1, math.ceil(limits.cpu))
