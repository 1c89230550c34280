"""Plays the data plane for tasks: each payload says what comes of its run."""

from __future__ import annotations

import asyncio
import json
from collections import Counter

from roost.functions.tasks.policy import Kind, Run
from roost.functions.tasks.ports import Order
from roost.model.errors import RoostError


class ScriptedRunner:
    """`ok`, `fault`, `trouble`, `busy` (no instance), `block` (until `release` or a stop) and `deaf` (ignores a stop);
    `put A B` puts out each word, `report A` reports it, and both go on as `block` when the last word is that.

    `ran` counts begun runs by task, `most` is how many were under way at once.
    """

    def __init__(self) -> None:
        self.ran: Counter[str] = Counter()
        self.release = asyncio.Event()
        self.under_way = 0
        self.most = 0
        self.busy = 0  # so many tries find no instance
        self.broken = 0  # so many tries raise what no runner should

    async def run(self, order: Order) -> Run:
        if self.broken > 0:
            self.broken -= 1
            raise ZeroDivisionError
        if self.busy > 0:
            self.busy -= 1
            return Run(kind=Kind.TROUBLE, begun=False, error_type="ResourceThrottled", error="full")
        try:
            payload = (await order.begin("i-1")).decode()
        except RoostError as error:
            return Run(kind=Kind.TROUBLE, begun=order.begun, error_type=error.code, error=error.message)
        self.ran[order.task.id] += 1
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            return await self._play(order, payload)
        finally:
            self.under_way -= 1

    def _put(self, order: Order, verb: str, words: list[str]) -> str:
        order.tape = order.record()
        for word in words:
            if word == "block":
                return word
            if verb == "put":
                order.tape.write(word.encode())
            else:
                order.tape.progress(json.dumps(word).encode())
        return "ok"

    async def _play(self, order: Order, payload: str) -> Run:
        await asyncio.sleep(0)
        verb, *words = payload.split()
        if verb in ("put", "report"):
            payload = self._put(order, verb, words)
        if payload in ("block", "deaf"):
            stop = asyncio.Event()
            if payload == "block":
                order.on_stop = stop.set
                if order.stopped:
                    stop.set()
            waits = [asyncio.ensure_future(self.release.wait()), asyncio.ensure_future(stop.wait())]
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()
            if stop.is_set():
                return Run(kind=Kind.STOPPED)
        if payload == "fault":
            return Run(kind=Kind.FAULT, error_type="E", error="failed")
        if payload == "trouble":
            return Run(kind=Kind.TROUBLE, error_type="ServiceUnavailable", error="lost")
        return Run(kind=Kind.SUCCEEDED, result=payload.encode())
