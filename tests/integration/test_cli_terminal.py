"""`roost chat` at a terminal: what Ctrl-C and Ctrl-D do."""

import os
from collections.abc import Iterator

import pytest

from tests.support.fake_roost import FakeRoost
from tests.support.terminal import Terminal


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
        terminal.interrupt_prompt("> ")  # a new line, not the end
        terminal.type("again\n")
        terminal.expect("Let me think")
        terminal.expect("> ")
        terminal.type("\x04")
        assert terminal.process.wait(30) == 0
    finally:
        terminal.close()
