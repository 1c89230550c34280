"""The languages of contexts, and the programs that run their cells."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from roost.guest.sandbox.interpreter.requests import PYTHON

_PROGRAMS = Path(__file__).parent / "programs"


@dataclass(frozen=True, kw_only=True, slots=True)
class Language:
    """How a language runs. Its `command` gets its socket as descriptor 3; without one it is a fork of the nursery.

    `needs` is the program that must be installed, `listed` that a context of it is there from the start, `ahead` that
    this one has a process from the start, `start_s` how long a start may take.
    """

    name: str
    needs: str = ""
    command: tuple[str, ...] = ()
    listed: bool = False
    ahead: bool = False
    start_s: float = 30.0


LANGUAGES: Mapping[str, Language] = {
    language.name: language for language in (Language(name=PYTHON, listed=True, ahead=True),)
}


def installed(path: str) -> tuple[str, ...]:
    """The languages that this room can run, given its PATH."""
    needs = ((name, language.needs) for name, language in LANGUAGES.items())
    return tuple(name for name, program in needs if not program or shutil.which(program, path=path))
