"""The tracer, of whose tasks one is killed when it has just made another, and before it could tell which.

Run with a socket's descriptor and a number: which of those that make one, counted from 1.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from roost.isolation.namespaces import tracer
from roost.isolation.tracing import ptrace


def main() -> None:
    tell, left = ptrace.event_message, int(sys.argv[2])

    def event_message(pid: int) -> int:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(pid, signal.SIGKILL)
            while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX":
                time.sleep(0.001)
        return tell(pid)

    ptrace.event_message = event_message
    tracer.main()


if __name__ == "__main__":
    main()
