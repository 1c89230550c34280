"""`python -m roost.isolation.doctor`: what this machine can do, and what is missing with the command that mends it.

Makes a room of each kind, where nothing is seen to be missing for it, and leaves nothing. Ends with 0 when functions
can run here for who asks, with 1 when not. `--json` for programs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from roost.isolation.driver import Preflight
from roost.isolation.gvisor.preflight import preflight as gvisor_preflight
from roost.isolation.namespaces.preflight import preflight as namespaces_preflight
from roost.isolation.unprivileged.preflight import preflight as unprivileged_preflight

_CONTROLLERS = frozenset({"cpu", "freezer", "memory", "pids"})


@dataclass(frozen=True, kw_only=True)
class Option:
    """A program that only some features need. `path` is empty when it is missing."""

    program: str
    what_for: str
    mend: str
    path: str = ""


OPTIONS = (
    Option(program="mmdebstrap", what_for="templates made from a Debian suite", mend="apt-get install mmdebstrap"),
    Option(program="node", what_for="agents in Node.js on the host template", mend="apt-get install nodejs npm"),
    Option(program="nft", what_for="transparent egress", mend="apt-get install nftables"),
)


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that was found."""

    root: bool
    kernel: str
    architecture: str
    python: str
    cgroup: str  # "v1", "v2", "hybrid" (version 1 with a version 2 tree beside it) or "none"
    controllers: tuple[str, ...]  # of those that limits and freezing are made of
    drivers: Mapping[str, Preflight]
    options: tuple[Option, ...]

    @property
    def ready(self) -> bool:
        """Whether functions can run here for this user: a server of root's has the namespaces driver, in whose rooms
        gVisor's stand; a user's has his own, and nothing falls back to it."""
        return self.drivers[self.usual].usable

    @property
    def usual(self) -> str:
        """The driver that a server of this user has."""
        return "namespaces" if self.root else "unprivileged"


def look(drivers: Mapping[str, Preflight], options: Sequence[Option] = OPTIONS) -> Report:
    """Look at this machine; `drivers` as they judged it themselves."""
    version, controllers = cgroups(_read("/proc/self/mounts"), _read("/sys/fs/cgroup/cgroup.controllers"))
    return Report(
        root=os.geteuid() == 0,
        kernel=platform.release(),
        architecture=platform.machine(),
        python=platform.python_version(),
        cgroup=version,
        controllers=controllers,
        drivers=drivers,
        options=tuple(
            Option(program=one.program, what_for=one.what_for, mend=one.mend, path=_which(one.program))
            for one in options
        ),
    )


def _which(program: str) -> str:
    """Also where a user's PATH does not lead."""
    return shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin") or ""


def cgroups(mounts: str, v2_controllers: str) -> tuple[str, tuple[str, ...]]:
    """The version and the controllers there are, from /proc/self/mounts and the root's cgroup.controllers. Pure."""
    v1: set[str] = set()
    v2 = False
    for line in mounts.splitlines():
        fields = line.split()
        if len(fields) >= 4 and fields[2] == "cgroup":
            v1 |= _CONTROLLERS & set(fields[3].split(","))
        v2 = v2 or (len(fields) >= 3 and fields[2] == "cgroup2")
    if v1:
        return ("hybrid" if v2 else "v1"), tuple(sorted(v1))
    if v2:
        # Version 2 freezes without a controller.
        return "v2", tuple(sorted(_CONTROLLERS & {*v2_controllers.split(), "freezer"}))
    return "none", ()


def as_text(report: Report) -> str:
    """The report for people."""
    lines = [
        f"user      {'root' if report.root else 'not root'}",
        f"kernel    {report.kernel} ({report.architecture})",
        f"python    {report.python}",
        f"cgroups   {report.cgroup}: {', '.join(report.controllers) or 'no controllers'}",
    ]
    for name, driver in report.drivers.items():
        lines.append(f"driver    {name}: {'usable' if driver.usable else 'NOT usable'} ({driver.level})")
        lines += [f"            {problem}" for problem in driver.problems]
    for one in report.options:
        lines.append(f"optional  {one.program}: {one.path or f'missing, for {one.what_for}: {one.mend}'}")
    can = f"Functions can run here, by the driver {report.usual}."
    lines.append(can if report.ready else "Functions can't run here yet.")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the report; ends with SystemExit."""
    parser = argparse.ArgumentParser(prog="roost doctor", description="Say what this machine can do for Roost.")
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    as_json = parser.parse_args(arguments).json
    report = look(
        {
            "namespaces": namespaces_preflight(),
            "unprivileged": unprivileged_preflight(),
            "gvisor": gvisor_preflight(),
        }
    )
    print(json.dumps({"ready": report.ready, **asdict(report)}, indent=2) if as_json else as_text(report))
    sys.exit(0 if report.ready else 1)


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


if __name__ == "__main__":
    main()
