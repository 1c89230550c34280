"""What accounts make sandboxes from: templates that they built, and snapshots that they took of sandboxes."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from roost.model.function import Limits
from roost.model.sandbox import Foundation

#: What a name without a tag means.
DEFAULT_TAG = "default"


class TemplateKind(StrEnum):
    BUILT = "built"  # from a recipe
    SNAPSHOT = "snapshot"  # of a sandbox's files


@dataclass(frozen=True, kw_only=True)
class TemplateRecord:
    """One template. Names are an account's own; a snapshot may have none. `created`: Unix seconds."""

    id: str
    account: str
    kind: TemplateKind
    name: str
    created: float


@dataclass(frozen=True, kw_only=True)
class TemplateBuild:
    """One state of a template, never changed. Sandboxes that were made from it need it no longer."""

    id: str
    template: str
    foundation: Foundation
    limits: Limits
    created: float
    sandbox: str = ""  # whose snapshot it is


@dataclass(frozen=True, kw_only=True)
class TemplateTag:
    """Which build of a template a name with this tag means. `created`: Unix seconds."""

    account: str
    template: str
    tag: str
    build: str
    created: float
