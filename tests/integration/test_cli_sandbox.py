"""`roost sandbox` against a real server and real rooms."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.interpreter import data_packages
from tests.support.server import NOTHING, Remains, Server, running
from tests.support.terminal import Terminal

ROOST = [sys.executable, "-m", "roost.sdk.cli"]
DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that has the packages of code contexts already."""
    data_dir: Path = tmp_path_factory.mktemp("roost") / "data"
    data_dir.mkdir()
    subprocess.run(["cp", "-al", str(data_packages().parent), str(data_dir / "packages")], check=True)
    with running(data_dir) as server:
        yield server
    assert Remains.of(data_dir) == NOTHING


@pytest.fixture(scope="module")
def environment(server: Server) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("ROOST_", "E2B_"))}
    return kept | {"ROOST_URL": server.url, "TERM": "dumb"}


class Cli:
    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment

    def call(self, *arguments: str, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
        source = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}
        return subprocess.run(
            [*ROOST, "sandbox", *arguments],
            env=self.environment, capture_output=True, timeout=120, check=False, **source,  # type: ignore[call-overload]
        )  # fmt: skip

    def __call__(self, *arguments: str, stdin: bytes | None = None) -> str:
        done = self.call(*arguments, stdin=stdin)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()

    def failed(self, *arguments: str, stdin: bytes | None = None) -> tuple[int, str]:
        done = self.call(*arguments, stdin=stdin)
        assert b"Traceback (most recent" not in done.stderr
        return done.returncode, done.stderr.decode()

    def popen(self, *arguments: str) -> subprocess.Popen[bytes]:
        pipe = subprocess.PIPE
        return subprocess.Popen(
            [*ROOST, "sandbox", *arguments], env=self.environment, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe
        )


@pytest.fixture(scope="module")
def cli(environment: dict[str, str]) -> Cli:
    return Cli(environment)


@pytest.fixture(scope="module")
def box(cli: Cli) -> Iterator[str]:
    id = cli("create", "--timeout", "600", "--env", "FROM_CREATE=yes", "--metadata", "who=ann").strip()
    yield id
    cli("kill", id)


@pytest.fixture(scope="module")
def coder(cli: Cli) -> Iterator[str]:
    id = cli("create", "--template", "code-interpreter-v1", "--timeout", "600").strip()
    yield id
    cli("kill", id)


def gone(cli: Cli, box: str, pattern: str) -> bool:
    """Whether no process of that command line runs in the sandbox, within a while."""
    deadline = time.monotonic() + 20
    while cli.call("exec", box, "pgrep", "-f", pattern).returncode == 0:
        if time.monotonic() > deadline:
            return False
    return True


# --- a sandbox's life ------------------------------------------------------------------------------------------------


def test_made_listed_read_paused_resumed_killed(cli: Cli) -> None:
    id = cli("create", "--metadata", "name=short", "--timeout", "60", "--auto-pause").strip()
    listed = {row["sandboxID"]: row for row in json.loads(cli("ls", "--json"))["sandboxes"]}
    assert (listed[id]["state"], listed[id]["metadata"]) == ("running", {"name": "short"})
    assert id in cli("ls")
    assert "name=short" in cli("ls")
    shown = cli("info", id[:8])
    assert "paused then" in shown
    assert json.loads(cli("info", id, "--json"))["lifecycle"] == {"autoResume": False, "onTimeout": "pause"}
    cli("timeout", id, "500")
    assert id in subprocess.run([*ROOST, "ps"], env=cli.environment, capture_output=True, text=True, check=True).stdout

    cli("exec", id, "sh", "-c", "echo kept > note")
    cli("pause", id)
    code, said = cli.failed("exec", id, "true")
    assert (code, said) == (1, f"Error: Sandbox {id} is paused; `roost sandbox resume {id}` brings it back.\n")
    assert cli("resume", id, "--timeout", "60") == f"{id} is running.\n"
    cli("pause", id, "--files-only")
    assert "filesystem" in cli("info", id)
    assert cli("connect", id) == f"{id} is running, over its files: what ran in it before is gone.\n"
    assert cli("exec", id, "cat", "note") == "kept\n"
    assert isinstance(cli("logs", id), str)

    assert cli("kill", id) == f"Killed {id}.\n"
    for arguments in (("exec", id, "true"), ("info", id), ("kill", id)):
        code, said = cli.failed(*arguments)
        assert code == 1
        assert "was killed by request" in said


def test_ids_may_be_short_but_not_ambiguous(cli: Cli, box: str, coder: str) -> None:
    assert cli("exec", box[:10], "echo", "hi") == "hi\n"
    code, said = cli.failed("exec", "i", "true")
    assert code == 1
    assert "sandboxes have ids that begin with i" in said
    assert box in said
    assert cli.failed("info", "izzzz")[0] == 1
    assert cli.failed("info", "../x")[0] == 2
    code, said = cli.failed("kill", "zzz", "yyy")
    assert code == 1
    assert said.count("begins with") == 2


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("create", "--template", "no-such"), 1, "no-such"),
        (("create", "--env", "novalue"), 2, "--env takes KEY=VALUE"),
        (("create", "--metadata", "=x"), 2, "--metadata takes KEY=VALUE"),
        (("create", "--timeout", "999999999"), 1, "sandbox_max_timeout"),
        (("cp", "a", "b"), 2, "One of the two is in a sandbox"),
        (("cp", "ia:a", "ib:b"), 2, "One of the two is in a sandbox"),
        (("exec", "ia", "--"), 2, "The command is missing"),
    ],
)
def test_what_is_refused(cli: Cli, arguments: tuple[str, ...], code: int, said: str) -> None:
    got, text = cli.failed(*arguments)
    assert (got, said in text) == (code, True), text


def test_without_a_server(cli: Cli) -> None:
    nowhere = Cli(cli.environment | {"ROOST_URL": "http://127.0.0.1:9"})
    code, said = nowhere.failed("ls")
    assert code == 3
    assert "No Roost server answers" in said


# --- commands --------------------------------------------------------------------------------------------------------


def test_a_commands_output_and_exit_code_are_passed_on(cli: Cli, box: str) -> None:
    done = cli.call("exec", box, "--", "sh", "-c", "echo out; echo err >&2; echo $FROM_CREATE$A; pwd; exit 7")
    assert (done.returncode, done.stderr) == (7, b"err\n")
    assert done.stdout == b"out\nyes\n/home/user\n"
    more = ("--user", "root", "--cwd", "/tmp", "--env", "A=1")
    assert cli("exec", *more, box, "sh", "-c", "echo $(id -un) $A $(pwd)") == "root 1 /tmp\n"
    assert cli("exec", box, "printf", "%s", "--user") == "--user"
    assert cli.failed("exec", box, "sh", "-c", "kill -9 $$") == (137, "The command was ended by a signal: killed.\n")
    code, said = cli.failed("exec", box, "no-such-program")
    assert code == 1
    assert "no-such-program" in said
    assert cli.failed("exec", "--user", "nobody-here", box, "true")[0] == 1


def test_standard_input_goes_to_the_command(cli: Cli, box: str) -> None:
    data = os.urandom(300_000)
    assert cli.call("exec", box, "cat", stdin=data).stdout == data
    # One that does not read it to the end is no failure.
    assert cli("exec", box, "head", "-c", "3", stdin=b"abc" + bytes(1 << 20)) == "abc"
    assert cli("exec", box, "cat") == ""


def test_output_comes_while_the_command_runs_and_ctrl_c_kills_it(cli: Cli, box: str) -> None:
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        with cli.popen("exec", box, "sh", "-c", f"echo begun; sleep 30{number}; echo never") as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"begun\n"
            process.send_signal(number)
            assert process.wait(30) == code
            assert process.stdout.read() == b""
        assert gone(cli, box, f"sleep 30{number}")


def test_a_reader_that_goes_away_ends_the_command(cli: Cli, box: str) -> None:
    with cli.popen("exec", box, "yes", "the-endless") as process:
        assert process.stdout is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.wait(30) == 1
    assert gone(cli, box, "yes the-endless")


def test_a_sandbox_that_ends_under_a_command_says_why(cli: Cli) -> None:
    id = cli("create").strip()
    with cli.popen("exec", id, "sh", "-c", "echo begun; sleep 300") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"begun\n"
        cli("kill", id)
        assert process.wait(30) == 1
        assert "was killed by request" in process.stderr.read().decode()


# --- a shell ---------------------------------------------------------------------------------------------------------


def test_a_shell_at_a_terminal(cli: Cli, box: str) -> None:
    terminal = Terminal(["-m", "roost.sdk.cli", "sandbox", "shell", box], cli.environment, rows=30, columns=90)
    try:
        before = terminal.modes()
        terminal.type("stty size; echo at-$(tty | cut -c1-8)\n")
        terminal.expect("30 90")
        terminal.expect("at-/dev/pts")
        assert terminal.modes() != before
        terminal.type("sh -c 'echo begun-$((1+1)); exec sleep 4321'\n")
        terminal.expect("begun-2")
        terminal.type("\x03")
        terminal.type("echo still-$((1+1))\n")
        terminal.expect("still-2")
        terminal.resize(40, 100)
        terminal.process.send_signal(signal.SIGWINCH)
        terminal.type("sleep 0.5; stty size\n")
        terminal.expect("40 100")
        terminal.type("exit 5\n")
        assert terminal.process.wait(30) == 5
        assert terminal.modes() == before
    finally:
        terminal.close()
    assert gone(cli, box, "sleep 4321")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_shell_that_is_ended_gives_the_terminal_back(cli: Cli, box: str, number: int) -> None:
    command = ["-m", "roost.sdk.cli", "sandbox", "shell", box, "--", "sh", "-c", f"echo in; sleep 4{number}"]
    terminal = Terminal(command, cli.environment)
    try:
        before = terminal.modes()
        terminal.expect("in")
        assert terminal.modes() != before
        terminal.process.send_signal(number)
        assert terminal.process.wait(30) == 128 + number
        assert terminal.modes() == before
    finally:
        terminal.close()
    assert gone(cli, box, f"sleep 4{number}")


def test_a_shell_in_a_sandbox_that_is_killed_gives_the_terminal_back(cli: Cli) -> None:
    id = cli("create").strip()
    terminal = Terminal(["-m", "roost.sdk.cli", "sandbox", "shell", id], cli.environment)
    try:
        before = terminal.modes()
        terminal.type("echo in-$((1+1))\n")
        terminal.expect("in-2")
        cli("kill", id)
        terminal.expect("was killed by request")
        assert terminal.process.wait(30) == 1
        assert terminal.modes() == before
    finally:
        terminal.close()


def test_a_shell_without_a_terminal_is_refused(cli: Cli, box: str) -> None:
    code, said = cli.failed("shell", box)
    assert code == 2
    assert "needs a terminal" in said


# --- files -----------------------------------------------------------------------------------------------------------


def test_files_go_in_and_out(cli: Cli, box: str, tmp_path: Path) -> None:
    data = os.urandom(3 << 20)
    (tmp_path / "blob").write_bytes(data)
    cli("cp", str(tmp_path / "blob"), f"{box}:/tmp/")
    cli("cp", f"{box[:12]}:/tmp/blob", str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == data
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "blob"]
    tool = tmp_path / "tool"
    tool.write_text("#!/bin/sh\necho runs\n")
    tool.chmod(0o755)
    cli("cp", str(tool), f"{box}:bin/renamed")
    assert cli("exec", box, "/home/user/bin/renamed") == "runs\n"
    assert cli("exec", box, "stat", "-c", "%U", "/home/user/bin/renamed") == "user\n"
    cli("cp", "--user", "root", str(tool), f"{box}:/etc/of-root")
    assert cli("exec", box, "stat", "-c", "%U", "/etc/of-root") == "root\n"


def test_directories_go_in_and_out(cli: Cli, box: str, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "deep" / "er").mkdir(parents=True)
    (tree / "empty").mkdir()
    (tree / "deep" / "er" / "ünïcode name").write_text("x")
    (tree / "run.sh").write_text("#!/bin/sh\n")
    (tree / "run.sh").chmod(0o755)
    (tree / "link").symlink_to("deep/er")
    os.mkfifo(tree / "queue")
    (tree / "large").write_bytes(os.urandom(2 << 20))
    cli("cp", str(tree), f"{box}:copied")
    cli("cp", str(tree), f"{box}:copied")  # it is there now: below it
    assert cli("exec", box, "sh", "-c", "ls copied/tree | wc -l").strip() == "5"
    cli("exec", box, "rm", "-r", "copied/tree")
    cli("cp", f"{box}:copied", str(tmp_path / "back"))
    (tree / "queue").unlink()
    subprocess.run(["diff", "-r", "--no-dereference", str(tree), str(tmp_path / "back")], check=True)
    assert os.access(tmp_path / "back" / "run.sh", os.X_OK)


def test_an_archive_of_a_hostile_sandbox_writes_nothing_outside(cli: Cli, box: str, tmp_path: Path) -> None:
    make = """
import io, tarfile
with tarfile.open("/home/user/evil.tar", "w") as archive:
    def add(name, kind=tarfile.REGTYPE, link="", data=b"evil"):
        member = tarfile.TarInfo(name)
        member.type, member.linkname, member.size = kind, link, len(data) if kind == tarfile.REGTYPE else 0
        archive.addfile(member, io.BytesIO(data))
    add("good")
    add("../outside")
    add("/tmp/outside-of-the-test")
    add("out", tarfile.SYMTYPE, "..")
    add("out/through-link")
    add("a", tarfile.SYMTYPE, "b/../..")
    add("hard", tarfile.LNKTYPE, "../secret")
    add("device", tarfile.CHRTYPE)
    add("also-good")
"""
    (tmp_path / "secret").write_text("secret")
    cli("exec", box, "python3", "-c", make)
    fake = "#!/bin/sh\nexec cat /home/user/evil.tar\n"
    (tmp_path / "fake").write_text(fake)
    (tmp_path / "fake").chmod(0o755)
    cli("cp", "--user", "root", str(tmp_path / "fake"), f"{box}:/usr/local/bin/tar")
    cli("exec", box, "mkdir", "-p", "/home/user/any")
    try:
        done = cli.call("cp", f"{box}:any", str(tmp_path / "into"))
    finally:
        cli("exec", "--user", "root", box, "rm", "/usr/local/bin/tar")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(b"Not copied") == 6
    found = {path.name: path.is_dir() for path in (tmp_path / "into").iterdir()}
    # What went through the refused link is in a directory of its name.
    assert found == {"good": False, "also-good": False, "out": True}
    assert (tmp_path / "into" / "out" / "through-link").read_text() == "evil"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fake", "into", "secret"]
    assert not Path("/tmp/outside-of-the-test").exists()


def test_copies_that_fail_say_why_and_leave_nothing(cli: Cli, box: str, tmp_path: Path) -> None:
    for arguments, code, said in (
        ((f"{box}:nothing", str(tmp_path / "x")), 1, "nothing does not exist in the sandbox"),
        ((str(tmp_path / "nothing"), f"{box}:x"), 2, "does not exist"),
        ((f"{box}:/etc/passwd", str(tmp_path / "no" / "x")), 2, "is not a directory here"),
        ((str(Path(__file__)), f"{box}:/proc/x"), 1, "no such file"),
        ((str(Path(__file__).parent), f"{box}:/etc/passwd"), 1, "could not be unpacked"),
    ):
        got, text = cli.failed("cp", *arguments)
        assert (got, said in text) == (code, True), text
    assert list(tmp_path.iterdir()) == []
    cli("cp", f"{box}:/etc/hostname", "/dev/null")
    assert Path("/dev/null").is_char_device()


# --- code ------------------------------------------------------------------------------------------------------------


def test_code_runs_and_is_remembered(cli: Cli, coder: str, tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 20\nprint('printed')\nx + 1\n")
    assert cli("run", coder, str(tmp_path / "a.py")) == "printed\n21\n"
    assert cli("run", coder, "-", stdin=b"x * 2") == "40\n"
    assert cli("run", coder, "--code", "import os; os.environ['A']", "--env", "A=b") == "b\n"
    (tmp_path / "b.sh").write_text("echo $HOME\n")
    assert cli("run", coder, str(tmp_path / "b.sh")) == "/home/user\n"
    done = cli.call("run", coder, "-c", "import sys; print('e', file=sys.stderr); 1 / 0")
    assert done.returncode == 4
    assert b"e\n" in done.stderr
    assert b"Error: ZeroDivisionError" in done.stderr
    assert b"\x1b" not in done.stderr
    plot = cli.call(
        "run", coder, "-c", "from IPython.display import Image, display; display(Image(b'x', format='png'))"
    )
    assert plot.returncode == 0, plot.stderr


def test_ctrl_c_interrupts_code(cli: Cli, coder: str) -> None:
    with cli.popen("run", coder, "-c", "import time; print('begun', flush=True); time.sleep(300)") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    assert cli("run", coder, "-c", "'free'") == "free\n"


def test_code_without_an_interpreter_or_without_code(cli: Cli, box: str, tmp_path: Path) -> None:
    code, said = cli.failed("run", box, "-c", "1")
    assert code == 1
    assert "has no code interpreter" in said
    assert cli.failed("run", box, str(tmp_path / "missing.py"))[0] == 2
    assert cli.failed("run", box, "-", "-c", "1")[0] == 2


# --- the tutorial, and a server with keys ----------------------------------------------------------------------------


def test_the_tutorial_works_pasted(cli: Cli, tmp_path: Path) -> None:
    """But for what makes an environment and installs the SDK: that is here already."""
    tutorial, terminal = re.findall(
        r"^```sh\n(.*?)^```", (DOCS / "tutorial" / "first-sandbox.md").read_text(), re.MULTILINE | re.DOTALL
    )
    assert len([line for line in tutorial.splitlines() if line]) <= 11
    install, _, script = tutorial.partition("\n")
    assert "pip install" in install
    script = script.replace("http://127.0.0.1:8700", cli.environment["ROOST_URL"])
    script = script.replace("sandboxes/bin/python", sys.executable)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    terminal = terminal.partition("\n")[2]  # the path is set
    done = subprocess.run(
        ["bash", "-e"], input=script + terminal, env={**cli.environment, "PATH": path}, cwd=tmp_path,
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("30.0\n")
    assert "ages.csv" in done.stdout
    assert "42\nLinux x86_64\nKilled i" in done.stdout


def test_the_example_of_the_mcp_page(cli: Cli, tmp_path: Path) -> None:
    [code] = re.findall(r"^```python\n(.*?)^```", (DOCS / "how-to" / "mcp.md").read_text(), re.MULTILINE | re.DOTALL)
    code = code.replace("http://127.0.0.1:8700", cli.environment["ROOST_URL"])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "Linux x86_64\n"), done.stderr


def test_secrets_are_kept_listed_and_forgotten(cli: Cli) -> None:
    def secrets(*arguments: str, value: str = "") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "roost.sdk.cli", "secrets", *arguments]
        environment = {**cli.environment, "COLUMNS": "200"}
        return subprocess.run(
            command, env=environment, input=value, capture_output=True, text=True, timeout=60, check=False
        )

    assert "There are no secrets" in secrets("ls").stderr
    made = secrets("put", "github", "--host", "api.github.com", "--host", "*.example.com:8443", value="s3cret-value\n")
    assert made.stdout == "github is kept, version 1; it goes to api.github.com *.example.com:8443.\n"
    assert secrets("put", "github", value="other-value").stdout.startswith("github is kept, version 2; it goes to api.")
    listed = secrets("ls").stdout
    assert "github" in listed
    assert "api.github.com" in listed
    assert "value" not in secrets("ls", "--json").stdout
    assert "needs a value" in secrets("put", "empty").stderr
    assert "is no host" in secrets("put", "bad", "--host", "10.0.0.0/8", value="x").stderr
    assert secrets("rm", "github").stdout == "github is forgotten.\n"
    gone = secrets("rm", "github")
    assert (gone.returncode, "not found" in gone.stderr) == (1, True)


def test_with_keys_the_secret_is_the_api_key(tmp_path: Path) -> None:
    config = 'sandbox_domain = "sandbox.test"\n[keys]\nid = "the-secret"\n'
    with running(tmp_path / "data", config=config) as server:
        open_to = {key: value for key, value in os.environ.items() if not key.startswith("ROOST_")}
        nobody = Cli(open_to | {"ROOST_URL": server.url})
        code, said = nobody.failed("ls")
        assert code == 1
        assert "Set ROOST_ACCESS_KEY_ID and ROOST_ACCESS_KEY_SECRET" in said
        wrong = Cli(nobody.environment | {"ROOST_ACCESS_KEY_ID": "id", "ROOST_ACCESS_KEY_SECRET": "wrong"})
        assert "not known here" in wrong.failed("ls")[1]
        cli = Cli(nobody.environment | {"ROOST_ACCESS_KEY_ID": "id", "ROOST_ACCESS_KEY_SECRET": "the-secret"})
        id = cli("create").strip()
        assert cli("exec", id, "echo", "hi") == "hi\n"
        cli("cp", __file__, f"{id}:file")
        assert cli("exec", id, "cat", "file") == Path(__file__).read_text()
        cli("kill", id)
