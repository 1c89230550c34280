"""The chat agent's parts: history, interpreter, tools and the pieces of the model client."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import zipfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.support.example_app import EXAMPLES, example_modules


@pytest.fixture(scope="module")
def parts() -> Iterator[dict[str, ModuleType]]:
    names = ("history", "interpreter", "tools", "model")
    with example_modules("chat-agent", *names) as modules:
        yield dict(zip(names, modules, strict=True))


@pytest.fixture
async def interpreter(parts: dict[str, ModuleType], tmp_path: Path) -> AsyncIterator[Any]:
    instance = parts["interpreter"].Interpreter(
        directory=tmp_path / "files", packages=tmp_path / "packages", output_bytes=2000
    )
    yield instance
    await instance.close()


@pytest.mark.parametrize(
    ("code", "output"),
    [
        ("print('a'); 1 + 1", "a\n2"),
        ("x = 5", ""),
        ("import os; os.system('echo from a shell'); None", "from a shell"),
        ("import sys; print('out'); print('err', file=sys.stderr)", "out\nerr"),
        ("input()", 'Traceback (most recent call last):\n  File "<call 1>", line 1, in <module>\n    input()\n'
                    "EOFError: EOF when reading a line"),
        ("exit(3)", "SystemExit: 3"),
        ("1 +", '  File "<call 1>", line 1\n    1 +\n       ^\nSyntaxError: invalid syntax'),
        ("__name__", "'__main__'"),
        ("'é' * 2", "'éé'"),
    ],
)  # fmt: skip
async def test_what_code_shows(interpreter: Any, code: str, output: str) -> None:
    assert await interpreter.run(code) == output


async def test_a_traceback_shows_the_code_and_nothing_of_ours(interpreter: Any) -> None:
    text = await interpreter.run("def half(x):\n    return x / 0\nhalf(1)")
    assert "return x / 0" in text
    assert text.endswith("ZeroDivisionError: division by zero")
    assert "interpreter_process" not in text


async def test_long_output_keeps_both_ends(interpreter: Any) -> None:
    text = await interpreter.run("print('begin'); print('x' * 100_000); print('end')")
    assert text.startswith("begin")
    assert text.endswith("end")
    assert "bytes left out" in text
    assert len(text) < 2100


async def test_code_that_runs_too_long_is_interrupted_and_variables_are_kept(
    parts: dict[str, ModuleType], tmp_path: Path
) -> None:
    slow = parts["interpreter"].Interpreter(directory=tmp_path, packages=tmp_path, timeout_s=0.5)
    await slow.run("x = 1")
    text = await slow.run("print('begun', flush=True)\nimport time\ntime.sleep(60)")
    assert text.startswith("begun")
    assert text.endswith("[stopped after 0.5 s; variables are kept]")
    assert await slow.run("x") == "1"
    await slow.close()


async def test_code_that_ignores_the_interrupt_is_killed(
    parts: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts["interpreter"], "INTERRUPT_GRACE_S", 0.3)
    slow = parts["interpreter"].Interpreter(directory=tmp_path, packages=tmp_path, timeout_s=0.5)
    code = "import signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\ntime.sleep(60)"
    assert await slow.run(code) == "[stopped after 0.5 s; variables are lost]"
    assert await slow.run("1") == "1"
    await slow.close()


async def test_a_dead_interpreter_is_replaced(interpreter: Any) -> None:
    assert await interpreter.run("import os; print('bye', flush=True); os._exit(1)") == (
        "bye\n[the interpreter ended; variables are lost]"
    )
    assert await interpreter.run("1") == "1"


async def test_a_cancelled_call_is_interrupted_and_the_next_one_sees_none_of_its_output(interpreter: Any) -> None:
    await interpreter.run("x = 1")
    running = asyncio.create_task(
        interpreter.run("open('started', 'w').close()\nimport time\nfor i in range(600): print(i); time.sleep(0.1)")
    )
    started = interpreter._directory / "started"
    while not started.exists():
        await asyncio.sleep(0.01)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert await interpreter.run("x") == "1"


async def test_close_ends_what_the_code_started(interpreter: Any) -> None:
    pid = int(await interpreter.run("import subprocess\nsubprocess.Popen(['sleep', '600']).pid"))
    await interpreter.close()
    for _ in range(500):
        status = Path(f"/proc/{pid}/stat")
        if not status.exists() or status.read_text().split()[2] == "Z":
            return
        await asyncio.sleep(0.01)
    pytest.fail("the process lives on")


def test_history_skips_a_torn_line_and_goes_on(parts: dict[str, ModuleType], tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    history = parts["history"].History(path)
    history.append({"role": "user", "content": "one"})
    with path.open("a") as file:
        file.write('\n[{"role": "assist')
    again = parts["history"].History(path)
    again.append({"role": "user", "content": "two"})
    assert [m["content"] for m in parts["history"].History(path).messages] == ["one", "two"]


def test_the_context_starts_with_a_turn_of_the_user(parts: dict[str, ModuleType], tmp_path: Path) -> None:
    history = parts["history"].History(tmp_path / "history.jsonl")
    for turn in range(10):
        history.append({"role": "user", "content": f"question {turn}"})
        history.append({"role": "assistant", "content": "a" * 100})
    recent = history.recent(500)
    assert recent[0]["role"] == "user"
    assert recent[-1] == history.messages[-1]
    assert len(json.dumps(recent)) < 600
    assert history.recent(1)[0]["content"] == "question 9"
    assert history.recent(1 << 20) == history.messages


@pytest.mark.parametrize("name", ["numpy", "numpy==2.1.0", "pandas>=2,<3", "uvicorn[standard]", "zope.interface"])
def test_names_of_packages(parts: dict[str, ModuleType], name: str) -> None:
    assert parts["tools"].REQUIREMENT.fullmatch(name)


@pytest.mark.parametrize("name", ["", "-r /etc/pwd", "--target=/", "a b", "git+https://x", "./local", "a;b", "a @b"])
def test_no_names_of_packages(parts: dict[str, ModuleType], name: str) -> None:
    assert not parts["tools"].REQUIREMENT.fullmatch(name)


async def test_a_package_installed_is_there_at_once(
    parts: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel(tmp_path / "index")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_USER", "1")  # as in a room
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    tools = parts["tools"].Toolbox(tmp_path / "session")
    assert "ModuleNotFoundError" in await tools.call("run_python", json.dumps({"code": "import nest_demo"}))
    assert await tools.call("install_package", '{"name": "nest-demo"}') == "installed nest-demo"
    code = json.dumps({"code": "import nest_demo; nest_demo.eggs"})
    assert await tools.call("run_python", code) == "3"
    assert "No matching distribution" in await tools.call("install_package", '{"name": "no-such-demo"}')
    await tools.close()


def wheel(folder: Path) -> None:
    """A package of one line."""
    folder.mkdir()
    info = "nest_demo-1.0.dist-info"
    with zipfile.ZipFile(folder / "nest_demo-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr("nest_demo.py", "eggs = 3\n")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: nest-demo\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


async def test_paths_stay_inside(parts: dict[str, ModuleType], tmp_path: Path) -> None:
    tools = parts["tools"].Toolbox(tmp_path / "session")
    assert await tools.call("list_files", "{}") == "no files"
    await tools.call("write_file", '{"path": "a.txt", "content": "A"}')
    os.symlink("/etc", tmp_path / "session" / "files" / "etc")
    for path in ("/etc/passwd", "../history.jsonl", "etc/passwd"):
        assert "outside the session's folder" in await tools.call("read_file", json.dumps({"path": path}))
    assert await tools.call("read_file", '{"path": "a.txt"}') == "A"


def test_long_results_are_shortened(parts: dict[str, ModuleType]) -> None:
    text = parts["tools"].shorten("a" * 30_000 + "b" * 30_000)
    assert len(text) < 20_100
    assert text.startswith("aaa")
    assert text.endswith("bbb")


def test_calls_are_put_together_even_if_the_name_is_repeated(parts: dict[str, ModuleType]) -> None:
    calls: dict[int, Any] = {}
    for piece in ('{"co', 'de": "1"}'):
        part = {"index": 0, "id": "call_a", "function": {"name": "run_python", "arguments": piece}}
        parts["model"].add_call(calls, part)
    parts["model"].add_call(calls, {"index": 1, "function": {"name": "list_files"}})
    assert calls[0]["function"] == {"name": "run_python", "arguments": '{"code": "1"}'}
    assert calls[1] == {"id": "call_1", "type": "function", "function": {"name": "list_files", "arguments": ""}}


def test_importing_the_agent_needs_the_standard_library_alone() -> None:
    own = {path.stem for path in (EXAMPLES / "chat-agent").glob("*.py")}
    with example_modules("chat-agent", "app"):
        imported = set()
        for name in own & set(sys.modules):
            values = vars(sys.modules[name]).values()
            modules = {v.__name__ if isinstance(v, ModuleType) else getattr(v, "__module__", None) for v in values}
            imported |= {str(module).split(".")[0] for module in modules if module}
    assert imported - own <= sys.stdlib_module_names | {"builtins"}
