"""A Python context in an interpreter of its own, where the one of the daemon has not the right libraries in memory.

python3 -m roost.guest.sandbox.interpreter.python.cold, with the context's socket as descriptor 3
"""

from __future__ import annotations

import importlib
import json
import os
import socket

from roost.guest.loading import prepare_path
from roost.guest.sandbox.interpreter import frames


def main() -> None:
    sock = socket.socket(fileno=3)
    sock.set_inheritable(False)
    env = dict(os.environ)
    prepare_path("", env["PYTHONUSERBASE"])
    try:
        context = importlib.import_module("roost.guest.sandbox.interpreter.python.context")
    except ImportError as error:
        text = (
            f"Python contexts need IPython, which this template has not ({error}); "
            "use the template code-interpreter-v1, or install ipython"
        )
        sock.sendall(frames.frame(frames.FAILED, json.dumps({"error": text}).encode()))
        return
    context.run(sock, env)


if __name__ == "__main__":
    main()
