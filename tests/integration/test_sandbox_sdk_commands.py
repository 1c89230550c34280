"""E2B's official SDK runs commands in a sandbox's guest."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator

import pytest
from e2b import (
    AuthenticationException,
    CommandExitException,
    InvalidArgumentException,
    NotFoundException,
    PtySize,
    Sandbox,
    TimeoutException,
)

from tests.support.sandbox import SandboxGuest, async_sdk, sdk

#: Says from within the foreground job that it runs: an interrupt before that would be the shell's.
FOREGROUND = b"sh -c 'echo slee\"\"ping; exec sleep 600'\n"


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SandboxGuest]:
    with SandboxGuest(tmp_path_factory.mktemp("guest")) as guest:
        yield guest.ready_sandbox(env={"GREETING": "hello"})


@pytest.fixture(scope="module")
def port(guest: SandboxGuest) -> Iterator[int]:
    with guest.tcp() as port:
        yield port


@pytest.fixture(scope="module", autouse=True)
def at_first(port: int) -> int:
    return _held(sdk(port))


@pytest.fixture
def sandbox(port: int) -> Sandbox:
    return sdk(port)


def test_a_command_runs_as_the_default_user_in_its_home(sandbox: Sandbox) -> None:
    result = sandbox.commands.run(
        "id -un; id -Gn; pwd; echo $HOME $USER $GREETING $E2B_SANDBOX; cat /proc/self/oom_score_adj"
    )
    assert result.stdout.split("\n") == [
        "user",
        "user helpers",
        "/home/user",
        "/home/user user hello true",
        "500",
        "",
    ]
    assert (result.stderr, result.exit_code, result.error) == ("", 0, None)


def test_user_directory_and_variables_of_a_command(sandbox: Sandbox) -> None:
    result = sandbox.commands.run("id -un; pwd; echo $GREETING", user="root", cwd="/tmp", envs={"GREETING": "bye"})
    assert result.stdout == "root\n/tmp\nbye\n"
    with pytest.raises(AuthenticationException, match="invalid username: 'nobody-here'"):
        sandbox.commands.run("true", user="nobody-here")
    with pytest.raises(InvalidArgumentException, match="no such file or directory"):
        sandbox.commands.run("true", cwd="/not/there")


def test_what_a_user_may_not_do_is_refused(sandbox: Sandbox) -> None:
    with pytest.raises(CommandExitException) as caught:
        sandbox.commands.run("cat /etc/shadow")
    assert "Permission denied" in caught.value.stderr
    assert "root:" in sandbox.commands.run("cat /etc/shadow", user="root").stdout


def test_exit_codes_and_signals_are_told(sandbox: Sandbox) -> None:
    with pytest.raises(CommandExitException) as caught:
        sandbox.commands.run("echo out; echo err >&2; exit 7")
    error = caught.value
    assert (error.stdout, error.stderr, error.exit_code, error.error) == ("out\n", "err\n", 7, "exit status 7")
    with pytest.raises(CommandExitException) as caught:
        sandbox.commands.run("kill -SEGV $$")
    assert (caught.value.exit_code, caught.value.error.split(" (")[0]) == (-1, "signal: segmentation fault")


def test_a_background_command_is_listed_followed_and_killed(sandbox: Sandbox) -> None:
    handle = sandbox.commands.run("echo begun; sleep 600 & wait", background=True, timeout=0)
    assert next(iter(handle))[0] == "begun\n"
    listed = {process.pid: process for process in sandbox.commands.list()}
    assert listed[handle.pid].args == ["-l", "-c", "echo begun; sleep 600 & wait"]
    late = sandbox.commands.connect(handle.pid)
    assert handle.kill()
    for follower in (handle, late):
        with pytest.raises(CommandExitException) as caught:
            follower.wait()
        assert (caught.value.exit_code, caught.value.error) == (-1, "signal: killed")
    assert handle.pid not in {process.pid for process in sandbox.commands.list()}
    assert "sleep 600" not in sandbox.commands.run("cat /proc/*/cmdline | tr '\\0' ' '", user="root").stdout.replace(
        "echo begun", ""
    )
    assert not handle.kill()


def test_the_end_of_a_command_is_kept_for_a_while(sandbox: Sandbox) -> None:
    handle = sandbox.commands.run("exit 5", background=True)
    handle.disconnect()
    _until(lambda: handle.pid not in {process.pid for process in sandbox.commands.list()})
    with pytest.raises(CommandExitException) as caught:
        sandbox.commands.connect(handle.pid).wait()
    assert caught.value.exit_code == 5
    with pytest.raises(NotFoundException):
        sandbox.commands.connect(4_000_000)


def test_a_command_outlives_the_client_that_started_it(sandbox: Sandbox, guest: SandboxGuest) -> None:
    handle = sandbox.commands.run("while [ ! -e go ]; do sleep 0.02; done; echo done > said", background=True)
    handle.disconnect()
    (guest.home / "go").touch()
    _until(lambda: (guest.home / "said").exists() and (guest.home / "said").read_text() == "done\n")


def test_input_is_sent_and_closed(sandbox: Sandbox) -> None:
    handle = sandbox.commands.run("cat", background=True, stdin=True)
    handle.send_stdin("one\n")
    sandbox.commands.send_stdin(handle.pid, "zwei ü\n")
    sandbox.commands.stream_input(handle.pid, ["three\n", b"four\n"])
    handle.close_stdin()
    assert handle.wait().stdout == "one\nzwei ü\nthree\nfour\n"


def test_without_stdin_there_is_nothing_to_read(sandbox: Sandbox) -> None:
    with pytest.raises(CommandExitException) as caught:
        sandbox.commands.run("read -p name: answer")
    assert caught.value.exit_code == 1


def test_a_timeout_kills_the_command(sandbox: Sandbox) -> None:
    with pytest.raises(TimeoutException):
        sandbox.commands.run("sleep 601", timeout=0.3)
    _until(lambda: all("sleep 601" not in " ".join(process.args) for process in sandbox.commands.list()))


def test_a_flood_of_output_arrives_whole(sandbox: Sandbox) -> None:
    result = sandbox.commands.run("head -c 20000000 /dev/zero | tr '\\0' x; echo; seq 1 20000 >&2")
    assert len(result.stdout) == 20_000_001
    assert result.stderr == "".join(f"{i}\n" for i in range(1, 20001))


def test_output_that_is_no_text(sandbox: Sandbox) -> None:
    assert sandbox.commands.run("printf '\\xff\\xfeab'").stdout == "��ab"


def test_a_terminal(sandbox: Sandbox) -> None:
    terminal = sandbox.pty.create(PtySize(rows=24, cols=80), envs={"PS1": "$ "})
    output = (chunk.decode() for _, _, chunk in terminal if chunk is not None)
    sandbox.pty.send_stdin(terminal.pid, b"stty size; tty; echo $TERM\n")
    text = _read_to(output, "xterm-256color\r\n")
    assert "24 80" in text
    assert "/dev/pts/" in text
    assert "no job control" not in text
    sandbox.pty.resize(terminal.pid, PtySize(rows=50, cols=132))
    sandbox.pty.stream_input(terminal.pid, [b"stty size; id -un\n", FOREGROUND])
    text = _read_to(output, "sleeping\r\n")
    assert "50 132\r\n" in text
    assert "user\r\n" in text
    sandbox.pty.send_stdin(terminal.pid, b"\x03")
    sandbox.pty.send_stdin(terminal.pid, b"exit 3\n")
    with pytest.raises(CommandExitException) as caught:
        terminal.wait()
    assert caught.value.exit_code == 3


def test_a_terminal_is_killed_with_what_runs_in_it(sandbox: Sandbox) -> None:
    terminal = sandbox.pty.create(PtySize(rows=24, cols=80), timeout=0)
    sandbox.pty.send_stdin(terminal.pid, b"sleep 602\n")
    _until(lambda: "sleep 602" in _cmdlines(sandbox))
    assert sandbox.pty.kill(terminal.pid)
    with pytest.raises(CommandExitException):
        terminal.wait()
    _until(lambda: "sleep 602" not in _cmdlines(sandbox))
    assert not sandbox.pty.kill(terminal.pid)


async def test_many_commands_at_once(port: int) -> None:
    sandbox = async_sdk(port)
    results = await asyncio.gather(*(sandbox.commands.run(f"echo {i}; sleep 0.1") for i in range(40)))
    assert [result.stdout for result in results] == [f"{i}\n" for i in range(40)]


def _cmdlines(sandbox: Sandbox) -> str:
    return sandbox.commands.run(
        "for f in /proc/[0-9]*/cmdline; do tr '\\0' ' ' < $f; echo; done 2>&1", user="root"
    ).stdout


def _read_to(output: Iterator[str], end: str) -> str:
    text = ""
    while end not in text:
        text += next(output)
    return text


def _until(condition: Callable[[], bool], patience_s: float = 15.0) -> None:
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_nothing_is_left_open(sandbox: Sandbox, at_first: int) -> None:
    """After all that went before, the daemon holds no more pipes, terminals and processes than at the start."""
    _until(lambda: _held(sandbox) <= at_first)


def _held(sandbox: Sandbox) -> int:
    command = "ls -l /proc/$(pgrep -f roost.guest.main | sed -n 2p)/fd | grep -cE 'pipe|pidfd|ptmx|pts'"
    return int(sandbox.commands.run(command, user="root").stdout)
