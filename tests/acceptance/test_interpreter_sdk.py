"""The official `e2b-code-interpreter` SDK, unmodified, against the code interpreter.

What stands where the gateway would is a relay of bytes; only what the SDK sends to port 49999 of a sandbox is served.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2b import InvalidArgumentException, NotFoundException, SandboxException, TimeoutException
from e2b.connection_config import ConnectionConfig
from e2b_code_interpreter import AsyncSandbox, Sandbox

from tests.support.interpreter import InterpreterProcess, data_packages


class Relay:
    """A TCP port whose connections are passed on to a unix socket."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                far = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                far.connect(str(self._path))
                for source, target in ((near, far), (far, near)):
                    threading.Thread(target=_copy, args=(source, target), daemon=True).start()

    def close(self) -> None:
        self._listener.close()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    for sock in (source, target):
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    directory = tmp_path_factory.mktemp("sdk")
    with InterpreterProcess(directory, data_packages(), ACCOUNT="mine") as process:
        process.run("1")
        relay = Relay(process.path)
        yield f"http://127.0.0.1:{relay.port}"
        relay.close()


def options(url: str) -> dict[str, object]:
    return {
        "sandbox_id": "i0",
        "sandbox_domain": None,
        "envd_version": "0.6.13",
        "envd_access_token": "token",
        "connection_config": ConnectionConfig(api_key="key", sandbox_url=url),
    }


@pytest.fixture
def sandbox(url: str) -> Sandbox:
    return Sandbox(**options(url))


def test_a_result_its_number_and_what_is_left_for_the_next_call(sandbox):
    first = sandbox.run_code("x = 1; x")
    assert first.text == "1"
    assert sandbox.run_code("x += 1; x").text == "2"
    assert sandbox.run_code("x").execution_count == first.execution_count + 2


def test_callbacks_get_each_piece(sandbox):
    out, err, results, errors = [], [], [], []
    execution = sandbox.run_code(
        "import sys\nprint('hello')\nprint('oh', file=sys.stderr)\ndisplay(1)\nnothing",
        on_stdout=out.append,
        on_stderr=err.append,
        on_result=results.append,
        on_error=errors.append,
    )
    assert [message.line for message in out] == execution.logs.stdout == ["hello\n"]
    assert [message.line for message in err] == execution.logs.stderr == ["oh\n"]
    assert [result.text for result in results] == ["1"]
    assert [error.name for error in errors] == ["NameError"]
    assert execution.error.value == "name 'nothing' is not defined"


def test_a_chart_is_read_by_the_sdk(sandbox):
    execution = sandbox.run_code(
        "import matplotlib.pyplot as plt\nplt.pie([90, 10], labels=['No', 'Yes']); plt.title('Up?'); plt.show()"
    )
    [result] = execution.results
    assert set(result.formats()) == {"text", "png", "chart"}
    assert (result.chart.type, result.chart.title) == ("pie", "Up?")
    assert [(pie.label, round(pie.angle)) for pie in result.chart.elements] == [("No", 324), ("Yes", 36)]


def test_variables_of_a_call(sandbox):
    assert sandbox.run_code("import os; os.getenv('ACCOUNT')", envs={"ACCOUNT": "other"}).text == "other"
    assert sandbox.run_code("os.getenv('ACCOUNT')").text == "mine"


def test_contexts(sandbox):
    context = sandbox.create_code_context(cwd="/tmp", language="python")
    assert (context.language, context.cwd) == ("python", "/tmp")
    assert sandbox.list_code_contexts()[-1].id == context.id
    sandbox.run_code("x = 'own'", context=context)
    assert sandbox.run_code("x", context=context).text == "own"
    sandbox.restart_code_context(context)
    assert sandbox.run_code("x", context=context).error.name == "NameError"
    sandbox.remove_code_context(context)
    assert context.id not in [each.id for each in sandbox.list_code_contexts()]
    with pytest.raises(NotFoundException, match="not found"):
        sandbox.run_code("x", context=context)
    with pytest.raises(NotFoundException):
        sandbox.remove_code_context(context)


def test_refusals(sandbox):
    with pytest.raises(SandboxException, match="no kernel for the language"):
        sandbox.run_code("1", language="cobol")
    with pytest.raises(SandboxException, match="No such file or directory"):
        sandbox.create_code_context(cwd="/nowhere")
    with pytest.raises(InvalidArgumentException):
        sandbox.run_code("1", language="js", context=sandbox.list_code_contexts()[0])


def test_after_a_timeout_the_context_is_free(sandbox):
    with pytest.raises(TimeoutException):
        sandbox.run_code("kept = 1\nimport time\ntime.sleep(300)", timeout=1)
    assert sandbox.run_code("kept", timeout=20).text == "1"


def test_javascript_is_listed(sandbox):
    assert [context.language for context in sandbox.list_code_contexts()][:2] == ["python", "javascript"]


async def test_the_asynchronous_client(url):
    sandbox = AsyncSandbox(**options(url))
    contexts = await asyncio.gather(*(sandbox.create_code_context() for _ in range(4)))
    codes = [sandbox.run_code(f"print({n})\n{n}", context=context) for n, context in enumerate(contexts)]
    executions = await asyncio.gather(*codes)
    assert [execution.text for execution in executions] == ["0", "1", "2", "3"]
    assert [execution.logs.stdout for execution in executions] == [["0\n"], ["1\n"], ["2\n"], ["3\n"]]


def test_output_streams(sandbox):
    times = []
    sandbox.run_code("import time\nfor _ in range(3): print(1); time.sleep(0.1)", on_stdout=lambda _: times.append(1))
    assert len(times) == 3
