"""`python -m bench [NAME ...]`: installs the peers where they are missing, then runs the named benchmarks, or all.

Options after `--` go to each of them (`--runs`, `--check`).
"""

from __future__ import annotations

import subprocess
import sys

from bench import _servers

ALL = (
    "cold_start",
    "warm",
    "burst",
    "frozen",
    "tasks",
    "prune",
    "fork_files",
    "sandboxes",
    "branch",
    "layers",
    "neighbours",
)


def install_peers() -> None:
    """The environment of bench/requirements.txt; without it the peers' rows are left out."""
    if (_servers.PEERS / "bin" / "swerex-remote").exists():
        return
    print(f"Installing what Roost is measured beside into {_servers.PEERS} (a few minutes)", flush=True)
    requirements = _servers.ROOT / "bench" / "requirements.txt"
    subprocess.run([sys.executable, "-m", "venv", str(_servers.PEERS)], check=True)
    pip = [str(_servers.PEERS / "bin" / "python"), "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
    if subprocess.run([*pip, "-r", str(requirements)], check=False).returncode:
        print("The peers could not be installed; their rows are left out.", flush=True)


def main(arguments: list[str]) -> int:
    split = arguments.index("--") if "--" in arguments else len(arguments)
    names, options = arguments[:split] or list(ALL), arguments[split + 1 :]
    unknown = [name for name in names if name not in ALL]
    if unknown:
        print(f"No benchmark is named {unknown[0]!r}; there are: {', '.join(ALL)}.", file=sys.stderr)
        return 2
    install_peers()
    failed = 0
    for name in names:
        failed += subprocess.run(
            [sys.executable, "-m", f"bench.{name}", *options], cwd=_servers.ROOT, check=False
        ).returncode
        print(flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
