"""Function logs: what is written, bounded, found again and followed."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.model.errors import InvalidArgument, Throttled
from roost.model.usage import InvocationRecord, Outcome
from roost.telemetry import logs as logs_module
from roost.telemetry.log_record import MAX_TEXT, Clock, LogRecord, Source, decode, encode_notice, visible
from roost.telemetry.logs import FunctionLogs


@pytest.fixture
async def logs(tmp_path: Path) -> AsyncIterator[FunctionLogs]:
    logs = FunctionLogs(tmp_path, max_bytes_per_file=4096, files=3)
    await logs.start()
    yield logs
    await logs.close()


def say(logs: FunctionLogs, text: str, function: str = "f", request_id: str = "") -> None:
    logs.append("default", function, "i-1", "stdout", text, request_id=request_id, version="LATEST")


async def texts(logs: FunctionLogs, lines: int = 100, request_id: str | None = None, function: str = "f") -> list[str]:
    return [record.text for record in await logs.tail("default", function, lines, request_id)]


async def test_tail_has_what_was_just_appended_with_all_its_fields(logs: FunctionLogs) -> None:
    logs.append("default", "f", "i-1", "stderr", "hi\n", request_id="r", version="3", session_id="s", level="INFO")
    [record] = await logs.tail("default", "f", 10)
    assert record == LogRecord(
        time=record.time, instance="i-1", version="3", request_id="r", session_id="s", stream="stderr", text="hi",
        level="INFO",
    )  # fmt: skip
    assert set(record.to_json()) == {
        "time", "instance", "version", "requestId", "sessionId", "stream", "level", "text",
    }  # fmt: skip


async def test_tail_returns_the_newest_lines_of_one_function_in_order(logs: FunctionLogs) -> None:
    for number in range(20):
        say(logs, f"a{number}", request_id="even" if number % 2 == 0 else "odd")
        say(logs, f"b{number}", function="g")
    assert await texts(logs, 3) == ["a17", "a18", "a19"]
    assert await texts(logs, 2, request_id="even") == ["a16", "a18"]
    assert await texts(logs, 1, function="g") == ["b19"]
    assert await texts(logs, 0) == []
    assert await texts(logs, function="never-ran") == []


async def test_files_rotate_and_stay_within_their_bound(logs: FunctionLogs, tmp_path: Path) -> None:
    for number in range(200):
        say(logs, f"line {number} " + "x" * 50)
        if number % 10 == 0:
            await logs.flush()
    found = await texts(logs)
    files = sorted((tmp_path / "default" / "f").iterdir())
    assert [file.name for file in files] == ["0.jsonl", "1.jsonl", "2.jsonl"]
    assert all(file.stat().st_size <= 4096 for file in files)
    assert found[-1].startswith("line 199 ")
    assert [int(text.split()[1]) for text in found] == list(range(200 - len(found), 200))


async def test_text_cannot_forge_a_record_or_move_a_terminal(logs: FunctionLogs, tmp_path: Path) -> None:
    say(logs, 'x\x1b[2J\r{"time":"2026-01-01T00:00:00Z"}\u2028\x9b\x00\u202e\ud800')
    assert await texts(logs) == [
        'x\\x1b[2J\\x0d{"time":"2026-01-01T00:00:00Z"}\\u2028\\x9b\\x00\\u202e\\ud800'
    ]  # fmt: skip
    assert (tmp_path / "default" / "f" / "0.jsonl").read_bytes().count(b"\n") == 1


@given(st.text(alphabet=st.characters(codec=None), max_size=80), st.floats(0, 4e9))
def test_any_text_becomes_one_ascii_line_and_comes_back(text: str, at: float) -> None:
    source = Source(account="default", function="f", instance='i"1', version="\n", session_id="s")
    for safe in visible(text).split("\n"):
        line = source.encode(Clock().text(at), "stdout", safe, "r", "INFO")
        assert line.count("\n") == 1
        assert line.endswith("\n")
        record = decode(line.encode("ascii"))
        assert record == source.record(pytest.approx(at, abs=0.0011), "stdout", safe, "r", "INFO")
        assert not any(ord(char) < 32 and char != "\t" for char in record.text)


def test_a_clock_goes_on_over_the_seconds() -> None:
    clock = Clock()
    assert [clock.text(at) for at in (0.0, 0.9999, 1.0, 86399.5, 0.25)] == [
        "1970-01-01T00:00:00.000Z", "1970-01-01T00:00:00.999Z", "1970-01-01T00:00:01.000Z",
        "1970-01-01T23:59:59.500Z", "1970-01-01T00:00:00.250Z",
    ]  # fmt: skip


async def test_every_line_of_a_text_is_a_record_and_long_ones_are_cut(logs: FunctionLogs) -> None:
    say(logs, "one\n\ntwo\r\n" + "y" * (MAX_TEXT + 7) + "\n")
    found = await texts(logs)
    assert found[:3] == ["one", "", "two"]
    assert found[3] == "y" * MAX_TEXT + " [7 characters cut]"


@pytest.mark.parametrize("name", ["..", ".", "a/b", "", "-x", "a\nb"])
async def test_a_name_that_is_no_file_name_is_refused(logs: FunctionLogs, name: str) -> None:
    with pytest.raises(InvalidArgument):
        await logs.tail("default", name, 10)


async def test_an_unwritable_name_loses_its_lines_and_no_others(logs: FunctionLogs) -> None:
    say(logs, "lost", function="../escape")
    say(logs, "kept")
    assert await texts(logs) == ["kept"]
    assert logs.dropped == 1


async def test_a_flood_is_dropped_counted_and_named(logs: FunctionLogs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs_module, "SERIES_BUFFER_BYTES", 1000)
    for number in range(50):
        say(logs, f"{number}")
    say(logs, "another's", function="g")
    found = await texts(logs)
    assert found[-1] == f"{logs.dropped} lines of output were dropped"
    assert logs.dropped == 50 - len(found) + 1 > 0
    assert await texts(logs, function="g") == ["another's"]


async def test_a_full_disk_drops_counts_and_heals(
    logs: FunctionLogs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    say(logs, "before")
    await logs.flush()
    real = os.pwrite

    def full(descriptor: int, data: bytes, offset: int) -> int:
        real(descriptor, bytes(data)[:5], offset)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    say(logs, "lost 1\nlost 2")
    await logs.flush()
    monkeypatch.setattr(os, "pwrite", real)
    say(logs, "after")
    assert await texts(logs) == ["before", "after", "2 lines of output were dropped"]
    assert logs.dropped == 2
    assert all(json.loads(line) for line in (tmp_path / "default" / "f" / "0.jsonl").read_text().splitlines())


async def test_a_line_torn_by_a_crash_is_cut_off(tmp_path: Path) -> None:
    directory = tmp_path / "default" / "f"
    directory.mkdir(parents=True)
    whole = encode_notice("whole").encode()
    (directory / "0.jsonl").write_bytes(whole + b'{"time":"20' + b"x" * 70_000)
    logs = FunctionLogs(tmp_path)
    await logs.start()
    assert await texts(logs) == ["whole"]
    say(logs, "next")
    assert await texts(logs) == ["whole", "next"]
    await logs.close()
    assert (directory / "0.jsonl").read_bytes().startswith(whole + b'{"time"')
    assert (directory / "0.jsonl").read_bytes().count(b"\n") == 2


async def test_close_writes_what_is_buffered(tmp_path: Path) -> None:
    logs = FunctionLogs(tmp_path)
    await logs.start()
    say(logs, "last words")
    await logs.close()
    await logs.close()
    assert "last words" in (tmp_path / "default" / "f" / "0.jsonl").read_text()


async def test_lines_reach_the_disk_without_being_asked_for(tmp_path: Path) -> None:
    logs = FunctionLogs(tmp_path)
    await logs.start()
    say(logs, "by itself")
    file = tmp_path / "default" / "f" / "0.jsonl"
    async with asyncio.timeout(20):
        while not (file.exists() and file.stat().st_size):
            await asyncio.sleep(0.02)
    await logs.close()


async def test_a_follower_sees_each_line_once_from_the_tail_on(logs: FunctionLogs) -> None:
    for number in range(5):
        say(logs, f"{number}")
    stream = logs.follow("default", "f", 3)
    seen = [(await anext(stream)).text]
    for number in range(5, 9):
        say(logs, f"{number}")
    seen += [(await anext(stream)).text for _ in range(6)]
    assert seen == [str(number) for number in range(2, 9)]
    await stream.aclose()  # type: ignore[attr-defined]
    assert logs._followers == {}


async def test_lines_appended_while_the_tail_is_read_come_once(logs: FunctionLogs) -> None:
    stream = logs.follow("default", "f", 100)
    first = asyncio.ensure_future(anext(stream))
    for number in range(30):
        say(logs, f"{number}")
        await asyncio.sleep(0)
    seen = [(await first).text] + [(await anext(stream)).text for _ in range(29)]
    assert seen == [str(number) for number in range(30)]
    await stream.aclose()  # type: ignore[attr-defined]


async def test_a_slow_follower_gets_a_gap_and_then_the_present(
    logs: FunctionLogs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs_module, "FOLLOWER_QUEUE", 3)
    say(logs, "start")
    stream = logs.follow("default", "f", 1)
    assert (await anext(stream)).text == "start"
    for number in range(10):
        say(logs, f"{number}")
    seen = [await anext(stream) for _ in range(4)]
    assert [record.text for record in seen] == ["0", "1", "2", "7 lines skipped: the reader is too slow"]
    assert seen[-1].stream == "roost"
    say(logs, "now")
    assert (await anext(stream)).text == "now"
    await stream.aclose()  # type: ignore[attr-defined]


async def test_too_many_followers_are_refused(logs: FunctionLogs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs_module, "FOLLOWERS_PER_FUNCTION", 1)
    say(logs, "x")
    first = logs.follow("default", "f")
    await anext(first)
    with pytest.raises(Throttled):
        await anext(logs.follow("default", "f"))
    await first.aclose()  # type: ignore[attr-defined]


async def test_deleting_removes_files_tails_and_ends_followers(logs: FunctionLogs, tmp_path: Path) -> None:
    say(logs, "secret", request_id="r")
    stream = logs.follow("default", "f")
    await anext(stream)
    say(logs, "buffered", request_id="r")
    await logs.delete("default", "f")
    assert [record.text async for record in stream] == ["buffered"]
    assert not (tmp_path / "default" / "f").exists()
    assert logs.tail_for_request("default", "f", "r") == b""
    assert await texts(logs) == []
    await logs.delete("default", "f")


async def test_closing_ends_followers(logs: FunctionLogs) -> None:
    say(logs, "x")
    stream = logs.follow("default", "f")
    await anext(stream)
    await logs.close()
    assert [record async for record in stream] == []


def ended(request_id: str = "r", **changes: Any) -> InvocationRecord:
    fields: dict[str, Any] = {
        "request_id": request_id, "account": "default", "function": "f", "version": "3", "qualifier": "LATEST",
        "instance_id": "i-1", "session_id": "s", "outcome": Outcome.OK, "status": 200, "started": 1.0,
        "wait_s": 0.0002114, "duration_s": 0.0031, "memory_mb": 512, "cold": False,
    }  # fmt: skip
    return InvocationRecord(**(fields | changes))


async def test_each_invocation_leaves_a_line(logs: FunctionLogs) -> None:
    logs.invocation(ended("quiet"))
    logs.invocation(ended("other", function="g"))
    say(logs, "printed", request_id="loud")
    logs.invocation(ended("loud", outcome=Outcome.TIMEOUT, status=500, cold=True, version="4"))
    found = await logs.tail("default", "f", 10)
    quiet, loud = (record for record in found if record.stream == "roost")
    assert quiet == LogRecord(
        time=quiet.time, instance="i-1", version="3", request_id="quiet", session_id="s", stream="roost", level="INFO",
        text="outcome=ok status=200 cold=false memory_mb=512 wait_ms=0.211 duration_ms=3.100",
    )  # fmt: skip
    assert len(found) == 3
    assert (loud.level, loud.version, loud.text[:38]) == ("ERROR", "4", "outcome=timeout status=500 cold=true m")
    assert [record.request_id for record in await logs.tail("default", "f", 10, "loud")] == ["loud", "loud"]
    assert logs.tail_for_request("default", "f", "quiet") == b""  # no output of its own


async def test_followers_see_invocations_as_the_files_have_them(logs: FunctionLogs) -> None:
    async with contextlib.aclosing(logs.follow("default", "f", 0)) as follower:
        seen = asyncio.ensure_future(anext(follower))
        await asyncio.sleep(0)
        while not logs._followers:
            await asyncio.sleep(0.001)
        record = ended(session_id='"s"', outcome=Outcome.THROTTLED, instance_id="", status=429)
        logs.invocation(record)
        live = await asyncio.wait_for(seen, 30)
    [written] = await logs.tail("default", "f", 10)
    assert replace(live, time=0) == replace(written, time=0)
    assert live.level == "WARNING"


async def test_neither_output_nor_requests_push_the_other_out(logs: FunctionLogs, tmp_path: Path) -> None:
    say(logs, "precious")
    for number in range(200):
        logs.invocation(ended(f"r{number}"))
        if number % 10 == 0:
            await logs.flush()
    found = await texts(logs, 1000)
    assert found[0] == "precious"
    assert found[-1].startswith("outcome=ok")
    files = [*(tmp_path / "default" / "f" / "requests").iterdir()]
    assert len(files) == 3
    assert all(file.stat().st_size <= 4096 for file in files)
    await logs.delete("default", "f")
    assert await texts(logs) == []


async def test_a_flood_of_requests_is_dropped_and_counted_by_itself(
    logs: FunctionLogs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs_module, "SERIES_BUFFER_BYTES", 2000)
    for number in range(100):
        logs.invocation(ended(f"r{number}"))
    say(logs, "has room")
    found = await texts(logs)
    kept = sum(text.startswith("outcome=") for text in found)
    assert 0 < kept < 100
    assert f"{100 - kept} requests have no line here: too many at once" in found
    assert "has room" in found


@given(at=st.floats(min_value=0, max_value=4e9))
def test_a_clocks_text_is_the_time(at: float) -> None:
    clock = Clock()
    assert clock.text(at) == clock.text(at)
    assert abs(datetime.fromisoformat(clock.text(at)).timestamp() - at) <= 0.001001
