"""What sandboxes are made from: a root file system and what runs on it, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from roost.isolation.driver import Template
from roost.isolation.templates.data import code_interpreter
from roost.model.errors import NotFound, Throttled
from roost.model.function import Limits
from roost.sandboxes.packages import ContextPackages
from roost.store.template_tags import TemplateTag

#: What the guest's daemon speaks; clients choose what they use of it by this number.
ENVD_VERSION = "0.6.13"
#: What every template goes by.
OWN_TAGS = ("default",)
MOST_TAGS = 1000
_HOST = "host"


@dataclass(frozen=True, kw_only=True)
class SandboxTemplate:
    """One template. `names` are all it goes by, the first one its own. `created`: Unix seconds."""

    id: str
    names: tuple[str, ...]
    root: str  # the root file system, by its name in the catalog
    limits: Limits
    interpreter: bool = False  # serves code contexts at port 49999
    start_command: str = ""
    ready_command: str = ""
    created: float = 0.0
    builtin: bool = False


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


class TagStore(Protocol):
    """Where tags are durable. Methods raise RoostError, and have no effect then."""

    async def put(self, tags: Sequence[TemplateTag]) -> None: ...

    async def delete(self, account: str, template: str, tags: Sequence[str]) -> None: ...

    async def list_all(self) -> Sequence[TemplateTag]: ...


class TemplateShelf:
    """The built-in templates, and every root file system under its own name; with the tags that accounts gave them.

    `load` before the first use.
    """

    def __init__(
        self, roots: Roots, packages: ContextPackages, limits: Limits, tags: TagStore, *, clock: Callable[[], float]
    ) -> None:
        self._roots = roots
        self._packages = packages
        self._limits = limits
        self._store = tags
        self._clock = clock
        self._tags: dict[tuple[str, str], dict[str, TemplateTag]] = {}
        self._builtin = {
            name: SandboxTemplate(
                id=name, names=(name,), root=_HOST, limits=limits, interpreter=interpreter, builtin=True
            )
            for name, interpreter in (("base", False), ("code-interpreter-v1", True))
        }

    async def load(self) -> None:
        """Read the tags."""
        for tag in await self._store.list_all():
            self._tags.setdefault((tag.account, tag.template), {})[tag.tag] = tag

    def get(self, name: str, account: str = "") -> SandboxTemplate:
        """By id or name, with a tag of the account's or without. Raises NotFound."""
        plain, _, tag = name.partition(":")
        template = self._find(plain)
        if template is None or (tag and tag not in {known for known, _ in self.tags(account, template)}):
            raise NotFound(f"template '{name[:128]}' not found", code="TemplateNotFound")
        return template

    def _find(self, name: str) -> SandboxTemplate | None:
        if builtin := self._builtin.get(name):
            return builtin
        return next((self._of(info) for info in self._roots.list() if info.name == name != _HOST), None)

    def tags(self, account: str, template: SandboxTemplate) -> Sequence[tuple[str, float]]:
        """Each tag and when it was given, in Unix seconds."""
        given = self._tags.get((account, template.id), {})
        own = [(tag, template.created) for tag in OWN_TAGS if tag not in given]
        return [*own, *((tag.tag, tag.created) for tag in given.values())]

    async def assign(self, account: str, template: SandboxTemplate, build: str, tags: Sequence[str]) -> None:
        """The tags mean this build from now on. Raises Throttled when it has too many."""
        known = self._tags.setdefault((account, template.id), {})
        if len(known.keys() | set(tags)) > MOST_TAGS:
            raise Throttled(f"A template has at most {MOST_TAGS} tags.")
        now = self._clock()
        new = [TemplateTag(account=account, template=template.id, tag=tag, build=build, created=now) for tag in tags]
        await self._store.put(new)
        known.update({tag.tag: tag for tag in new})

    async def unassign(self, account: str, template: SandboxTemplate, tags: Sequence[str]) -> None:
        """The tags mean nothing any more; those that every template has stay."""
        await self._store.delete(account, template.id, tags)
        known = self._tags.get((account, template.id), {})
        for tag in tags:
            known.pop(tag, None)

    def list(self) -> list[SandboxTemplate]:
        """All, the built-in ones first."""
        return [*self._builtin.values(), *(self._of(info) for info in self._roots.list() if info.name != _HOST)]

    async def root(self, template: SandboxTemplate) -> Template:
        """Its root file system. Raises NotFound, or what prevents that it has the packages of code contexts."""
        root = self._roots.get(template.root)
        return code_interpreter(root, await self._packages.get()) if template.interpreter else root

    def _of(self, info: RootInfo) -> SandboxTemplate:
        return SandboxTemplate(
            id=info.name, names=(info.name,), root=info.name, limits=self._limits, created=info.created
        )
