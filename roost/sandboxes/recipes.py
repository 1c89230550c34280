"""What a client asks to be built: the step list of the template builder, as it comes over the wire.

`{"fromImage" | "fromTemplate", "startCmd"?, "readyCmd"?, "force"?, "steps": [...]}`, where a step is
`{"type", "args", "filesHash"?, "force"?}`. It was written by anybody: everything is bounded and checked here, before a
room is made.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from roost.model.errors import InvalidArgument

MOST_STEPS = 256
MOST_TEXT = 1 << 20  # characters, of all arguments together
_MOST_ARGUMENTS = 512
_MOST_COMMAND = 64 << 10
FILES_HASH = re.compile(r"[0-9a-f]{64}")


class StepType(StrEnum):
    """ADD is COPY, and ARG is ENV: the builder resolves the difference before it sends them."""

    RUN = "RUN"
    COPY = "COPY"
    ENV = "ENV"
    WORKDIR = "WORKDIR"
    USER = "USER"


_SAME = {"ADD": StepType.COPY, "ARG": StepType.ENV}
_FEWEST = {StepType.RUN: 1, StepType.COPY: 2, StepType.ENV: 2, StepType.WORKDIR: 1, StepType.USER: 1}


@dataclass(frozen=True, kw_only=True)
class Step:
    """One instruction. RUN: command, user?; COPY: source, target, owner?, mode?; ENV: name, value, name, value..."""

    type: StepType
    args: tuple[str, ...]
    files_hash: str = ""
    force: bool = False  # this step and all that follow are done anew


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One of `image` and `template` is set."""

    image: str = ""
    template: str = ""
    steps: tuple[Step, ...] = ()
    start_command: str = ""
    ready_command: str = ""
    force: bool = False


def parse_recipe(body: Mapping[str, Any]) -> Recipe:
    """Raises InvalidArgument that names the field, or the step by its number from 1."""
    image, template = _text(body, "fromImage"), _text(body, "fromTemplate")
    if bool(image) == bool(template):
        raise InvalidArgument("One of fromImage and fromTemplate must be given.")
    if body.get("fromImageRegistry"):
        raise InvalidArgument("fromImageRegistry: this server pulls no images; a local template must stand for it.")
    listed = [] if body.get("steps") is None else body["steps"]
    if not isinstance(listed, list) or len(listed) > MOST_STEPS:
        raise InvalidArgument(f"steps: a list of at most {MOST_STEPS} is needed.")
    steps = tuple(_step(number, item) for number, item in enumerate(listed, 1))
    if sum(len(arg) for step in steps for arg in step.args) > MOST_TEXT:
        raise InvalidArgument(f"steps: more than {MOST_TEXT} characters in all.")
    return Recipe(
        image=image,
        template=template,
        steps=steps,
        start_command=_text(body, "startCmd"),
        ready_command=_text(body, "readyCmd"),
        force=body.get("force") is True,
    )


def _step(number: int, item: object) -> Step:
    if not isinstance(item, dict):
        raise InvalidArgument(f"step {number}: an object is needed.")
    name = str(item.get("type")).upper()
    kind = _SAME.get(name)
    try:
        kind = kind or StepType(name)
    except ValueError:
        raise InvalidArgument(f"step {number}: {name[:32]!r} is none of {', '.join(StepType)}.") from None
    args = [] if item.get("args") is None else item["args"]
    if not isinstance(args, list) or not all(isinstance(arg, str) and "\0" not in arg for arg in args):
        raise InvalidArgument(f"step {number}: args must be a list of strings.")
    if not _FEWEST[kind] <= len(args) <= _MOST_ARGUMENTS or not args[0]:
        raise InvalidArgument(f"step {number}: {kind} takes {_FEWEST[kind]} to {_MOST_ARGUMENTS} arguments.")
    if kind is StepType.ENV and len(args) % 2:
        raise InvalidArgument(f"step {number}: ENV takes names and values in pairs.")
    files_hash = item.get("filesHash") or ""
    if kind is StepType.COPY and not (isinstance(files_hash, str) and FILES_HASH.fullmatch(files_hash)):
        raise InvalidArgument(f"step {number}: COPY takes filesHash, a SHA-256 in hex.")
    return Step(
        type=kind,
        args=tuple(args),
        files_hash=files_hash if kind is StepType.COPY else "",
        force=item.get("force") is True,
    )


def _text(body: Mapping[str, Any], name: str) -> str:
    value = body.get(name) or ""
    if not isinstance(value, str) or "\0" in value or len(value) > _MOST_COMMAND:
        raise InvalidArgument(f"{name}: a text of at most {_MOST_COMMAND} characters is needed.")
    return value
