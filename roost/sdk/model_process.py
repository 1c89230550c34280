"""Starts the local model beside the server, and sees to it that it does not outlive it."""

from __future__ import annotations

import ctypes
import signal
import socket
import subprocess
import time

import httpx

from roost.sdk.errors import Failed
from roost.sdk.local_model import MODEL_NAME, LocalModelMissing, command

_START_TIMEOUT = 60.0
_PR_SET_PDEATHSIG = 1


def start_local_model() -> dict[str, str]:
    """Start it; the environment that leads an OpenAI client to it, once it answers. Raises Failed.

    It gets SIGTERM when this process ends, also after this process has become another program.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    try:
        words = command(port)
    except LocalModelMissing as error:
        raise Failed(str(error)) from error
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL, preexec_fn=_end_with_parent)  # noqa: PLW1509
    url = f"http://127.0.0.1:{port}/v1"
    deadline = time.monotonic() + _START_TIMEOUT
    while not _answers(f"{url}/models"):
        if process.poll() is not None:
            raise Failed("The local model ended at once; what it said is above.")
        if time.monotonic() > deadline:
            process.kill()
            process.wait()
            raise Failed(f"The local model did not answer in {_START_TIMEOUT:.0f} s.")
        time.sleep(0.1)
    return {"OPENAI_BASE_URL": url, "OPENAI_API_KEY": "none", "OPENAI_MODEL": MODEL_NAME}


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2.0, trust_env=False).is_success
    except httpx.HTTPError:
        return False
