"""What sandboxes are made from, by name: what is built in, what accounts built, their snapshots, root file systems."""

from __future__ import annotations

import re
import secrets
import string
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from roost.isolation.driver import Template
from roost.isolation.templates.data import code_interpreter
from roost.model.errors import AccessDenied, Conflict, InvalidArgument, NotFound
from roost.model.function import Limits
from roost.model.sandbox import Foundation
from roost.model.template import DEFAULT_TAG, TemplateBuild, TemplateKind, TemplateRecord
from roost.sandboxes.packages import ContextPackages
from roost.sandboxes.template_book import TemplateBook

#: What the guest's daemon speaks; clients choose what they use of it by this number.
ENVD_VERSION = "0.6.13"
HOST = "host"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}")
_ALPHABET = string.ascii_lowercase + string.digits


@dataclass(frozen=True, kw_only=True)
class SandboxTemplate:
    """One build of a template. `names` are all the template goes by, its own first. `created`: Unix seconds."""

    id: str
    names: tuple[str, ...]
    foundation: Foundation
    limits: Limits
    build: str = ""
    created: float = 0.0
    builtin: bool = False
    snapshot: bool = False


class RootInfo(Protocol):
    """What is known of a root file system."""

    @property
    def name(self) -> str: ...

    @property
    def created(self) -> float: ...


class Roots(Protocol):
    """Root file systems by name. `get` raises NotFound."""

    def get(self, name: str) -> Template: ...

    def list(self) -> Sequence[RootInfo]: ...


class TemplateShelf:
    """Reads the catalog and the book; changes to the book are made by who owns the images."""

    def __init__(self, roots: Roots, packages: ContextPackages, limits: Limits, book: TemplateBook) -> None:
        self._roots = roots
        self._packages = packages
        self._limits = limits
        self.book = book
        self._builtin = {
            name: SandboxTemplate(
                id=name,
                names=(name,),
                build=_build_id(name, 0.0),
                foundation=foundation,
                limits=limits,
                builtin=True,
            )
            for name, foundation in _BUILTIN.items()
        }

    def get(self, name: str, account: str = "") -> SandboxTemplate:
        """By id or name, with a tag of the account's or without. Raises NotFound."""
        plain, _, tag = name.removeprefix(f"{account}/").partition(":")
        if plain not in self._builtin and (record := self.book.find(account, plain)):
            build = self.book.resolve(record, tag)
            if build is not None:
                return _built(record, build)
        elif (template := self._find(plain)) and (
            not tag or tag in {known for known, _, _ in self.tags(account, template)}
        ):
            return template
        raise NotFound(f"template '{name[:128]}' not found", code="TemplateNotFound")

    def _find(self, name: str) -> SandboxTemplate | None:
        if builtin := self._builtin.get(name):
            return builtin
        return next((self._of(info) for info in self._roots.list() if info.name == name != HOST), None)

    def tags(self, account: str, template: SandboxTemplate) -> Sequence[tuple[str, str, float]]:
        """Each tag, the build that it means, and when it was given, in Unix seconds."""
        given = [(tag.tag, tag.build, tag.created) for tag in self.book.tags(account, template.id).values()]
        if self.book.find(account, template.id) or any(tag == DEFAULT_TAG for tag, _, _ in given):
            return given
        return [(DEFAULT_TAG, template.build, template.created), *given]

    def list(self, account: str) -> list[SandboxTemplate]:
        """All that the account can use but snapshots, the built-in ones first."""
        records = self.book.of_kind(account, TemplateKind.BUILT)
        built = [_built(record, self.book.builds(record)[-1]) for record in records]
        found = [self._of(info) for info in self._roots.list() if info.name != HOST]
        return [*self._builtin.values(), *built, *found]

    def builds(self, account: str, template: SandboxTemplate) -> Sequence[SandboxTemplate]:
        """Each build of the same template, the newest first."""
        record = self.book.find(account, template.id)
        return [template] if record is None else [_built(record, build) for build in self.book.builds(record)[::-1]]

    def record_for(self, account: str, name: str, kind: TemplateKind, id: str, now: float) -> TemplateRecord:
        """The template of this name to add a build to, a new one with this id if there is none. Raises InvalidArgument
        for what is no name, Conflict if it means something else."""
        plain = name.removeprefix(f"{account}/").lower()
        if plain and not _NAME.fullmatch(plain):
            raise InvalidArgument(
                f"name: {name[:80]!r} is none: lower-case letters, digits, '.', '_', '-' are expected."
            )
        if plain and (record := self.book.find(account, plain)):
            if record.kind is not kind:
                what = "a snapshot" if record.kind is TemplateKind.SNAPSHOT else "a template"
                raise Conflict(f"The name '{plain}' is that of {what} already.")
            return record
        if plain in (*self._builtin, HOST) or any(info.name == plain for info in self._roots.list()):
            raise Conflict(f"The name '{plain}' is that of a template of this server.")
        return TemplateRecord(id=id, account=account, kind=kind, name=plain, created=now)

    def own(self, account: str, name: str) -> TemplateRecord:
        """A template or snapshot that the account may change. Raises NotFound, AccessDenied."""
        if record := self.book.find(account, name.removeprefix(f"{account}/").partition(":")[0]):
            return record
        raise AccessDenied(f"'{self.get(name, account).id}' is a template of this server; an account can't change it.")

    def layers(self) -> Iterator[tuple[str, ...]]:
        """The images that each build needs."""
        return self.book.layers()

    async def root(self, foundation: Foundation) -> Template:
        """The root file system. Raises NotFound, or what prevents that it has the packages of code contexts."""
        root = self._roots.get(foundation.root)
        return code_interpreter(root, await self._packages.get()) if foundation.interpreter else root

    def _of(self, info: RootInfo) -> SandboxTemplate:
        return SandboxTemplate(
            id=info.name,
            names=(info.name,),
            build=_build_id(info.name, info.created),
            foundation=Foundation(root=info.name),
            limits=self._limits,
            created=info.created,
        )


_HTTPBIN = "/.roost/bin/python3 -I -m roost.guest.httpbin"
_BUILTIN = {
    "base": Foundation(root=HOST),
    "code-interpreter-v1": Foundation(root=HOST, interpreter=True),
    "httpbin": Foundation(root=HOST, start_command=_HTTPBIN, ready_command=f"{_HTTPBIN} --ready"),
}


def _built(record: TemplateRecord, build: TemplateBuild) -> SandboxTemplate:
    return SandboxTemplate(
        id=record.id,
        names=(record.name,) if record.name else (),
        build=build.id,
        foundation=build.foundation,
        limits=build.limits,
        created=build.created,
        snapshot=record.kind is TemplateKind.SNAPSHOT,
    )


def _build_id(name: str, created: float) -> str:
    """A root file system is built once, as a whole: the build is named after it and its time."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"roost:{name}:{created!r}"))


def new_id() -> str:
    """Of a template: nobody finds one by guessing."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(20))
