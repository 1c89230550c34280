"""A burst: 200 sessions at once, from zero, each with an instance of its own.

Every round is a new function, 200 connections, one request each with a session id of its own. The handler replies with
a random word it drew when it was imported: 200 different words are 200 instances.
"""

from __future__ import annotations

import json
import subprocess
import time
from typing import Any

from bench import _harness, _load, _servers

HANDLER = """
import os
WORD = os.urandom(8).hex()

def handler(event, context):
    return {"statusCode": 200, "headers": {"content-type": "text/plain"}, "body": WORD}
"""
HEADER = "x-bench-session"


def deploy(server: _servers.Roost, name: str, *, sessions: int, handler: str = HANDLER) -> None:
    """A function whose every session has an instance of its own."""
    affinity = {
        "affinityHeaderFieldName": HEADER,
        "sessionConcurrencyPerInstance": 1,
        "sessionTTLInSeconds": 3600,
        "sessionIdleTimeoutInSeconds": 1800,
    }
    server.deploy(
        name,
        {"index.py": handler},
        handler="index.handler",
        sessionAffinity="HEADER_FIELD",
        sessionAffinityConfig=json.dumps(affinity),
        instanceIsolationMode="SESSION_EXCLUSIVE",
        roost={"maxInstances": sessions + 10},
    )


def burst(server: _servers.Roost, name: str, sessions: int) -> dict[str, Any]:
    command = _load.command(server.port, f"/{name}/", "--burst", sessions, "--session-header", HEADER)
    result: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    return result


def wait_until_idle(server: _servers.Roost, name: str, count: int) -> None:
    """Return when `count` instances are frozen, and a moment for the kernel to settle."""
    end = time.monotonic() + 120
    while server.metric("roost_instances", function=name, state="frozen") < count:
        if time.monotonic() > end:
            raise RuntimeError(f"{count} instances of {name} did not become idle in 2 minutes")
        time.sleep(0.5)
    time.sleep(1)


def available_bytes() -> int:
    with open("/proc/meminfo") as file:
        [line] = [line for line in file if line.startswith("MemAvailable:")]
    return int(line.split()[1]) * 1024


def main() -> None:
    parser = _harness.arguments(__doc__)
    parser.add_argument("--sessions", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    _harness.begin(f"{options.sessions} sessions at once, from zero", options)
    promises = _harness.Promises()
    latencies: list[float] = []
    lost = shared = 0
    held: list[float] = []
    charged: list[float] = []
    with _servers.roost() as server:
        deploy(server, "warm-up", sessions=1)
        burst(server, "warm-up", 1)
        for number in range(options.rounds):
            name = f"burst-{number}"
            deploy(server, name, sessions=options.sessions)
            before = available_bytes()
            result = burst(server, name, options.sessions)
            latencies += [seconds * 1000 for seconds in result["latencies"]]
            lost += options.sessions - result["answered"]
            shared += options.sessions - len(set(result["bodies"]))
            wait_until_idle(server, name, result["answered"])
            held.append((before - available_bytes()) / options.sessions / 2**20)
            charged.append(server.metric("roost_memory_bytes", function=name) / options.sessions / 2**20)
            server.call("DELETE", f"/functions/{name}")
            time.sleep(5)
    _harness.table("Request to first answer", "ms", {"Roost": latencies}, reference="Roost")
    print("\n| memory per idle instance, MB | median | most |\n|---|---:|---:|")
    print(f"| taken from the machine's available memory | {_harness.stats(held).median:.2f} | {max(held):.2f} |")
    print(f"| charged to the instances' cgroups | {_harness.stats(charged).median:.2f} | {max(charged):.2f} |")
    promises.at_most("requests without an answer", lost, 0, "requests")
    promises.at_most("sessions that shared an instance", shared, 0, "sessions")
    promises.at_most("memory per idle instance", _harness.stats(held).median, 8.0, "MB")
    _harness.end(promises, options)


if __name__ == "__main__":
    main()
