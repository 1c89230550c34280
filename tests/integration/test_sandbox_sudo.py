"""`sudo` in a sandbox, as its commands call it."""

from __future__ import annotations

import shutil
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2b import CommandExitException, PtySize, Sandbox

from roost.guest.sandbox import sudo_client
from tests.support.sandbox import SandboxGuest, sdk

#: The client as one file, for an interpreter that every user may run: the bundle's is only there in a room.
PYTHON = shutil.which("python3", path="/usr/bin:/usr/local/bin") or sys.executable
SCRIPT = f"#!{PYTHON} -I\n{Path(sudo_client.__file__).read_text()}\nsys.exit(main())\n"


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    with SandboxGuest(tmp_path_factory.mktemp("guest")) as guest:
        guest.root.parent.chmod(0o755)
        program = guest.home.parent / "sudo"
        program.write_text(SCRIPT)
        program.chmod(0o755)
        guest.ready_sandbox(env={"OF_SANDBOX": "here"})
        with guest.tcp() as port:
            yield sdk(port)


def run(sandbox: Sandbox, command: str, **options: str) -> str:
    """The command with /home/sudo called sudo; its output."""
    return sandbox.commands.run(f'sudo() {{ /home/sudo "$@"; }}\n{textwrap.dedent(command)}', **options).stdout


def test_a_command_runs_as_root(sandbox: Sandbox) -> None:
    command = "cd /tmp; sudo -n sh -c 'id -un; pwd; echo $HOME $USER $SUDO_USER $SUDO_UID $OF_SANDBOX'"
    assert run(sandbox, command) == "root\n/tmp\n/root root user 1000 here\n"


def test_other_users_and_groups(sandbox: Sandbox) -> None:
    assert run(sandbox, "sudo -u other id -un; sudo -u '#1001' -g helpers id -gn; sudo -iu other pwd") == (
        "other\nhelpers\n/home/other\n"
    )


def test_which_variables_a_command_gets(sandbox: Sandbox) -> None:
    command = """
        export MINE=1 TERM=vt100
        for options in "" "-E" "--preserve-env=MINE" "-i"; do
            sudo $options SET=2 sh -c 'echo [$MINE][$SET][$TERM][$HOME]'
        done
    """
    assert run(sandbox, command).splitlines() == [
        "[][2][vt100][/root]",
        "[1][2][vt100][/root]",
        "[1][2][vt100][/root]",
        "[][2][vt100][/root]",
    ]


def test_descriptors_and_exit_codes_pass(sandbox: Sandbox) -> None:
    command = """
        seq 3 | sudo tac | tr '\\n' ,
        sudo -- sh -c 'exit 9'; echo $?
        sudo sh -c 'echo to-err >&2' 2>&1
        sudo ls /proc/self/fd | tr '\\n' ' '; echo
        sudo sh -c 'kill -9 $$' 2>/dev/null; echo $?
        sudo not-a-command 2>&1; echo $?
        sudo --what 2>&1 | head -1; sudo 2>&1 | head -1
        sudo -v && sudo -k && sudo -l | tail -1
    """
    assert run(sandbox, command).splitlines() == [
        "3,2,1,9",
        "to-err",
        "0 1 2 3 ",
        "137",
        "sudo: not-a-command: command not found",
        "1",
        "sudo: unrecognized option '--what'",
        "sudo: usage: sudo [-bEHinsS] [-D directory] [-g group] [-u user] [VAR=value] [-i | -s] [command [arg ...]]",
        "    (ALL : ALL) NOPASSWD: ALL",
    ]


def test_signals_pass(sandbox: Sandbox) -> None:
    command = """
        /home/sudo sh -c 'trap "echo told; exit 4" TERM; echo ready; while :; do sleep 0.05; done' > out & pid=$!
        until grep -q ready out; do sleep 0.02; done
        kill $pid; wait $pid; echo $?; cat out
    """
    assert run(sandbox, command) == "4\nready\ntold\n"


def test_a_command_does_not_outlive_a_killed_caller(sandbox: Sandbox) -> None:
    handle = sandbox.commands.run("/home/sudo sleep 700", background=True)
    alive = "for f in /proc/[0-9]*/cmdline; do tr '\\0' ' ' < $f; echo; done 2>/dev/null | grep -c ^sleep.700 || true"
    _until(sandbox, alive, "1\n")
    handle.kill()
    _until(sandbox, alive, "0\n")


def test_others_may_not(sandbox: Sandbox) -> None:
    with pytest.raises(CommandExitException) as caught:
        run(sandbox, "sudo id", user="other")
    assert caught.value.stderr == "sudo: other is not allowed to run sudo in this sandbox\n"
    assert run(sandbox, "sudo id -un", user="root") == "root\n"


def test_job_control_in_a_terminal(sandbox: Sandbox) -> None:
    terminal = sandbox.pty.create(PtySize(rows=20, cols=70), envs={"PS1": "$ "})
    output = (chunk.decode() for _, _, chunk in terminal if chunk is not None)
    send = lambda text: sandbox.pty.send_stdin(terminal.pid, text.encode())  # noqa: E731
    send("/home/sudo PS1='# ' bash --norc\n")
    text = _read_to(output, "\x1b[?2004h# ")
    send("id -un; stty size; echo job 'control'\n")
    text += _read_to(output, "job control\r\n")
    assert "root\r\n20 70\r\n" in text.replace("\x1b[?2004l\r", "")
    assert "no job control" not in text
    sandbox.pty.resize(terminal.pid, PtySize(rows=30, cols=90))
    send("sh -c 'echo slee\"\"ping; exec sleep 701'\n")
    _read_to(output, "sleeping\r\n")
    send("\x03")
    send("stty size; echo code $?; exit 6\n")
    text = _read_to(output, "code 0\r\n")
    assert "30 90\r\n" in text
    _read_to(output, "$ ")  # what is typed before would still be the command's
    send("echo again $?; exit 2\n")
    assert "again 6" in _read_to(output, "again 6\r\n")
    with pytest.raises(CommandExitException) as caught:
        terminal.wait()
    assert caught.value.exit_code == 2


def _read_to(output: Iterator[str], end: str) -> str:
    text = ""
    while end not in text:
        text += next(output)
    return text


def _until(sandbox: Sandbox, command: str, wanted: str) -> None:
    deadline = time.monotonic() + 15
    while (told := sandbox.commands.run(command, user="root").stdout) != wanted:
        assert time.monotonic() < deadline, told
        time.sleep(0.05)
