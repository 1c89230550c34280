"""Command lines of `sudo` and the environment of what it runs: pure."""

from __future__ import annotations

import pytest

from roost.guest.sandbox.sudo_options import BadUsage, command_line, environment, parse

LOGIN = {"HOME": "/root", "USER": "root", "PATH": "/safe", "SHELL": "/bin/bash"}
CALLER = {"HOME": "/home/user", "PATH": "/mine", "TERM": "vt100", "LC_ALL": "C", "SECRET": "s", "A": "caller"}


def env(*arguments: str) -> dict[str, str]:
    return environment(parse(arguments), CALLER, LOGIN, ("user", 1000, 1000))


def test_options_and_the_command() -> None:
    options = parse(["-nEu", "me", "--group=staff", "-D/tmp", "A=1", "B=", "ls", "-u", "C=2"])
    assert (options.user, options.group, options.directory) == ("me", "staff", "/tmp")
    assert "keep" in options.flags
    assert options.assignments == {"A": "1", "B": ""}
    assert options.command == ("ls", "-u", "C=2")
    assert parse(["--", "-x"]).command == ("-x",)
    assert parse(["--user", "me", "-ume2", "true"]).user == "me2"


@pytest.mark.parametrize(
    "arguments", [[], ["-n"], ["-u"], ["--user"], ["-?"], ["--nope", "ls"], ["-is", "ls"], ["A=1"]]
)
def test_what_is_not_understood(arguments: list[str]) -> None:
    with pytest.raises(BadUsage):
        parse(arguments)


def test_what_needs_no_command() -> None:
    for flag in ("-i", "-s", "-v", "-k", "-K", "-l", "-V", "-h"):
        assert parse([flag]).command == ()


def test_variables() -> None:
    plain = env("ls", "x")
    assert {name: plain.get(name) for name in ("HOME", "PATH", "TERM", "LC_ALL", "SECRET")} == {
        "HOME": "/root",
        "PATH": "/safe",
        "TERM": "vt100",
        "LC_ALL": "C",
        "SECRET": None,
    }
    assert (plain["SUDO_USER"], plain["SUDO_UID"], plain["SUDO_COMMAND"]) == ("user", "1000", "ls x")
    kept = env("-E", "A=given", "ls")
    assert (kept["SECRET"], kept["A"], kept["HOME"], kept["PATH"]) == ("s", "given", "/root", "/safe")
    assert env("--preserve-env=SECRET,NONE", "ls")["SECRET"] == "s"
    assert "SECRET" not in env("-Ei")


def test_what_is_executed() -> None:
    assert command_line(parse(["ls", "a b"]), "/bin/sh") == ("", ("ls", "a b"))
    assert command_line(parse(["-i"]), "/bin/zsh") == ("/bin/zsh", ("-zsh",))
    assert command_line(parse(["-s", "echo", "a b"]), "/bin/sh") == ("/bin/sh", ("/bin/sh", "-c", "echo 'a b'"))
