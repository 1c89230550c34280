"""What is done again and again outlives what it raises."""

from __future__ import annotations

import asyncio
import logging

import pytest

from roost.model.errors import Unavailable
from roost.telemetry.rounds import going_on


def test_what_fails_is_told_and_that_is_all(caplog: pytest.LogCaptureFixture) -> None:
    for error in (Unavailable("no store"), OSError(24, "Too many open files")):
        with going_on("it can't be noted"):
            raise error
    foreseen, other = caplog.records
    assert (foreseen.levelno, foreseen.getMessage(), foreseen.exc_info) == (
        logging.WARNING,
        "it can't be noted: no store",
        None,
    )
    assert (other.levelno, other.getMessage()) == (
        logging.ERROR,
        "it can't be noted: OSError(24, 'Too many open files')",
    )
    assert other.exc_info is not None


def test_who_is_to_end_ends() -> None:
    with pytest.raises(asyncio.CancelledError), going_on("it can't be noted"):
        raise asyncio.CancelledError
