"""Frozen instances: no CPU while idle, and how soon a thawed one replies.

CPU: each of the sessions has an instance whose handler leaves a thread spinning, the worst guest there is. When all
are frozen, the time that each of their threads has run (from /proc, in nanoseconds) is read twice; any difference is
CPU used.

Thaw: as many sessions of a plain handler; when all are frozen, each is asked once (the thaw) and at once a second time
(warm), one after the other.
"""

from __future__ import annotations

import time
from pathlib import Path

from bench import _harness, _servers, burst

SPINNING = """
import threading

def spin():
    while True:
        pass

threading.Thread(target=spin, daemon=True).start()

def handler(event, context):
    return {"statusCode": 200, "headers": {"content-type": "text/plain"}, "body": "hello"}
"""
WATCHED_S = 5.0


def threads_of(instances: list[str], proc: Path = Path("/proc")) -> dict[str, int]:
    """Nanoseconds on a CPU of every thread of these instances, found by their cgroups."""
    used: dict[str, int] = {}
    for process in proc.iterdir():
        if not process.name.isdigit():
            continue
        try:
            cgroups = (process / "cgroup").read_text()
            if not any(instance in cgroups for instance in instances):
                continue
            for thread in (process / "task").iterdir():
                used[f"{process.name}/{thread.name}"] = int((thread / "schedstat").read_text().split()[0])
        except (FileNotFoundError, ProcessLookupError):
            continue
    return used


def ask(server: _servers.Roost, function: str, session: int) -> float:
    return _servers.first_byte(server.port, f"/{function}/", headers=f"{burst.HEADER}: s{session}\r\n") * 1000


def freeze(server: _servers.Roost, function: str, handler: str, sessions: int) -> None:
    """Have `sessions` frozen instances of a new function."""
    burst.deploy(server, function, sessions=sessions, handler=handler)
    for session in range(sessions):
        ask(server, function, session)
    burst.wait_until_idle(server, function, sessions)


def cpu_while_frozen(server: _servers.Roost, sessions: int) -> int:
    """Nanoseconds that all threads of all frozen instances used in WATCHED_S."""
    freeze(server, "spinning", SPINNING, sessions)
    listed = server.call("GET", "/functions/spinning/instances")["instances"]
    instances = [instance["instanceId"] for instance in listed]
    before = threads_of(instances)
    time.sleep(WATCHED_S)
    after = threads_of(instances)
    if len(before) < 2 * sessions:
        raise RuntimeError(f"only {len(before)} threads of {sessions} instances were found")
    used = sum(after[thread] - before[thread] for thread in before if thread in after)
    print(f"\n{len(before)} threads of {sessions} frozen instances used {used} ns of CPU in {WATCHED_S:.0f} s.")
    return used


def thaw(server: _servers.Roost, sessions: int) -> dict[str, list[float]]:
    """Milliseconds to the first byte, from frozen and right after."""
    freeze(server, "plain", burst.HANDLER, sessions)
    series: dict[str, list[float]] = {"thaw": [], "warm": []}
    for session in range(sessions):
        series["thaw"].append(ask(server, "plain", session))
        series["warm"].append(ask(server, "plain", session))
    return series


def main() -> None:
    options = _harness.arguments(__doc__).parse_args()
    _harness.begin("Frozen instances", options)
    promises = _harness.Promises()
    with _servers.roost() as server:
        used = cpu_while_frozen(server, options.runs)
        server.call("DELETE", "/functions/spinning")
        series = thaw(server, options.runs)
    _harness.table("Request to first byte", "ms", series, reference="warm")
    promises.at_most("CPU of frozen instances", used, 0, "ns")
    promises.at_most("thaw to reply, median", _harness.stats(series["thaw"]).median, 5.0, "ms")
    _harness.end(promises, options)


if __name__ == "__main__":
    main()
