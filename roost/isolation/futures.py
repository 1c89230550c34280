"""Futures that may have nobody who waits for them."""

from __future__ import annotations

import asyncio
from typing import Any


def seen(done: asyncio.Future[Any]) -> None:
    """As a callback: what went wrong is no news of the event loop's, where nobody has waited for it."""
    if not done.cancelled():
        done.exception()
