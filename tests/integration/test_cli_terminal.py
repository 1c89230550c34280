"""`roost chat` at a terminal: what Ctrl-C and Ctrl-D do."""

import os
import pty
import select
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.support.fake_roost import FakeRoost

#: The first terminal that a session leader opens becomes its own, so that Ctrl-C is a signal.
TAKE_TERMINAL = """
import os, sys
os.close(os.open(os.ttyname(0), os.O_RDWR))
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


class Terminal:
    """A Python process with a terminal of its own."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self._master, slave = pty.openpty()
        self.seen = ""
        self.process = subprocess.Popen(
            [sys.executable, "-c", TAKE_TERMINAL, *command],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment,
            start_new_session=True,
        )
        os.close(slave)

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def expect(self, text: str) -> None:
        """Read on until `text` has come; what came before it is forgotten."""
        while text not in self.seen:
            assert select.select([self._master], [], [], 30)[0], f"no {text!r} in {self.seen!r}"
            self.seen += os.read(self._master, 4096).decode()
        self.seen = self.seen.partition(text)[2]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)


@pytest.fixture
def server() -> Iterator[FakeRoost]:
    with FakeRoost() as fake:
        yield fake


def test_ctrl_c_cancels_the_answer_and_ctrl_d_ends(server: FakeRoost) -> None:
    server.functions["agent"] = {
        "functionName": "agent",
        "sessionAffinity": "HEADER_FIELD",
        "sessionAffinityConfig": '{"affinityHeaderFieldName": "x-roost-session"}',
    }
    server.chat_events = [{"type": "text", "text": "Let me think"}]
    server.chat_hangs = True
    command = ["-m", "roost.sdk.cli", "chat", "agent", "--session", "s1"]
    terminal = Terminal(command, os.environ | {"ROOST_URL": server.url, "TERM": "dumb"})
    try:
        terminal.expect("session: s1")
        terminal.expect("> ")
        terminal.type("hello\n")
        terminal.expect("Let me think")
        terminal.type("\x03")
        terminal.expect("(stopped)")
        assert server.chat_left.wait(30), "the request went on"
        terminal.expect("> ")
        terminal.type("\x03")  # at the prompt: a new line, not the end
        terminal.expect("> ")
        terminal.type("again\n")
        terminal.expect("Let me think")
        terminal.expect("> ")
        terminal.type("\x04")
        assert terminal.process.wait(30) == 0
    finally:
        terminal.close()
