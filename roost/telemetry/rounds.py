"""Work that is done again and again for as long as a server runs."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from roost.model.errors import RoostError

log = logging.getLogger(__name__)


@contextmanager
def going_on(failed: str) -> Iterator[None]:
    """Around one step of a round: what it raises is logged, after `failed`, and the next step comes all the same."""
    try:
        yield
    except RoostError as error:
        log.warning("%s: %s", failed, error.message)
    except Exception as error:
        log.error("%s: %r", failed, error, exc_info=error)
