"""Live contexts of rooms, on the server's side: shadows are asked of the tracer, processes handed over to the daemon.

A room that is live has a *lifeline*, a socket between the server and its daemon. On it messages of JSON go both ways,
with descriptors from the server alone. What the daemon says is hostile: it is parsed, bounded, and names only
processes that the server has made.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from roost.isolation.cgroups import Cgroup
from roost.isolation.driver import LiveCopy
from roost.isolation.futures import seen
from roost.isolation.namespaces import wire
from roost.isolation.namespaces.held import Held
from roost.isolation.namespaces.helper import Spent, unnoted
from roost.isolation.namespaces.spills import Kept, Spills
from roost.isolation.pace import Pace
from roost.isolation.said import reasons
from roost.isolation.tracing import status
from roost.model.errors import Unavailable

log = logging.getLogger(__name__)

HOLD_S = 20.0  # for which a copy waits until the cells that run have ended
_REPLY_S = 5.0  # beyond that, for a daemon that does not answer
_MOST_CONTEXTS = 128
_STILL_RUNS = "a cell of it still runs"  # as the daemon's end of the lifeline has it
_MOST_TEXT = 4096
_MESSAGE = 256 << 10
_MOST_BRANCHES = 64  # that a room holds of its own contexts
#: What a room's daemon asks for takes a quarter of the time at most, but for so many seconds that it may be ahead.
_SHARE = 0.25
_AHEAD_S = 2.0
_MOST_PAUSE_S = 5.0  # less than a daemon waits for a reply: what comes earlier still is refused then


@dataclass(frozen=True, kw_only=True)
class Settling:
    """Where processes are settled: a room. `pidfd` is of its init, and its own."""

    pid: int
    pidfd: int
    cgroup: Cgroup
    base: int
    capabilities: int
    open_files: int
    entered: asyncio.Event  # its init has its root

    def close(self) -> None:
        os.close(self.pidfd)

    async def settle(self, held: Held, fds: Sequence[int], spent: Spent, *, last: bool) -> tuple[Held, int]:
        """Make a process of a branch here: its shadow, and its number within the room. Raises Unavailable."""
        return await self._make("settle", held, fds, spent, last=last)

    async def fork(self, held: Held, fds: Sequence[int], spent: Spent) -> tuple[Held, int]:
        """The same with a copy of one of this room's own contexts: the room is frozen, and goes on as soon as its
        memory is copied."""
        return await self._make("fork", held, fds, spent, last=True)

    async def _make(self, op: str, held: Held, fds: Sequence[int], spent: Spent, *, last: bool) -> tuple[Held, int]:
        with ExitStack() as opened:
            try:
                inside, *joins = opened.enter_context(self.cgroup.join_fds())
                outside = os.open(self.cgroup.directory(), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except OSError as error:
                raise Unavailable(f"the room has ended ({error.strerror})") from error
            opened.callback(os.close, outside)
            reply = await held.ask(
                op,
                [self.pidfd, outside, inside, *fds, *joins],
                spent,
                last=last,
                pid=self.pid,
                base=self.base,
                capabilities=self.capabilities,
                open_files=self.open_files,
            )
        return Held(held.helper, reply["shadow"]), int(reply["pid"])


@dataclass
class Contexts:
    """Those of one room. `lifeline` is the server's end."""

    lifeline: socket.socket
    place: Settling
    seed: Callable[[Held | None], Awaitable[Held | None]]  # what new contexts are copies of, but not this one
    spills: Spills
    #: In it the room stands still; `anew`: and it is Unavailable where that does already.
    still: Callable[..., AbstractAsyncContextManager[None]] | None = None
    runs: Callable[[], AbstractAsyncContextManager[None]] = nullcontext  # in which it does not begin to
    _held: dict[int, Held] = field(default_factory=dict)  # by the number of the process in the room
    _reply: asyncio.Future[dict[str, Any]] | None = None
    _asking: asyncio.Lock = field(default_factory=asyncio.Lock)
    _first: asyncio.Task[None] | None = None
    _adopting: asyncio.Task[None] | None = None  # the same, of what was copied elsewhere
    _branches: dict[int, Held] = field(default_factory=dict)
    _serving: asyncio.Task[None] | None = None
    _next: int = 1
    _waiting: dict[str, Any] | None = None  # by the daemon, and not served yet
    _number: int = 0  # of what the daemon was asked last
    _pace: Pace = field(default_factory=lambda: Pace(share=_SHARE, burst=_AHEAD_S))
    _next_at: float = 0.0  # before which nothing is done for the daemon
    _closing: asyncio.Event = field(default_factory=asyncio.Event)

    def begin(self) -> None:
        """Have the room's first context made in the background; without one, the daemon makes it by a fork."""
        self._listen()
        self._first = asyncio.get_running_loop().create_task(self._spare({"op": "first"}))

    async def _spare(self, message: Mapping[str, Any]) -> None:
        """Hand over a process that waits to be a context."""
        ours, theirs = wire.pair()
        with ours, theirs:
            pid = 0
            try:
                await self._make_place(_MOST_CONTEXTS)
                pid = await self._seeded(theirs.fileno())
            except Unavailable as error:  # the daemon forks: its contexts are there, but can't be copied
                log.info("a room goes without live contexts: %s", error.message)
            self._tell({**message, "pid": pid}, [ours.fileno()] if pid else [])

    async def _seeded(self, sock: int) -> int:
        """A copy of the seed; 0 if there is none. Raises Unavailable."""
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            held = await self.seed(None)
            try:
                return 0 if held is None else await self._settle(held, [sock, null, null], last=False)
            except Unavailable:
                if held is None or await held.alive():
                    raise
            held = await self.seed(held)  # the machine's memory was at its end, or so
            return 0 if held is None else await self._settle(held, [sock, null, null], last=False)
        finally:
            os.close(null)

    async def _make_place(self, most: int) -> None:
        """For one more context. Those that have ended are forgotten when they fill the list. Raises Unavailable."""
        if len(self._held) >= most:
            await self._forget_ended(self._spend)
        if len(self._held) >= most:
            raise Unavailable(f"a room has {_MOST_CONTEXTS} contexts with shadows at most")

    async def _forget_ended(self, spent: Spent = unnoted) -> None:
        ended: set[int] = set()
        for helper in {held.helper for held in self._held.values()}:
            numbers = [held.number for held in self._held.values() if held.helper is helper]
            try:
                alive = (await helper.request({"op": "alive", "shadows": numbers}, (), spent))[0]["shadows"]
            except Unavailable:
                alive = numbers if helper.alive else []
            ended |= {pid for pid, held in self._held.items() if held.helper is helper and held.number not in alive}
        for pid in ended:
            del self._held[pid]

    async def include(self, processes: Iterable[int]) -> bool:
        """Whether each is a context that can be copied, by its number on the host; the room stands still."""
        await self._forget_ended()
        try:
            return all(status.read_status(pid).room_pid in self._held for pid in processes)
        except status.Unknown:
            return False

    async def _settle(self, held: Held, fds: Sequence[int], *, last: bool) -> int:
        await self.place.entered.wait()
        if self._closing.is_set():
            raise Unavailable("The room was not made.")
        async with self.runs():  # what is made in a room that stands still would stand still half made
            new, pid = await self.place.settle(held, fds, self._spend, last=last)
        self._held[pid] = new
        return pid

    async def _hand_over(self, held: Held, message: Mapping[str, Any], *, last: bool, said: bytes = b"") -> None:
        """Settle a branch as a context, which finds `said` when it comes to be. Raises Unavailable."""
        await self._make_place(_MOST_CONTEXTS + 1)  # for a moment, what takes another's place is there beside it
        with ExitStack() as opened:
            daemons, ends = _ends(opened, said)
            pid = await self._settle(held, ends, last=last)
            self._tell({**message, "pid": pid}, daemons)

    def adopt(self, copies: Sequence[LiveCopy]) -> None:
        """Have what was copied elsewhere settled as soon as there is a room, and handed over; see `settled`."""
        self._listen()
        self._tell({"op": "copies"})  # which may take longer than a new context, and are waited for
        self._first = self._adopting = asyncio.get_running_loop().create_task(self._adopt(copies))
        self._adopting.add_done_callback(seen)

    async def _adopt(self, copies: Sequence[LiveCopy]) -> None:
        try:
            for copy in copies:
                held = copy.held
                assert isinstance(held, Held)
                described = {"op": "context", "id": copy.id, "cwd": copy.cwd, "default": copy.default}
                await self._hand_over(held, described, last=copy.use())
        except OSError as error:  # as where this process may open no more
            raise Unavailable(f"The room's contexts could not be made: {error.strerror}.") from error
        finally:
            self._tell({"op": "whole"})

    async def settled(self) -> None:
        """Return when the room has the contexts that were copied elsewhere for it. Raises Unavailable if one could not
        be settled."""
        if self._adopting is not None:
            await asyncio.shield(self._adopting)

    def _tell(self, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
        with contextlib.suppress(OSError):  # the room has ended, or does not listen
            wire.send(self.lifeline, message, fds)

    async def copied(
        self, contexts: Sequence[Mapping[str, Any]], *, keep: bool = False
    ) -> tuple[list[LiveCopy], list[str]]:
        """Branches of the contexts that stand still; the room is frozen. And why others have none."""
        copies: list[LiveCopy] = []
        lost: list[str] = []
        opened = ExitStack()
        into = opened.enter_context(self.spills.shelf()) if keep else []
        try:
            for one in contexts:
                held = self._held.get(one["pid"])
                if held is None:
                    lost.append(f"context {one['id']}: it was made without a shadow")
                    continue
                try:
                    made, left = await held.branch(keep=keep, into=into)
                except Unavailable as error:
                    lost.append(f"context {one['id']}: {error.message}")
                    continue
                kept = Kept(made, self.spills)
                copies.append(
                    LiveCopy(
                        held=made,
                        drop=kept.drop,
                        alive=kept.alive,
                        measure=kept.measure,
                        most=made.most,
                        spill=kept.spill if keep else None,
                        recall=kept.recall,
                        id=one["id"],
                        cwd=one["cwd"],
                        default=one["default"],
                        left=left,
                        kept=keep,
                    )
                )
        except BaseException:
            for copy in copies:
                await copy.drop()
            raise
        finally:
            opened.close()
        return copies, lost

    @asynccontextmanager
    async def standing_still(
        self, wait_s: float = HOLD_S, *, now: bool = False
    ) -> AsyncIterator[tuple[list[dict[str, Any]], list[str]]]:
        """The contexts between two cells, where they can be copied, and why others are not among them. `now`: cells
        that run are interrupted."""
        async with self._asking:
            await self._begun()
            try:
                yield await self._report({"op": "hold", "wait_s": wait_s, "now": now})
            finally:
                self._tell({"op": "release"})

    async def at_rest(self) -> bool:
        """Wait until no cell runs, up to a bound. Whether that is so."""
        async with self._asking:
            await self._begun()
            return not is_busy((await self._report({"op": "rest", "wait_s": HOLD_S}))[1])

    async def _begun(self) -> None:
        """The daemon has what the room begins with: before, it takes nothing else."""
        if self._first is not None:
            await asyncio.wait([self._first])

    async def _report(self, message: dict[str, Any]) -> tuple[list[dict[str, Any]], list[str]]:
        """What the daemon says of its contexts; none, and why, where it does not answer as it should."""
        try:
            return parse_hold(await self._ask(message, message["wait_s"] + _REPLY_S))
        except Unavailable as error:
            return [], [error.message]

    async def _ask(self, message: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        self._reply = asyncio.get_running_loop().create_future()
        self._number += 1
        try:
            wire.send(self.lifeline, {**message, "number": self._number})
            return await asyncio.wait_for(self._reply, timeout_s)
        except (OSError, TimeoutError) as error:
            raise Unavailable("the room's daemon does not answer") from error
        finally:
            self._reply = None

    def _listen(self) -> None:
        asyncio.get_running_loop().add_reader(self.lifeline, self._receive)

    def _receive(self) -> None:
        try:
            data, _, flags, _ = self.lifeline.recvmsg(_MESSAGE)
        except BlockingIOError:
            return
        except OSError:
            data, flags = b"", 0
        try:
            message = json.loads(data) if not flags & socket.MSG_TRUNC else None
        except (ValueError, RecursionError):
            message = None
        if not data:
            asyncio.get_running_loop().remove_reader(self.lifeline)
        if isinstance(message, dict) and "ask" in message:
            self._waiting = message  # one at a time: what is asked in between takes the place of what waits
            if self._serving is None or self._serving.done():
                self._serving = asyncio.get_running_loop().create_task(self._serve())
        elif self._reply is not None and not self._reply.done():
            if not isinstance(message, dict):
                self._reply.set_exception(Unavailable("the room's daemon does not keep to the protocol"))
            elif message.get("number") == self._number:
                self._reply.set_result(message)

    async def _serve(self) -> None:
        """What the room's daemon asks for, at its share of the time."""
        while self._waiting is not None:
            early_s = self._next_at - time.monotonic()
            if early_s > 0:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._closing.wait(), min(early_s, _MOST_PAUSE_S))
            if self._closing.is_set():
                return
            message, self._waiting = self._waiting, None
            await self._do(message, early_s)

    async def _do(self, message: Mapping[str, Any], early_s: float) -> None:
        """For code that the daemon serves: hostile. Its own contexts and branches alone."""
        number = message.get("number")
        reply = {"op": "reply", "number": number if isinstance(number, int) else 0}
        try:
            match message:
                case {"ask": "drop", "branch": int(branch)} if branch in self._branches:
                    await self._branches.pop(branch).drop()
                    self._tell(reply)
                case _ if early_s > _MOST_PAUSE_S:
                    raise Unavailable(f"the room has asked for too much; again in {early_s - _MOST_PAUSE_S:.0f} s")
                case {"ask": "another"}:
                    await self._spare(reply)
                case {"ask": "fork", "pid": int(pid)}:
                    await self._fork(pid, reply, _said(message))
                case {"ask": "branch", "pid": int(pid)}:
                    self._tell({**reply, "branch": await self._keep(pid)})
                case {"ask": "settle", "branch": int(branch)} if branch in self._branches:
                    await self._hand_over(self._branches[branch], reply, last=False, said=_said(message))
                case _:
                    raise Unavailable("there is no such branch")
        except Unavailable as error:
            self._tell({**reply, "error": error.message})
        except OSError as error:  # as where this process may open no more
            self._tell({**reply, "error": str(error.strerror)})

    def _spend(self, took_s: float) -> None:
        """Time of the tracer's, which serves all rooms."""
        now = time.monotonic()
        self._next_at = now + self._pace.spend(now - took_s, now)

    async def _fork(self, pid: int, reply: Mapping[str, Any], said: bytes) -> None:
        """Hand over a copy of a context that stands still, as its room does for as long as that takes."""
        held, still = self._copied(pid)
        await self._make_place(_MOST_CONTEXTS + 1)
        with ExitStack() as opened:
            daemons, ends = _ends(opened, said)
            async with still(anew=True):  # it goes on before this has ended
                new, made = await self.place.fork(held, ends, self._spend)
                self._held[made] = new
                self._tell({**reply, "pid": made}, daemons)

    async def _keep(self, pid: int) -> int:
        """The number of a branch that stays until it is dropped, or the room ends."""
        if len(self._branches) >= _MOST_BRANCHES:
            raise Unavailable(f"a room holds {_MOST_BRANCHES} branches of its contexts at most")
        made = await self._branch(pid, keep=True)
        number, self._next = self._next, self._next + 1
        self._branches[number] = made
        return number

    async def _branch(self, pid: int, *, keep: bool) -> Held:
        """Of a context that stands still; the room does, for as long as its memory takes to be copied."""
        held, still = self._copied(pid)
        async with still():
            return (await held.branch(keep=keep, spent=self._spend))[0]

    def _copied(self, pid: int) -> tuple[Held, Callable[..., AbstractAsyncContextManager[None]]]:
        held = self._held.get(pid)
        if held is None or self.still is None:
            raise Unavailable("it was made without a shadow")
        return held, self.still

    async def close(self) -> None:
        """The room has ended, and with it all that was held of it; or there was none."""
        self._closing.set()
        self.place.entered.set()
        while begun := [task for task in (self._first, self._serving) if task is not None and not task.done()]:
            await asyncio.wait(begun)
        asyncio.get_running_loop().remove_reader(self.lifeline)
        self.lifeline.close()
        self.place.close()


def is_busy(lost: Sequence[str]) -> bool:
    """Whether a context was lost because a cell of it ran. Pure."""
    return any(reason.endswith(_STILL_RUNS) for reason in lost)


def _said(message: Mapping[str, Any]) -> bytes:
    """What a daemon has to say first to the process that it asks for. Pure."""
    said = message.get("said")
    return said.encode(errors="replace")[:_MOST_TEXT] if isinstance(said, str) else b""


def _ends(opened: ExitStack, said: bytes) -> tuple[list[int], list[int]]:
    """A context's socket and outputs: the daemon's ends, and the process', which has been told something already."""
    channel, theirs = socket.socketpair()
    opened.callback(channel.close)
    opened.callback(theirs.close)
    channel.sendall(said)
    daemons, ends = [channel.fileno()], [theirs.fileno()]
    for _ in range(2):
        reader, writer = os.pipe2(os.O_CLOEXEC)
        opened.callback(os.close, reader)
        opened.callback(os.close, writer)
        daemons.append(reader)
        ends.append(writer)
    return daemons, ends


def parse_hold(reply: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[str]]:
    """What a daemon says of its contexts: hostile. Pure. Raises Unavailable."""
    held, lost = reply.get("held"), reply.get("lost")
    if not isinstance(held, list) or not isinstance(lost, list) or len(held) > _MOST_CONTEXTS:
        raise Unavailable("the room's daemon does not keep to the protocol")
    contexts: list[dict[str, Any]] = []
    for one in held:
        if not isinstance(one, dict):
            raise Unavailable("the room's daemon does not keep to the protocol")
        id, cwd, pid = one.get("id"), one.get("cwd"), one.get("pid")
        if not (isinstance(id, str) and isinstance(cwd, str) and isinstance(pid, int) and len(cwd) <= _MOST_TEXT):
            raise Unavailable("the room's daemon does not keep to the protocol")
        if not 0 < len(id) <= 64 or not set(id) <= set("0123456789abcdef-") or id in {made["id"] for made in contexts}:
            raise Unavailable("the room's daemon does not keep to the protocol")
        contexts.append({"id": id, "cwd": cwd, "pid": pid, "default": one.get("default") is True})
    return contexts, reasons(lost)
