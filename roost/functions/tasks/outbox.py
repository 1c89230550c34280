"""Delivers events about ended tasks to destinations outside of this server: at least once, across crashes, bounded.

An event was committed with its task's end. It goes out until its destination has taken it or has refused it for good,
or for a day; then the task's record says what became of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable, Mapping

from roost.functions.tasks.destinations import masked, scheme_of
from roost.functions.tasks.ports import Publisher
from roost.instances.background import Background
from roost.model.errors import InvalidArgument, NotFound, RoostError, Unavailable
from roost.store.task_outbox import Letter, TaskOutbox

log = logging.getLogger(__name__)

MAX_TRIES = 12  # with the pauses between them: about an hour
MAX_AGE_S = 86400.0
AT_ONCE = 16
_PAUSE_S = 1.0
_LONGEST_S = 900.0
_LOOK_S = 60.0
_ERROR_CHARS = 500

#: Gives, of an account's destination, what may be connected to. Raises InvalidArgument, Unavailable.
Admit = Callable[[str, str], Awaitable[str]]


async def anywhere(account: str, destination: str) -> str:
    """Nothing is refused."""
    return destination


def pause_after(tries: int, chance: float) -> float:
    """Seconds until the next try after that many."""
    steps: float = 2.0 ** min(tries - 1, 20)
    return min(_LONGEST_S, _PAUSE_S * steps) * (0.5 + chance / 2)


class Outbox:
    """`publishers` by the scheme of a destination's URL."""

    def __init__(
        self,
        store: TaskOutbox,
        publishers: Mapping[str, Publisher],
        *,
        clock: Callable[[], float],
        admit: Admit = anywhere,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._store = store
        self._publishers = publishers
        self._admit = admit
        self._clock = clock
        self._chance = chance
        self._background = Background()
        self._woken = asyncio.Event()
        self._sending: set[str] = set()

    def start(self) -> None:
        self._background.spawn(self._run())

    def wake(self) -> None:
        """There may be something to deliver."""
        self._woken.set()

    async def close(self) -> None:
        """What is under way is broken off, and goes out again after the next start."""
        await self._background.close()

    async def _run(self) -> None:
        with contextlib.suppress(RoostError):
            await self._store.not_later_than((now := self._clock()) + _LONGEST_S, now=now)
        while True:
            self._woken.clear()
            wait = _LOOK_S
            try:
                # Those that are being sent are due as well: there is room for some more besides them.
                letters, later = await self._store.due(now=self._clock(), limit=2 * AT_ONCE)
                for letter in letters:
                    if letter.id not in self._sending and len(self._sending) < AT_ONCE:
                        self._sending.add(letter.id)
                        self._background.spawn(self._deliver(letter))
                if later is not None:
                    wait = min(max(later - self._clock(), 0.05), _LOOK_S)
            except RoostError as error:
                log.warning("events about tasks can't be read: %s", error.message)
            except Exception:
                log.exception("events about tasks are not sent now")  # a bug of ours must not end it for good
            try:
                async with asyncio.timeout(wait):
                    await self._woken.wait()
            except TimeoutError:
                continue

    async def _deliver(self, letter: Letter) -> None:
        try:
            await self._record(letter, await self._publish(letter))
        except RoostError as error:
            log.warning("what became of event %s can't be stored: %s", letter.id, error.message)
            await asyncio.sleep(_PAUSE_S)  # and it goes out again
        finally:
            self._sending.discard(letter.id)
            self._woken.set()

    async def _publish(self, letter: Letter) -> RoostError | None:
        """What went wrong."""
        publisher = self._publishers.get(scheme_of(letter.destination))
        if publisher is None:
            return InvalidArgument(f"This server sends nothing to {scheme_of(letter.destination)}:// addresses.")
        try:
            destination = await self._admit(letter.account, letter.destination)
            await publisher.publish(destination, letter.id, letter.body)
        except RoostError as error:
            return error
        except Exception:
            log.exception("event %s", letter.id)
            return Unavailable("It failed in Roost.")
        return None

    async def _record(self, letter: Letter, error: RoostError | None) -> None:
        now, tries, to = self._clock(), letter.attempts + 1, masked(letter.destination)
        if error is None:
            await self._store.done(letter, now=now, taken=True, detail=f"delivered to {to}")
            return
        said = error.message[:_ERROR_CHARS]
        due = now + max(pause_after(tries, self._chance()), min(error.retry_after or 0.0, _LONGEST_S))
        hopeless = isinstance(error, InvalidArgument | NotFound)
        if hopeless or tries >= MAX_TRIES or due > letter.created + MAX_AGE_S:
            log.warning("event %s was not delivered to %s: %s", letter.id, to, said)
            detail = f"not delivered to {to} after {tries} tries: {said}"
            await self._store.done(letter, now=now, taken=False, detail=detail)
        else:
            await self._store.again(letter, due=due, error=said)
