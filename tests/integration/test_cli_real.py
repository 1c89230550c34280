"""The command line and the documentation's own examples, against a real server."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.server import Server
from tests.support.wheels import write_wheel

ROOT = Path(__file__).resolve().parents[2]


def blocks(document: str) -> list[str]:
    """The shell blocks of a document."""
    return re.findall(r"^```sh\n(.*?)^```", (ROOT / document).read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture
def environment(server: Server, tmp_path: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("ROOST_", "OPENAI_"))}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return kept | {"ROOST_URL": server.url, "PATH": path, "XDG_CACHE_HOME": str(tmp_path / "cache")}


def shell(script: str, environment: dict[str, str], cwd: Path, stdin: str = "") -> str:
    """Run it, as a person would paste it; what it printed."""
    done = subprocess.run(
        ["bash", "-e"] if not stdin else ["bash", "-ec", script],
        input=stdin or script,
        env=environment,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_quick_start_of_the_readme_works_pasted(environment: dict[str, str], tmp_path: Path) -> None:
    script = blocks("README.md")[1].replace("/tmp/hello", str(tmp_path / "hello"))
    assert len([line for line in script.splitlines() if line]) <= 10
    printed = shell(script, environment, ROOT)
    assert "Deployed hello" in printed
    assert "I am Ann\nI am Bob\nI am Ann\nwho was here?\n" in printed
    assert re.search(r"^hello +\S+ +(ready|frozen)", printed, re.MULTILINE)


def test_the_tutorial(environment: dict[str, str], server: Server, tmp_path: Path) -> None:
    deploy, chat, *_ = blocks("docs/tutorial/first-agent.md")
    assert "Deployed diary" in shell(deploy, environment, tmp_path)
    assert shell(f"{chat.strip()} --session one", environment, tmp_path, "good morning\ngood night\n") == (
        "- good morning\n- good morning\n- good night\n"
    )
    assert shell("roost chat diary --session two", environment, tmp_path, "hello\n") == "- hello\n"
    assert shell("roost chat diary --session one", environment, tmp_path, "back\n").endswith("- good night\n- back\n")
    listed = json.loads(shell("roost sessions diary --json", environment, tmp_path))["sessions"]
    assert {row["sessionId"] for row in listed} == {"one", "two"}
    assert all(row["sessionStatus"] == "Active" for row in listed)


def test_the_sdk_example_of_the_reference(environment: dict[str, str], server: Server, tmp_path: Path) -> None:
    server.deploy("hello", {"index.py": "def handler(event, context):\n    return event\n"})
    (code,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/reference/fc-api.md").read_text(), re.M | re.S)
    (tmp_path / "example.py").write_text(code.replace("127.0.0.1:8700", server.url.removeprefix("http://")))
    assert "'functionName': 'hello'" in shell(f"{sys.executable} example.py", environment, tmp_path)


def test_faults_logs_and_updates(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "roost.toml").write_text('name = "clumsy"\nhandler = "agent.run"\nmemory = 256\n')
    (tmp_path / "agent.py").write_text(
        "def run(event, context):\n    print('about to fall')\n    raise KeyError('x')\n"
    )
    shell("roost deploy .", environment, tmp_path)
    failed = subprocess.run(
        ["roost", "invoke", "clumsy", "-d", ""], env=environment, capture_output=True, text=True, check=False
    )
    assert failed.returncode == 4
    assert "KeyError" in failed.stderr
    assert "agent.py" in failed.stderr
    assert "about to fall" in shell("roost logs clumsy", environment, tmp_path)
    one_requests_log(environment, "clumsy")

    (tmp_path / "roost.toml").write_text('name = "clumsy"\nhandler = "agent.run"\n')
    (tmp_path / "agent.py").write_text("def run(event, context):\n    return event\n")
    assert "Updated clumsy" in shell("roost deploy .", environment, tmp_path)
    assert shell("roost invoke clumsy -d better", environment, tmp_path) == "better"
    assert "clumsy" in json.loads(shell("roost ps --json", environment, tmp_path))["functions"]
    assert "clumsy" in shell("roost top", environment, tmp_path)
    assert shell("roost delete clumsy", environment, tmp_path) == "Deleted clumsy.\n"
    assert "clumsy" not in json.loads(shell("roost ps --json", environment, tmp_path))["functions"]


def one_requests_log(environment: dict[str, str], name: str) -> None:
    """`roost logs --request`, with and without `--follow`, shows the lines of that request and of no other."""
    subprocess.run(["roost", "invoke", name, "-d", ""], env=environment, capture_output=True, check=False)
    done = subprocess.run(["roost", "logs", name, "--json"], env=environment, capture_output=True, check=True)
    records = [json.loads(line) for line in done.stdout.splitlines()]
    ids = dict.fromkeys(record["requestId"] for record in records if record["text"] == "about to fall")
    assert len(ids) == 2
    last = [record for record in records if record["requestId"] == list(ids)[1]]
    command = ["roost", "logs", name, "--json", "--request", list(ids)[1]]
    done = subprocess.run(command, env=environment, capture_output=True, check=True)
    assert [json.loads(line) for line in done.stdout.splitlines()] == last
    with subprocess.Popen([*command, "-f", "-n", "1"], env=environment, stdout=subprocess.PIPE) as following:
        assert following.stdout is not None
        assert [json.loads(following.stdout.readline()) for _ in last] == last
        following.terminate()


def test_requirements_are_there_in_the_room(environment: dict[str, str], tmp_path: Path) -> None:
    agent = tmp_path / "agent"
    agent.mkdir()
    wheel = write_wheel(tmp_path, "greeting", "WORD = 'hello'\n")
    (agent / "requirements.txt").write_text(f"{wheel}\n")
    (agent / "roost.toml").write_text('name = "polite"\nhandler = "agent.run"\n')
    (agent / "agent.py").write_text("from greeting import WORD\n\n\ndef run(event, context):\n    return WORD\n")
    shell("roost deploy .", environment, agent)
    assert shell("roost invoke polite -d ''", environment, agent) == "hello"
