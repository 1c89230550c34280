"""How a template is built from a recipe: what is done in rooms, in which order, and what of it may be taken from an
earlier build. Pure.

A *stage* is what ends in files that are kept: a RUN or a COPY, with what has to be there before it (a user, a working
directory). ENV, WORKDIR and USER change what follows. A stage's key is a digest over the base and every step up to it,
so equal keys mean equal beginnings.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from roost.model.errors import InvalidArgument
from roost.sandboxes.recipes import Recipe, Step, StepType

_VERSION = "1"  # of keys: another one where the same steps give other files
_ROOT = "root"
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_USER_NAME = re.compile(r"[a-z_][a-z0-9_-]{0,31}", re.IGNORECASE)
_MODE = re.compile(r"[0-7]{3,4}")
_REFERENCE = re.compile(
    r"\\(?P<escaped>.)|\$(?:(?P<plain>[A-Za-z_]\w*)|\{(?P<name>[A-Za-z_]\w*)(?::(?P<sign>[-+])(?P<other>[^{}]*))?\})",
    re.DOTALL,
)
#: Of a login, for `PATH=/mine:$PATH`.
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: Where an uploaded archive is in the room of a COPY.
ARCHIVE_FOLDER = "/run/build"
ARCHIVE = "archive"
_UNPACK = ("/.roost/bin/python3", "-I", "-m", "roost.guest.unpack")


class BadStep(InvalidArgument):
    """`step` is its number, from 1."""

    def __init__(self, message: str, step: int) -> None:
        super().__init__(f"step {step}: {message}")
        self.step = step


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a step finds: who acts, where, with which variables."""

    user: str = "user"
    workdir: str = "/home/user"
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Base:
    """What a template is built upon. `identity` changes whenever its files do."""

    root: str  # the root file system, by its name in the catalog
    identity: str
    interpreter: bool = False  # code contexts are served, and their packages are there
    layers: tuple[Path, ...] = ()  # of a template or snapshot that was built itself, newest first
    context: Context = field(default_factory=Context)


@dataclass(frozen=True, kw_only=True)
class Command:
    """Text for a shell of the room."""

    text: str
    user: str
    cwd: str = "/"
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """`number` is the step's, from 1, as clients count; `fresh`: no earlier result will do."""

    number: int
    title: str
    key: str
    commands: tuple[Command, ...]
    files_hash: str = ""
    fresh: bool = False


@dataclass(frozen=True, kw_only=True)
class Plan:
    """`context` is what the template's sandboxes start with."""

    base: Base
    stages: tuple[Stage, ...]
    context: Context
    start_command: str
    ready_command: str


def plan(recipe: Recipe, base: Base, *, scope: str, disk_mb: int) -> Plan:
    """`scope` keeps apart whose results may be used for whom, as files are named by a digest that only clients checked.

    Raises BadStep.
    """
    maker = _Planner(base, _digest(_VERSION, scope, str(disk_mb), base.root, base.identity), fresh=recipe.force)
    for number, step in enumerate(recipe.steps, 1):
        maker.add(number, step)
    maker.finish(len(recipe.steps))
    return Plan(
        base=base,
        stages=tuple(maker.stages),
        context=maker.context,
        start_command=recipe.start_command,
        ready_command=recipe.ready_command,
    )


class _Planner:
    def __init__(self, base: Base, key: str, *, fresh: bool) -> None:
        self.context = base.context
        self.stages: list[Stage] = []
        self._key = key
        self._fresh = fresh
        self._before: list[Command] = []  # what has to be there when the next stage starts
        self._users = {_ROOT, base.context.user, "user"}
        self._folders = {"/", base.context.workdir, "/home/user"}

    def add(self, number: int, step: Step) -> None:
        self._key = _digest(self._key, step.type, *step.args, step.files_hash)
        self._fresh = self._fresh or step.force
        try:
            match step.type:
                case StepType.RUN:
                    self._run(number, step.args)
                case StepType.COPY:
                    self._copy(number, step)
                case StepType.ENV:
                    self._set(step.args)
                case StepType.WORKDIR:
                    self._enter(step.args[0])
                case StepType.USER:
                    self._become(step.args[0])
        except InvalidArgument as error:
            raise BadStep(error.message, number) from None

    def finish(self, number: int) -> None:
        """What the last steps ask for, and nothing has needed yet."""
        if self._before:
            self._stage(number, "users and folders", ())

    def _run(self, number: int, args: Sequence[str]) -> None:
        user = self.context.user
        if len(args) > 1 and args[1]:
            user = args[1]  # one that the template lacks is an error, as clients expect
            if not _USER_NAME.fullmatch(user) and not user.isdecimal():
                raise InvalidArgument(f"{user[:64]!r} is no name of a user.")
        command = Command(text=args[0], user=user, cwd=self.context.workdir, env=self.context.env)
        self._stage(number, f"RUN {args[0]}", (command,))

    def _copy(self, number: int, step: Step) -> None:
        source, target, owner, mode = (*step.args, "", "")[:4]
        if PurePosixPath(source).is_absolute() or ".." in PurePosixPath(source).parts:
            raise InvalidArgument(f"COPY {source[:128]!r} leads out of what was uploaded.")
        if mode and not _MODE.fullmatch(mode):
            raise InvalidArgument(f"{mode[:16]!r} is no mode: three or four octal digits.")
        user, _, group = self._expand(owner or self.context.user).partition(":")
        if group and not _USER_NAME.fullmatch(group) and not group.isdecimal():
            raise InvalidArgument(f"{group[:64]!r} is no name of a group.")
        owner = f"{self._user(user)}:{group}"
        place = self._expand(target)
        where = str(PurePosixPath(self.context.workdir) / place) + ("/" if place.endswith("/") else "")
        archive = f"{ARCHIVE_FOLDER}/{ARCHIVE}"
        text = shlex.join([*_UNPACK, archive, source, where, owner, mode])
        title = f"COPY {source} {target}"
        self._stage(number, title, (Command(text=text, user=_ROOT),), step.files_hash)

    def _set(self, args: Sequence[str]) -> None:
        env = dict(self.context.env)
        for name, value in zip(args[::2], args[1::2], strict=True):
            if not _ENV_NAME.fullmatch(name):
                raise InvalidArgument(f"{name[:64]!r} is no name of a variable.")
            env[name] = self._expand(value)
        self.context = replace(self.context, env=env)

    def _enter(self, folder: str) -> None:
        path = str(PurePosixPath(self.context.workdir) / self._expand(folder))
        self.context = replace(self.context, workdir=path)
        if path not in self._folders:
            self._folders.add(path)
            text = shlex.join(["install", "-d", "-o", self.context.user, path])
            text = f"test -d {shlex.quote(path)} || {text}"
            self._before.append(Command(text=text, user=_ROOT))

    def _become(self, name: str) -> None:
        user = self._user(self._expand(name).partition(":")[0])
        self.context = replace(self.context, user=user)

    def _user(self, name: str) -> str:
        """A user who will exist: one that the template lacks is made. Ids are taken as they are."""
        if name.isdecimal() and len(name) <= 5:
            return name
        if not _USER_NAME.fullmatch(name):
            raise InvalidArgument(f"{name[:64]!r} is no name of a user.")
        if name not in self._users:
            self._users.add(name)
            made = f"useradd --create-home --shell /bin/sh {name} 2>/dev/null || adduser -D {name}"
            text = f"id {name} >/dev/null 2>&1 || {made}"
            self._before.append(Command(text=text, user=_ROOT))
        return name

    def _stage(self, number: int, title: str, commands: Sequence[Command], files_hash: str = "") -> None:
        before, self._before = self._before, []
        self.stages.append(
            Stage(
                number=number,
                title=title[:200],
                key=self._key,
                commands=(*before, *commands),
                files_hash=files_hash,
                fresh=self._fresh,
            )
        )

    def _expand(self, text: str) -> str:
        home = "/root" if self.context.user == _ROOT else f"/home/{self.context.user}"
        return expand(text, {"PATH": _PATH, "HOME": home, **self.context.env})


def expand(text: str, env: Mapping[str, str]) -> str:
    """`$NAME`, `${NAME}`, `${NAME:-else}`, `${NAME:+then}`; a backslash takes a character as it is. Unset is empty."""

    def value(match: re.Match[str]) -> str:
        if match["escaped"] is not None:
            return match["escaped"] if match["escaped"] in '\\$"' else match[0]
        found = env.get(match["plain"] or match["name"], "")
        if match["sign"] == "-":
            return found or match["other"]
        if match["sign"] == "+":
            return match["other"] if found else ""
        return found

    return _REFERENCE.sub(value, text)


def _digest(*parts: str) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
