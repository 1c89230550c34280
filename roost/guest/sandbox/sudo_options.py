"""What a command line of `sudo` asks for, and with which environment the command runs. Pure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

VERSION = "Sudo of a Roost sandbox"
USAGE = "usage: sudo [-bEHinsS] [-D directory] [-g group] [-u user] [VAR=value] [-i | -s] [command [arg ...]]"
#: Of the caller's variables, those that stay without -E: terminal, language, display.
_KEPT = re.compile(r"TERM|COLORTERM|LANG|LANGUAGE|LC_[A-Z]+|LS_COLORS|DISPLAY|XAUTHORITY|TZ|COLUMNS|LINES|NO_COLOR")
#: What names the user is the target's also with -E.
_OF_USER = ("HOME", "USER", "LOGNAME", "SHELL", "MAIL")
_ASSIGNMENT = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)", re.DOTALL)
_FLAGS = {
    "b": "background", "E": "keep", "H": "home", "i": "login", "s": "shell", "n": "", "S": "", "k": "forget",
    "K": "forget", "v": "validate", "l": "list", "V": "version", "h": "help", "A": "", "B": "", "P": "", "N": "",
}  # fmt: skip
_VALUES = {"u": "user", "g": "group", "D": "directory", "p": "", "C": "", "r": "", "t": "", "T": "", "U": "", "h": ""}
_LONG = {
    "background": "b", "preserve-env": "E", "set-home": "H", "login": "i", "shell": "s", "non-interactive": "n",
    "stdin": "S", "reset-timestamp": "k", "remove-timestamp": "K", "validate": "v", "list": "l", "version": "V",
    "help": "h", "user": "u", "group": "g", "chdir": "D", "prompt": "p", "askpass": "A", "close-from": "C",
}  # fmt: skip


class BadUsage(ValueError):
    """The command line can't be understood; the text is for the user."""


@dataclass(kw_only=True, slots=True)
class Options:
    """`flags` are names such as login, shell, keep, background; `keep` those variables that -E named."""

    user: str = "root"
    group: str | None = None
    directory: str | None = None
    flags: set[str] = field(default_factory=set)
    keep: tuple[str, ...] = ()
    assignments: dict[str, str] = field(default_factory=dict)
    command: tuple[str, ...] = ()


def parse(arguments: Sequence[str]) -> Options:
    """Raises BadUsage."""
    options = Options()
    rest = list(arguments)
    while rest and rest[0].startswith("-") and rest[0] != "-":
        word = rest.pop(0)
        if word == "--":
            break
        if word.startswith("--"):
            _long(options, word[2:], rest)
        else:
            _short(options, word[1:], rest)
    while rest and (found := _ASSIGNMENT.fullmatch(rest[0])):
        options.assignments[found[1]] = found[2]
        rest.pop(0)
    options.command = tuple(rest)
    if {"login", "shell"} <= options.flags:
        raise BadUsage("you may not specify both the -i and -s options")
    if not rest and not options.flags & {"login", "shell", "forget", "validate", "list", "version", "help"}:
        raise BadUsage(USAGE)
    return options


def _short(options: Options, letters: str, rest: list[str]) -> None:
    while letters:
        letter, letters = letters[0], letters[1:]
        if letter in _FLAGS:
            options.flags.add(_FLAGS[letter])
        elif letter in _VALUES:
            _value(options, letter, letters or _next(f"-{letter}", rest))
            return
        else:
            raise BadUsage(f"invalid option -- '{letter}'\n{USAGE}")


def _long(options: Options, word: str, rest: list[str]) -> None:
    name, equals, value = word.partition("=")
    letter = _LONG.get(name)
    if letter is None:
        raise BadUsage(f"unrecognized option '--{name}'\n{USAGE}")
    if letter == "E" and equals:
        options.keep += tuple(item for item in value.split(",") if item)
    elif letter in _FLAGS:
        options.flags.add(_FLAGS[letter])
    else:
        _value(options, letter, value if equals else _next(f"--{name}", rest))


def _value(options: Options, letter: str, value: str) -> None:
    if letter == "u":
        options.user = value
    elif letter == "g":
        options.group = value
    elif letter == "D":
        options.directory = value


def _next(option: str, rest: list[str]) -> str:
    if not rest:
        raise BadUsage(f"option requires an argument -- '{option}'\n{USAGE}")
    return rest.pop(0)


def environment(
    options: Options, caller: Mapping[str, str], login: Mapping[str, str], by: tuple[str, int, int]
) -> dict[str, str]:
    """`login`: the target user's own variables; `by`: who calls (name, uid, gid)."""
    name, uid, gid = by
    if "keep" in options.flags and "login" not in options.flags:
        env = {**login, **caller, **{key: login[key] for key in _OF_USER if key in login}, "PATH": login["PATH"]}
    else:
        env = {**login, **{key: value for key, value in caller.items() if _KEPT.fullmatch(key)}}
    env |= {key: caller[key] for key in options.keep if key in caller}
    return env | {
        "SUDO_USER": name,
        "SUDO_UID": str(uid),
        "SUDO_GID": str(gid),
        "SUDO_COMMAND": " ".join(options.command),
        **options.assignments,
    }


def command_line(options: Options, shell: str) -> tuple[str, tuple[str, ...]]:
    """(the file to run, "" for the first argument itself; the arguments)."""
    if "login" not in options.flags and "shell" not in options.flags:
        return "", options.command
    # The words of a command given to a shell are one line of it: sudo escapes all but a few characters, as here.
    line = ("-c", shlex.join(options.command)) if options.command else ()
    first = f"-{shell.rpartition('/')[2]}" if "login" in options.flags else shell
    return shell, (first, *line)
