"""The command line as people run it, against the fake server: what is sent, what is printed, how it ends."""

import base64
import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from roost.sdk import bytecode, cli
from tests.support.fake_roost import FakeRoost
from tests.support.wheels import write_wheel

HEADER_SESSIONS = {
    "functionName": "agent",
    "sessionAffinity": "HEADER_FIELD",
    "sessionAffinityConfig": '{"affinityHeaderFieldName": "x-roost-session"}',
}


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str


Run = Callable[..., Ended]


@pytest.fixture
def server() -> Iterator[FakeRoost]:
    with FakeRoost() as fake:
        yield fake


@pytest.fixture
def run(
    server: FakeRoost, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes], tmp_path: Path
) -> Run:
    monkeypatch.setenv("ROOST_URL", server.url)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("ROOST_ACCESS_KEY_ID", raising=False)
    monkeypatch.delenv("ROOST_ACCESS_KEY_SECRET", raising=False)
    monkeypatch.delenv("ROOST_FUNCTION_KEY", raising=False)

    def go(*arguments: str, stdin: bytes = b"") -> Ended:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        out, err = capfdbinary.readouterr()
        return Ended(int(ended.value.code or 0), out.decode(errors="replace"), err.decode())

    return go


@pytest.fixture
def agent(tmp_path: Path) -> Path:
    folder = tmp_path / "agent"
    folder.mkdir()
    (folder / "agent.py").write_text("def handler(event, context):\n    return event\n")
    (folder / "roost.toml").write_text(
        'name = "agent"\nhandler = "agent.handler"\n[env]\nA = "${HOME}"\n[session]\naffinity = "header"\n'
    )
    return folder


def test_deploy_creates_then_updates(run: Run, server: FakeRoost, agent: Path) -> None:
    server.python = sys.version.split()[0]
    first = run("deploy", str(agent), "--env", "B=$x")
    assert (first.code, first.err) == (0, "")
    assert first.out.startswith("Deployed agent (")
    assert "roost chat agent" in first.out
    sent = server.last("POST", "/2023-03-30/functions").json()
    assert sent["environmentVariables"] == {"A": os.environ["HOME"], "B": "$x"}
    archive = zipfile.ZipFile(io.BytesIO(base64.b64decode(sent["code"]["zipFile"])))
    assert archive.namelist() == [bytecode.place("agent.py"), "agent.py", "roost.toml"]

    assert run("deploy", str(agent)).out.startswith("Updated agent (")
    update = server.last("PUT", "/2023-03-30/functions/agent").json()
    assert update["handler"] == "agent.handler"
    assert update["memorySize"] is None  # taken out of roost.toml: back to the default
    assert "code" not in update  # unchanged: not sent again

    (agent / "agent.py").write_text("def handler(event, context):\n    return b''\n")
    run("deploy", str(agent))
    assert "code" in server.last("PUT", "/2023-03-30/functions/agent").json()
    server.functions["agent"]["codeChecksum"] = "changed by another"
    run("deploy", str(agent))
    assert "code" in server.last("PUT", "/2023-03-30/functions/agent").json()


def test_rooms_of_another_python_get_no_bytecode(run: Run, server: FakeRoost, agent: Path) -> None:
    server.python = "3.99.0"
    run("deploy", str(agent))
    sent = server.last("POST", "/2023-03-30/functions").json()["code"]["zipFile"]
    assert zipfile.ZipFile(io.BytesIO(base64.b64decode(sent))).namelist() == ["agent.py", "roost.toml"]
    server.python = sys.version.split()[0]
    run("deploy", str(agent))  # nothing has changed but the rooms
    assert "code" in server.last("PUT", "/2023-03-30/functions/agent").json()


def test_deploy_under_another_name_with_other_sessions(run: Run, server: FakeRoost, agent: Path) -> None:
    (agent / "roost.toml").write_text('handler = "agent.handler"\n[scaling]\nmin = 2\n')
    assert run("deploy", str(agent)).code == 2
    assert run("deploy", str(agent), "--name", "two", "--session-affinity", "cookie").code == 0
    assert server.functions["two"]["sessionAffinity"] == "GENERATED_COOKIE"
    assert server.last("PUT", "/2023-03-30/functions/two/scaling-config").json() == {"minInstances": 2}


def test_deploy_of_several_goes_on_after_a_failure(run: Run, server: FakeRoost, agent: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    ended = run("deploy", str(tmp_path / "empty"), str(agent))
    assert ended.code == 1
    assert "no roost.toml" in ended.err
    assert ended.err.endswith(f"Error: Not deployed: {tmp_path / 'empty'}.\n")
    assert list(server.functions) == ["agent"]
    assert run("deploy", str(agent), str(agent), "--name", "x").code == 2
    assert "KEY=VALUE" in run("deploy", str(agent), "-e", "KEY").err


def test_requirements_are_installed_into_the_package(run: Run, server: FakeRoost, agent: Path, tmp_path: Path) -> None:
    wheel = write_wheel(tmp_path, "greeting", "WORD = 'hello'\n")
    (agent / "requirements.txt").write_text(f"{wheel}\n")
    server.python = f"{sys.version_info.major}.{sys.version_info.minor}.9"
    for _ in range(2):  # the second from the cache: the wheel is gone
        assert run("deploy", os.path.relpath(agent)).code == 0
        sent = server.functions["agent"]["code"]["zipFile"]
        archive = zipfile.ZipFile(io.BytesIO(base64.b64decode(sent)))
        assert archive.read("greeting.py") == b"WORD = 'hello'\n"
        assert b"hello" in archive.read(bytecode.place("greeting.py"))
        wheel.unlink(missing_ok=True)

    (agent / "requirements.txt").write_text(f"{wheel}\n# changed\n")
    ended = run("deploy", str(agent))
    assert ended.code == 1
    assert "pip could not install" in ended.err


def test_a_cache_that_cannot_be_written_is_an_error_in_a_sentence(
    run: Run, server: FakeRoost, agent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert run("deploy", str(agent)).code == 0  # without requirements only the note of the upload is missing
    (agent / "requirements.txt").write_text("greeting\n")
    ended = run("deploy", str(agent))
    assert (ended.code, ended.err) == (1, f"Error: Not a directory ({tmp_path / 'file/roost/requirements'}).\n")


def test_invoke(run: Run, server: FakeRoost, tmp_path: Path) -> None:
    server.functions["agent"] = dict(HEADER_SESSIONS)
    path = "/2023-03-30/functions/agent/invocations"
    assert run("invoke", "agent", "--data", "hi").out == "echo: hi"
    (tmp_path / "event").write_bytes(b"\xff\x00")
    run("invoke", "agent", "-d", f"@{tmp_path / 'event'}")
    assert server.last("POST", path).body == b"\xff\x00"
    ended = run("invoke", "agent", "--session", "s1", "--qualifier", "prod", stdin=b"from stdin")
    assert (ended.out, ended.err) == ("echo: from stdin", "session: s1\n")
    seen = server.last("POST", path)
    assert (seen.headers["x-roost-session"], seen.query) == ("s1", {"qualifier": "prod"})
    assert "new instance" in run("invoke", "agent", "-d", "", "-s", "restored").err
    assert run("invoke", "agent", "--async", "-d", "").out == "t-7\n"
    assert run("invoke", "agent", "--async", "-d", "", "--task-id", "mine", "--delay", "5").out == "mine\n"
    assert server.last("POST", path).headers["x-fc-async-delay"] == "5"
    for option in (("--task-id", "x"), ("--delay", "1")):
        ended = run("invoke", "agent", "-d", "", *option)
        assert (ended.code, ended.err) == (2, "Error: --task-id, --delay and --busy go with --async.\n")
    assert run("invoke", "agent", "-d", "@/nonexistent").code == 2


@pytest.mark.parametrize(
    ("affinity", "sent"),
    [
        ("GENERATED_COOKIE", ("cookie", "x-fc-cookie-session-id=s1")),
        ("MCP_STREAMABLE_HTTP", ("mcp-session-id", "s1")),
        ("NONE", None),
        ("MCP_SSE", None),
    ],
)
def test_session_goes_where_the_function_looks(
    run: Run, server: FakeRoost, affinity: str, sent: tuple[str, str] | None
) -> None:
    server.functions["f"] = {"functionName": "f", "sessionAffinity": affinity}
    ended = run("invoke", "f", "-d", "", "--session", "s1")
    if sent is None:
        assert ended.code == 2
        assert "--session" in ended.err
    else:
        assert server.last("POST", "/2023-03-30/functions/f/invocations").headers[sent[0]] == sent[1]


def test_a_fault_of_the_function_is_shown_with_its_stack(run: Run, server: FakeRoost) -> None:
    server.functions["f"] = {"functionName": "f"}
    ended = run("invoke", "f", "-d", "fail")
    assert (ended.code, ended.out) == (4, "")
    assert ended.err == "Error: The function failed: ValueError: no such city\n  File 'a.py'\nx\n"


def test_refusals_are_one_sentence(run: Run, server: FakeRoost) -> None:
    assert run("invoke", "nope", "-d", "") == Ended(1, "", "Error: no function 'nope'\n")
    server.refusals["GET /roost/instances"] = (403, "SignatureNotMatch", "bad \x1b[2Jsignature")
    assert run("ps") == Ended(1, "", "Error: bad [2Jsignature\n")


def test_no_server(run: Run, server: FakeRoost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROOST_URL", "http://127.0.0.1:1")
    ended = run("ps")
    assert (ended.code, ended.out) == (3, "")
    assert "roost up" in ended.err
    for wrong in ("localhost:8700", "http://", "http://127.0.0.1:abc", "ftp://127.0.0.1", f"http://{'a' * 64}.b"):
        monkeypatch.setenv("ROOST_URL", wrong)
        ended = run("ps")
        assert (ended.code, len(ended.err.splitlines())) == (2, 1)
        assert "ROOST_URL" in ended.err


def test_requests_are_signed_when_keys_are_set(run: Run, server: FakeRoost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROOST_ACCESS_KEY_ID", "me")
    assert run("ps").code == 2
    monkeypatch.setenv("ROOST_ACCESS_KEY_SECRET", "s")
    assert run("ps").code == 0
    headers = server.last("GET", "/roost/instances").headers
    assert headers["authorization"].startswith(
        "ACS3-HMAC-SHA256 Credential=me,SignedHeaders=host;x-acs-content-sha256;"
    )


def test_chat_sends_a_bearer_key(run: Run, server: FakeRoost, monkeypatch: pytest.MonkeyPatch) -> None:
    server.functions["agent"] = dict(HEADER_SESSIONS)
    server.chat_events = [{"type": "done"}]
    monkeypatch.setenv("ROOST_ACCESS_KEY_ID", "me")
    monkeypatch.setenv("ROOST_ACCESS_KEY_SECRET", "secret")
    for key in ("secret", "own"):
        run("chat", "agent", stdin=b"hi\n")
        assert server.last("POST", "/agent/chat").headers["authorization"] == f"Bearer {key}"
        monkeypatch.setenv("ROOST_FUNCTION_KEY", "own")


def test_ps_and_top(run: Run, server: FakeRoost) -> None:
    assert "roost deploy" in run("ps").err
    server.page_size = 1
    server.functions = {"a": {"functionName": "a"}, "b": {"functionName": "b"}}
    server.instances = [
        {
            "id": "i-1",
            "function": "a",
            "version": "LATEST",
            "state": "frozen",
            "leases": 0,
            "sessions": ["s1", "s2", "s3", "s4"],
            "memoryBytes": 8 << 20,
            "cpuMs": 1500,
            "created": 0,
            "pid": 7,
            "driver": "namespaces",
        }
    ]
    for command in ("ps", "top"):
        shown = run(command).out
        assert [line.split()[0] for line in shown.splitlines()] == ["FUNCTION", "a", "b"]
        assert all(part in shown for part in ("i-1", "frozen", "s1, s2, s3 +1", "8.0 MB", "1.50s", "none running"))
    assert json.loads(run("ps", "--json").out) == {"functions": ["a", "b"], "instances": server.instances}


def test_sessions(run: Run, server: FakeRoost) -> None:
    server.functions["a"] = {"functionName": "a"}
    assert "no sessions" in run("sessions", "a").err
    server.sessions = [
        {"sessionId": "s1", "sessionStatus": "Paused", "containerId": "i-1", "createdTime": "2026-01-02T03:04:05Z"}
    ]
    shown = run("sessions", "a", "--qualifier", "prod").out
    assert "Paused" in shown
    assert server.last("GET", "/2023-03-30/functions/a/sessions").query == {"qualifier": "prod"}
    assert json.loads(run("sessions", "a", "--json").out) == {"sessions": server.sessions}


def test_logs(run: Run, server: FakeRoost) -> None:
    server.logs = [{"time": 0, "instance": "i-1", "requestId": "r", "stream": "stdout", "text": "a\x1bb\n"}]
    assert run("logs", "a", "-f", "-n", "5", "--request", "r").out.endswith(" i-1 ab\n")
    assert server.last("GET", "/roost/functions/a/logs").query == {"lines": "5", "follow": "1", "requestId": "r"}
    assert json.loads(run("logs", "a", "--json").out) == server.logs[0]


def test_delete(run: Run, server: FakeRoost) -> None:
    server.functions["a"] = {"functionName": "a"}
    assert run("delete", "a") == Ended(0, "Deleted a.\n", "")
    assert server.functions == {}
    assert run("delete", "a").code == 1


def test_chat(run: Run, server: FakeRoost) -> None:
    server.functions["agent"] = dict(HEADER_SESSIONS)
    server.chat_events = [
        {"type": "text", "text": "It is "},
        {"type": "tool", "name": "run_python", "arguments": {"code": "6*7"}},
        {"type": "text", "text": "42."},
        {"type": "done"},
        {"type": "text", "text": "not shown"},
    ]
    ended = run("chat", "agent", "--session", "s9", "--model", "local", stdin=b"6*7?\n\nagain\n")
    assert (ended.code, ended.out) == (0, "It is 42.\nIt is 42.\n")
    assert "session: s9" in ended.err
    assert "[run_python" in ended.err
    seen = server.last("POST", "/agent/chat")
    assert seen.headers["x-roost-session"] == "s9"
    assert seen.json() == {"message": "again", "model": "local"}
    assert len([one for one in server.requests if one.path == "/agent/chat"]) == 2


def test_chat_makes_a_session_that_can_be_reused(run: Run, server: FakeRoost) -> None:
    server.functions["agent"] = dict(HEADER_SESSIONS)
    server.chat_events = [{"type": "done"}]
    ended = run("chat", "agent", stdin=b"hi\n")
    session = server.last("POST", "/agent/chat").headers["x-roost-session"]
    assert f"--session {session}" in ended.err


def test_chat_with_what_is_no_agent(run: Run, server: FakeRoost) -> None:
    assert run("chat", "agent").code == 1
    server.functions["agent"] = dict(HEADER_SESSIONS)
    server.chat_events = [{"type": "error", "message": "no model"}]
    assert run("chat", "agent", stdin=b"hi\n").err.endswith("Error: no model\n")
    server.chat_events = ["data: {\n\n"]
    assert run("chat", "agent", stdin=b"hi\n").code == 1
    server.refusals["POST /agent/chat"] = (502, "", "")
    assert run("chat", "agent", stdin=b"hi\n").code == 1


def test_usage_errors_end_with_two(run: Run) -> None:
    for arguments in (("deploy", "/nonexistent"), ("logs", "a", "-n", "-1"), ("nope",), ("ps", "--nope")):
        assert run(*arguments).code == 2


def test_output_to_a_reader_that_left(server: FakeRoost) -> None:
    server.functions = {f"f{n}": {"functionName": f"f{n}"} for n in range(2000)}
    command = [sys.executable, "-m", "roost.sdk.cli", "ps"]
    with subprocess.Popen(
        command, env=os.environ | {"ROOST_URL": server.url}, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
