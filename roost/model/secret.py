"""A secret that somebody keeps here: its value goes in, and no API gives it out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Secret:
    """One secret. `name` is lower case and unique in the account; times are Unix seconds."""

    account: str
    id: str
    name: str
    value: str = field(repr=False)
    version: int = 1
    metadata: Mapping[str, str] = field(default_factory=dict)
    created: float
    updated: float
