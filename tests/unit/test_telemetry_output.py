"""Output of instances lands in the logs with its request, session and version."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from roost.model.function import FunctionSpec, Runtime
from roost.model.instance import State
from roost.model.usage import InvocationRecord, Outcome, TransitionRecord
from roost.telemetry.logs import FunctionLogs
from roost.telemetry.output import Output

SPEC = FunctionSpec(account="default", name="f", version="2", revision="x", runtime=Runtime.PYTHON, concurrency=2)


@pytest.fixture
async def logs(tmp_path: Path) -> AsyncIterator[FunctionLogs]:
    logs = FunctionLogs(tmp_path)
    await logs.start()
    yield logs
    await logs.close()


def moved(before: State, after: State, session_id: str = "") -> TransitionRecord:
    return TransitionRecord(
        instance_id="i-1", account="default", function="f", version="2", session_id=session_id, generation=1,
        before=before, after=after, at=1.0, held_s=1.0, leased_s=0.0, cpu_us=0, memory_mb=512,
    )  # fmt: skip


def ended(request_id: str, outcome: Outcome) -> InvocationRecord:
    return InvocationRecord(
        request_id=request_id, account="default", function="f", version="2", qualifier="LATEST", instance_id="i-1",
        session_id="", outcome=outcome, status=200, started=1.0, wait_s=0.0, duration_s=1.0, memory_mb=512, cold=False,
    )  # fmt: skip


async def requests(logs: FunctionLogs) -> list[tuple[str, str]]:
    return [(record.text, record.request_id) for record in await logs.tail("default", "f", 100)]


async def test_lines_carry_request_instance_version_and_session(logs: FunctionLogs) -> None:
    output = Output(logs)
    output.output(SPEC, "i-1", "stdout", "import done\n")
    output.transition(moved(State.STARTING, State.READY, "s-1"))
    output.output(SPEC, "i-1", "stdout", "FC Invoke Start RequestId: r1\nworking\nFC Invoke End RequestId: r1\n")
    first, _, working, last = await logs.tail("default", "f", 10)
    assert (first.request_id, first.session_id, first.version, first.instance) == ("", "", "2", "i-1")
    assert (working.request_id, working.session_id, last.request_id) == ("r1", "s-1", "r1")
    tail = b"FC Invoke Start RequestId: r1\nworking\nFC Invoke End RequestId: r1\n"
    assert logs.tail_for_request("default", "f", "r1") == tail
    assert logs.tail_for_known_request("r1", 9) == tail[-9:]
    assert output.tail("r1") == tail
    assert output.tail("r2") == b""
    assert await logs.tail_for_ended_request("default", "f", "r1", timeout_s=30) == tail


async def test_a_request_that_timed_out_takes_no_more_lines(logs: FunctionLogs) -> None:
    output = Output(logs)
    output.output(SPEC, "i-1", "stdout", "FC Invoke Start RequestId: slow\n")
    output.invocation(ended("slow", Outcome.TIMEOUT))
    output.output(SPEC, "i-1", "stdout", "x\nFC Invoke Start RequestId: next\ny\n")
    assert (await requests(logs))[1:] == [("x", ""), ("FC Invoke Start RequestId: next", "next"), ("y", "next")]


async def test_lines_that_come_after_the_reply_are_still_the_requests(logs: FunctionLogs) -> None:
    output = Output(logs)
    output.output(SPEC, "i-1", "stdout", "FC Invoke Start RequestId: r1\n")
    output.invocation(ended("r1", Outcome.OK))
    output.output(SPEC, "i-1", "stdout", "last words\nFC Invoke End RequestId: r1\n")
    assert (await requests(logs))[1] == ("last words", "r1")


@pytest.mark.parametrize("after", [State.STOPPED, State.PAUSED])
async def test_an_instance_that_ended_is_forgotten(logs: FunctionLogs, after: State) -> None:
    output = Output(logs)
    output.output(SPEC, "i-1", "stdout", "FC Invoke Start RequestId: r1\n")
    output.transition(moved(State.STOPPING, after))
    output.invocation(ended("r1", Outcome.TIMEOUT))
    output.output(SPEC, "i-1", "stdout", "of a new room\n")
    assert (await requests(logs))[1] == ("of a new room", "")
    assert len(output._instances) == 1


async def test_instances_do_not_mix(logs: FunctionLogs) -> None:
    output = Output(logs)
    output.output(SPEC, "i-1", "stdout", "FC Invoke Start RequestId: r1\n")
    output.output(SPEC, "i-2", "stdout", "other\n")
    assert (await requests(logs))[1] == ("other", "")
