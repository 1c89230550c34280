"""Sandboxes of the official SDK, their values and their forks."""

from __future__ import annotations

from typing import TypeVar

import e2b
from e2b_code_interpreter import Sandbox

B = TypeVar("B", bound=e2b.Sandbox)


def value(box: Sandbox, code: str) -> str:
    """That of the code's last expression."""
    execution = box.run_code(code)
    assert execution.error is None, execution.error
    return execution.text or ""


def forks_of(box: B, count: int = 1) -> list[B]:
    """So many, all of them up."""
    made = box.fork(count=count, timeout=120)
    forks = [fork for fork in made if isinstance(fork, type(box))]
    assert len(forks) == len(made) == count, made
    return forks
