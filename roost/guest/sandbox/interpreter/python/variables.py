"""Environment variables for the time of a cell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager


@contextmanager
def replaced(env: MutableMapping[str, str], values: Mapping[str, str]) -> Iterator[None]:
    """With `values` in `env`; afterwards these names have what they had before, whatever the cell made of them."""
    before = {name: env.get(name) for name in values}
    env.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                env.pop(name, None)
            else:
                env[name] = value
