"""What sandboxes are made from: a root file system and what runs on it, by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from roost.isolation.driver import Template
from roost.model.errors import NotFound, RoostError
from roost.model.function import Limits

#: What the guest's daemon speaks; clients choose what they use of it by this number.
ENVD_VERSION = "0.6.13"
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


class TemplateShelf:
    """The built-in templates, and every root file system under its own name."""

    def __init__(self, roots: Roots, limits: Limits) -> None:
        self._roots = roots
        self._limits = limits
        self._builtin = {
            name: SandboxTemplate(
                id=name, names=(name,), root=_HOST, limits=limits, interpreter=interpreter, builtin=True
            )
            for name, interpreter in (("base", False), ("code-interpreter-v1", True))
        }

    def get(self, name: str) -> SandboxTemplate:
        """By id or name, with `:default` or `:latest` or without. Raises NotFound."""
        plain, _, tag = name.partition(":")
        if tag in ("", "default", "latest"):
            if builtin := self._builtin.get(plain):
                return builtin
            for info in self._roots.list():
                if info.name == plain and plain != _HOST:
                    return self._of(info)
        raise NotFound(f"template '{name[:128]}' not found", code="TemplateNotFound")

    def list(self) -> list[SandboxTemplate]:
        """All, the built-in ones first."""
        return [*self._builtin.values(), *(self._of(info) for info in self._roots.list() if info.name != _HOST)]

    def root(self, template: SandboxTemplate) -> Template:
        """Its root file system. Raises NotFound."""
        return self._roots.get(template.root)

    def exists(self, name: str) -> bool:
        try:
            self.get(name)
        except RoostError:
            return False
        return True

    def _of(self, info: RootInfo) -> SandboxTemplate:
        return SandboxTemplate(
            id=info.name, names=(info.name,), root=info.name, limits=self._limits, created=info.created
        )
