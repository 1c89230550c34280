"""The languages of contexts, and the programs that run their cells."""

from __future__ import annotations

import base64
import json
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from roost.guest.sandbox.interpreter import frames
from roost.guest.sandbox.interpreter.bash_cells import bash_cell
from roost.guest.sandbox.interpreter.requests import PYTHON

_PROGRAMS = Path(__file__).parent / "programs"
#: Stands in a command for the directory of npm packages that a template brings.
_PACKAGES = "{packages}"


def framed_cell(code: str, env: Mapping[str, str]) -> bytes:
    return frames.frame(frames.RUN, json.dumps({"code": code, "env": dict(env)}, ensure_ascii=False).encode())


def base64_cell(code: str, env: Mapping[str, str]) -> bytes:
    """For programs without a parser of JSON: lines of base64, the code and each variable as NAME=VALUE."""
    parts = [code, *(f"{name}={value}" for name, value in env.items())]
    return frames.frame(frames.RUN, b"\n".join(base64.b64encode(part.encode()) for part in parts))


@dataclass(frozen=True, kw_only=True, slots=True)
class Language:
    """How a language runs. Its `command` gets its socket as descriptor 3; without one it is a fork of the daemon.
    It and `needs` must be installed.

    `encode` makes of a cell what the program reads, from its standard input if `reads_input`. `listed`: a context of it
    is there from the start; `ahead`: this one has a process from the start; `start_s`: how long a start may take.
    `ends_apart`: clients get the end of a line as a piece of its own, as E2B's have it.
    """

    name: str
    command: tuple[str, ...] = ()
    needs: str = ""
    encode: Callable[[str, Mapping[str, str]], bytes] = framed_cell
    reads_input: bool = False
    ends_apart: bool = False
    listed: bool = False
    ahead: bool = False
    start_s: float = 30.0


def _node(name: str, *, listed: bool = False) -> Language:
    command = ("node", "--expose-internals", str(_PROGRAMS / "javascript.cjs"), name, _PACKAGES)
    return Language(name=name, command=command, listed=listed)


_JAVA = ("java", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto", "--add-modules", "jdk.jshell")
_R = ("R", "--no-echo", "--no-restore", "--no-save", "--no-readline", "-f")
_BASH = ("bash", "--noprofile", "--noediting", "--rcfile", str(_PROGRAMS / "bash.sh"), "-i")

LANGUAGES: Mapping[str, Language] = {
    language.name: language
    for language in (
        Language(name=PYTHON, listed=True, ahead=True),
        _node("javascript", listed=True),
        _node("typescript"),
        Language(name="bash", command=_BASH, encode=bash_cell, reads_input=True),
        Language(
            name="r",
            command=(*_R, str(_PROGRAMS / "context.R")),
            encode=base64_cell,
            reads_input=True,
        ),
        Language(
            name="java",
            needs="jshell",
            command=(*_JAVA, str(_PROGRAMS / "Context.java")),
            encode=base64_cell,
            reads_input=True,
            ends_apart=True,
            start_s=90.0,
        ),
    )
}


def installed(path: str) -> tuple[str, ...]:
    """The languages that this room can run, given its PATH."""
    needs = ((name, (*language.command[:1], language.needs)) for name, language in LANGUAGES.items())
    return tuple(name for name, all_ in needs if all(shutil.which(each, path=path) for each in all_ if each))


def command_of(language: Language) -> list[str]:
    """The command with what only this room knows."""
    places = (Path(place) / "node_modules" for place in sys.path)
    packages = next((str(place) for place in places if place.is_dir()), "")
    return [packages if word == _PACKAGES else word for word in language.command]
