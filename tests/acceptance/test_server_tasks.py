"""Asynchronous tasks: the official SDK, unmodified, against a whole server with real rooms."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from alibabacloud_fc20230330 import models as fc

from tests.support.sdk import ONCE, Sdk, refused
from tests.support.server import Server

CODE = """
import json, os, time
def handler(event, context):
    verb, _, rest = event.decode().partition(" ")
    if verb == "sleep":
        time.sleep(float(rest))
    if verb == "raise":
        raise ValueError(rest)
    if verb == "exit":
        os._exit(3)
    if verb == "flaky":
        path = "/mnt/state/" + rest
        with open(path, "a") as f:
            f.write("x")
        if os.path.getsize(path) < 3:
            raise RuntimeError("not yet")
    if verb == "long":
        return "x" * int(rest)
    return "did " + event.decode()
"""
STATE = {"nas_config": fc.NASConfig(mount_points=[fc.NASMountConfig(server_addr="state:/", mount_dir="/mnt/state")])}
FINISHED = {"Succeeded", "Failed", "Stopped", "Expired"}


@pytest.fixture(scope="module")
def tasks(sdk: Sdk) -> Tasks:
    sdk.create("worker", {"index.py": CODE}, timeout=60, **STATE)
    return Tasks(sdk, "worker")


class Tasks:
    """The SDK's calls for tasks of one function."""

    def __init__(self, sdk: Sdk, function: str) -> None:
        self.sdk = sdk
        self.function = function

    def submit(self, event: str, id: str | None = None, qualifier: str | None = None, **headers: str) -> Any:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        fields = fc.InvokeFunctionHeaders(common_headers=sent, x_fc_invocation_type="Async", x_fc_async_task_id=id)
        request = fc.InvokeFunctionRequest(body=io.BytesIO(event.encode()), qualifier=qualifier)
        return self.sdk.client.invoke_function_with_options(self.function, request, fields, ONCE)

    def get(self, id: str, qualifier: str | None = None) -> Any:
        return self.sdk.client.get_async_task(self.function, id, fc.GetAsyncTaskRequest(qualifier=qualifier)).body

    def list(self, **wanted: Any) -> Any:
        return self.sdk.client.list_async_tasks(self.function, fc.ListAsyncTasksRequest(**wanted)).body

    def stop(self, id: str) -> Any:
        return self.sdk.client.stop_async_task(self.function, id, fc.StopAsyncTaskRequest())

    def until(self, id: str, *states: str) -> Any:
        deadline = time.monotonic() + 30
        while (found := self.get(id)).status not in (states or FINISHED):
            assert time.monotonic() < deadline, (found.status, found.events)
            time.sleep(0.03)
        return found

    def configure(self, **config: Any) -> None:
        body = fc.PutAsyncInvokeConfigInput(**config)
        self.sdk.client.put_async_invoke_config(self.function, fc.PutAsyncInvokeConfigRequest(body=body))


def test_a_task_from_acceptance_to_its_result(tasks: Tasks) -> None:
    before = int(time.time() * 1000)
    reply = tasks.submit("hello", "first")
    assert reply.status_code == 202
    assert reply.headers["x-fc-async-task-id"] == "first"
    done = tasks.until("first")
    assert (done.status, done.task_id, done.qualifier) == ("Succeeded", "first", "LATEST")
    assert done.request_id == reply.headers["x-fc-request-id"]
    assert (done.task_payload, done.return_payload) == ("hello", "did hello")
    assert (done.already_retried_times, done.task_error_message) == (0, "")
    assert before - 1000 <= done.started_time <= done.end_time <= int(time.time() * 1000) + 1000
    assert done.duration_ms == pytest.approx(done.end_time - done.started_time, abs=2)
    assert done.function_arn.endswith("functions/worker/LATEST")
    assert done.instance_id
    assert [(event.event_id, event.status) for event in done.events] == [
        (1, "Enqueued"), (2, "Running"), (3, "Succeeded"),
    ]  # fmt: skip


def test_without_an_id_the_request_s_is_the_task_s(tasks: Tasks) -> None:
    reply = tasks.submit("hello")
    id = reply.headers["x-fc-async-task-id"]
    assert id == reply.headers["x-fc-request-id"]
    assert tasks.until(id).status == "Succeeded"


def test_the_same_id_again_is_the_first_task_and_with_another_event_refused(tasks: Tasks) -> None:
    first = tasks.submit("sleep 0.2", "twice")
    again = tasks.submit("sleep 0.2", "twice")
    assert again.status_code == 202
    assert again.headers["x-fc-request-id"] == first.headers["x-fc-request-id"]
    other = refused(lambda: tasks.submit("something else", "twice"))
    assert (other.status_code, other.code) == (409, "AsyncTaskAlreadyExists")
    assert len(tasks.until("twice").events) == 3
    assert tasks.submit("sleep 0.2", "twice").headers["x-fc-request-id"] == first.headers["x-fc-request-id"]


@pytest.mark.parametrize("id", ["1st", "a/b", "a b", "x" * 129])
def test_an_id_that_is_none_is_refused(tasks: Tasks, id: str) -> None:
    found = refused(lambda: tasks.submit("hello", id))
    assert (found.status_code, found.code) == (400, "InvalidArgument")


def test_a_delay_is_kept(tasks: Tasks) -> None:
    tasks.submit("hello", "delayed", x_fc_async_delay="2")
    waits = tasks.get("delayed")
    assert (waits.status, waits.started_time) == ("Enqueued", 0)
    done = tasks.until("delayed")
    assert done.events[1].timestamp - done.events[0].timestamp >= 1990
    wrong = refused(lambda: tasks.submit("hello", "never", x_fc_async_delay="3601"))
    assert (wrong.status_code, "x-fc-async-delay" in wrong.message) == (400, True)


def test_a_fault_is_tried_again_and_the_record_shows_each_try(tasks: Tasks) -> None:
    tasks.submit("flaky one", "flaky")
    done = tasks.until("flaky")
    assert (done.status, done.already_retried_times, done.return_payload) == ("Succeeded", 2, "did flaky one")
    assert [event.status for event in done.events] == [
        "Enqueued", "Running", "Retrying", "Running", "Retrying", "Running", "Succeeded",
    ]  # fmt: skip
    assert "RuntimeError: not yet" in done.events[2].event_detail


def test_retries_are_as_the_settings_say(sdk: Sdk) -> None:
    sdk.create("failing", {"index.py": CODE}, timeout=2)
    tasks = Tasks(sdk, "failing")
    tasks.configure(max_async_retry_attempts=0)
    tasks.submit("raise why", "raises")
    tasks.submit("exit", "exits")
    tasks.submit("sleep 30", "hangs")
    raised, exited, hung = (tasks.until(id) for id in ("raises", "exits", "hangs"))
    assert (raised.status, raised.already_retried_times, raised.task_error_message) == ("Failed", 0, "why")
    assert (exited.status, "3" in exited.task_error_message) == ("Failed", True)
    assert (hung.status, hung.task_error_message) == ("Failed", "Function timed out after 2 seconds")
    tasks.configure(max_async_retry_attempts=1)
    tasks.submit("raise why", "again")
    assert tasks.until("again").already_retried_times == 1


def test_what_is_too_old_expires(sdk: Sdk) -> None:
    sdk.create("ageing", {"index.py": CODE}, timeout=10)
    tasks = Tasks(sdk, "ageing")
    tasks.configure(max_async_event_age_in_seconds=1, max_async_retry_attempts=8)
    tasks.submit("raise why", "old")
    old = tasks.until("old")
    assert (old.status, old.events[-1].status) == ("Expired", "Expired")
    assert "why" in old.task_error_message


def test_a_running_task_is_stopped_and_its_instance_goes_on(tasks: Tasks, sdk: Sdk) -> None:
    tasks.submit("sleep 50", "endless")
    running = tasks.until("endless", "Running")
    assert tasks.stop("endless").status_code == 200
    stopped = tasks.until("endless")
    assert stopped.status == "Stopped"
    assert [event.status for event in stopped.events] == ["Enqueued", "Running", "Stopping", "Stopped"]
    assert stopped.duration_ms < 20_000
    tasks.submit("hello", "after")
    assert tasks.until("after").status == "Succeeded"
    assert running.instance_id in {instance.instance_id for instance in sdk.instances("worker")}
    over = refused(lambda: tasks.stop("endless"))
    assert (over.status_code, over.code) == (409, "AsyncTaskStatusConflict")


def test_a_waiting_task_is_stopped_before_it_begins(tasks: Tasks) -> None:
    tasks.submit("hello", "waits", x_fc_async_delay="100")
    tasks.stop("waits")
    found = tasks.get("waits")
    assert (found.status, found.started_time, [e.status for e in found.events]) == (
        "Stopped",
        0,
        ["Enqueued", "Stopped"],
    )


def test_lists_have_filters_and_pages(sdk: Sdk) -> None:
    sdk.create("listed", {"index.py": CODE}, timeout=10)
    sdk.publish("listed")
    tasks = Tasks(sdk, "listed")
    tasks.configure(max_async_retry_attempts=0)
    for number in range(5):
        tasks.submit(f"event {number}", f"good-{number}")
    tasks.submit("raise x", "bad-0")
    tasks.submit("hello", "good-v1", "1")
    tasks.submit("hello", "good-later", x_fc_async_delay="100")
    for id in (*(f"good-{n}" for n in range(5)), "bad-0", "good-v1"):
        tasks.until(id)

    def ids(**wanted: Any) -> list[str]:
        return [task.task_id for task in tasks.list(**wanted).tasks]

    oldest = [*(f"good-{n}" for n in range(5)), "bad-0", "good-v1", "good-later"]
    assert ids(sort_order_by_time="asc") == oldest
    assert ids() == ids(sort_order_by_time="desc") == oldest[::-1]
    assert ids(prefix="bad") == ids(status="Failed") == ["bad-0"]
    assert ids(status="Enqueued") == ["good-later"]
    assert ids(status="Invalid") == []
    assert ids(qualifier="1") == ["good-v1"]
    pages, token = [], None
    while True:
        page = tasks.list(limit=3, sort_order_by_time="asc", next_token=token)
        pages.append([task.task_id for task in page.tasks])
        token = page.next_token
        if not token:
            break
    assert pages == [oldest[:3], oldest[3:6], oldest[6:]]
    starts = {task.task_id: task.started_time for task in tasks.list().tasks}
    last = max(starts.values())
    assert ids(started_time_begin=last) == [id for id in oldest[::-1] if starts[id] >= last]
    assert "good-later" not in ids(started_time_end=last + 1000)
    assert tasks.list(prefix="good-1").tasks[0].task_payload is None
    assert tasks.list(prefix="good-1", include_payload=True).tasks[0].task_payload == "event 1"
    assert tasks.get("good-v1", "1").status == "Succeeded"
    wrong = {"status": "Wrong", "limit": 101, "next_token": "x", "sort_order_by_time": "up"}
    for name, value in wrong.items():
        found = refused(lambda name=name, value=value: tasks.list(**{name: value}))
        assert (found.status_code, found.code) == (400, "InvalidArgument"), name


def test_what_is_not_there_is_said(tasks: Tasks, sdk: Sdk) -> None:
    for call in (lambda: tasks.get("nothing"), lambda: tasks.stop("nothing"), lambda: tasks.get("first", "other")):
        found = refused(call)
        assert (found.status_code, found.code) == (404, "AsyncTaskNotFound")
    nobody = Tasks(sdk, "nobody")
    for call in (nobody.list, lambda: nobody.get("x"), lambda: nobody.submit("x")):
        assert refused(call).code == "FunctionNotFound"


def test_destinations_get_what_came_of_a_task(sdk: Sdk) -> None:
    sdk.create("source", {"index.py": CODE}, timeout=10)
    sdk.create("sink", {"index.py": "def handler(event, context):\n    return event\n"}, timeout=10)
    source, sink = Tasks(sdk, "source"), Tasks(sdk, "sink")
    arn = sdk.client.get_function("sink", fc.GetFunctionRequest()).body.function_arn
    both = fc.DestinationConfig(
        on_success=fc.Destination(destination=arn), on_failure=fc.Destination(destination="sink:LATEST")
    )
    source.configure(destination_config=both, max_async_retry_attempts=0)
    source.submit("hello", "good")
    source.submit("raise why", "bad")
    assert (source.until("good").destination_status, source.until("bad").destination_status) == (
        "Succeeded",
        "Succeeded",
    )
    events = {}
    for listed in eventually(lambda: sink.list(limit=10).tasks, lambda found: len(found) == 2):
        done = sink.until(listed.task_id)
        assert done.status == "Succeeded"
        event = json.loads(done.return_payload)
        events[event["requestContext"]["taskId"]] = event
    good, bad = events["good"], events["bad"]
    assert (good["requestPayload"], good["responsePayload"]) == ("hello", "did hello")
    assert good["responseContext"] == {"statusCode": 200, "functionError": ""}
    assert good["requestContext"]["requestId"] == source.get("good").request_id
    assert (bad["responseContext"]["functionError"], bad["responsePayload"]) == ("ValueError", "why")


@pytest.mark.parametrize(
    ("destination", "why"),
    [
        ("acs:mns:cn:1:/queues/q/messages", "supported is another function"),
        ("worker", "its own destination"),
        ("nobody-there", "no function"),
    ],
)
def test_a_destination_that_can_not_be_is_refused(tasks: Tasks, destination: str, why: str) -> None:
    config = fc.DestinationConfig(on_failure=fc.Destination(destination=destination))
    found = refused(lambda: tasks.configure(destination_config=config))
    assert found.status_code in (400, 404)
    assert why in found.message


def test_a_task_of_a_session_runs_on_its_instance_and_in_its_turn(sdk: Sdk) -> None:
    code = (
        "import time\nseen = []\ndef handler(event, context):\n    time.sleep(0.1)\n    seen.append(event.decode())\n"
    )
    code += "    return f'{context.session_id} {\",\".join(seen)}'\n"
    sdk.create(
        "conversation", {"index.py": code}, timeout=10, session_affinity="HEADER_FIELD",
        instance_isolation_mode="SESSION_EXCLUSIVE",
        session_affinity_config=json.dumps({"affinityHeaderFieldName": "x-chat-id"}),
    )  # fmt: skip
    tasks = Tasks(sdk, "conversation")
    assert sdk.reply("conversation", b"sync", x_chat_id="one") == b"one sync"
    for number in range(4):
        tasks.submit(f"t{number}", f"t{number}", x_chat_id="one")
    done = [tasks.until(f"t{number}") for number in range(4)]
    assert [task.return_payload for task in done] == [
        "one sync," + ",".join(f"t{n}" for n in range(number + 1)) for number in range(4)
    ]
    assert len({task.instance_id for task in done}) == 1
    fresh = tasks.submit("alone", "alone")
    session = fresh.headers["x-chat-id"]
    assert tasks.until("alone").return_payload == f"{session} alone"
    wrong = refused(lambda: tasks.submit("x", "wrong", x_chat_id="-not an id-"))
    assert wrong.status_code == 400


def test_a_result_that_is_too_long_is_left_out(tasks: Tasks) -> None:
    tasks.submit(f"long {(1 << 20) + 1}", "too-long")
    tasks.submit(f"long {1 << 20}", "just-right")
    assert tasks.until("too-long").return_payload is None
    assert len(tasks.until("just-right").return_payload) == 1 << 20


def test_an_event_that_is_too_large_is_refused(tasks: Tasks) -> None:
    found = refused(lambda: tasks.submit("x" * (128 * 1024 + 1)))
    assert found.status_code == 413


def test_a_failed_task_is_retried_by_hand(tasks: Tasks, roost: Server) -> None:
    tasks.configure(max_async_retry_attempts=0)
    try:
        tasks.submit("flaky two", "by-hand")
        path = "/2023-03-30/functions/worker/async-tasks/by-hand/retry"
        with roost.client() as client:
            for _ in range(2):
                assert tasks.until("by-hand").status == "Failed"
                again = client.put(path)
                assert (again.status_code, again.json()["status"]) == (200, "Enqueued")
            assert tasks.until("by-hand").status == "Succeeded"
            refusal = client.put(path)
            assert (refusal.status_code, refusal.json()["Code"]) == (409, "AsyncTaskStatusConflict")
    finally:
        tasks.configure()


def test_delivery_is_set_beside_function_computes_own_settings(tasks: Tasks, roost: Server) -> None:
    path = "/2023-03-30/functions/worker/async-invoke-config?qualifier=LATEST"
    with roost.client() as client:
        both = client.put(path, json={"roost": {"delivery": "atMostOnce"}, "maxAsyncRetryAttempts": 1})
        assert (both.status_code, "atMostOnce" in both.json()["Message"]) == (400, True)
        assert client.put(path, json={"roost": {"delivery": "never"}}).status_code == 400
        assert client.put(path, json={"roost": {"delivery": "atMostOnce"}}).status_code == 200
        try:
            tasks.submit("raise x", "only-once")
            done = tasks.until("only-once")
            assert (done.status, done.already_retried_times) == ("Failed", 0)
        finally:
            client.delete(path)


def test_a_web_server_says_by_its_status_that_an_event_failed(sdk: Sdk) -> None:
    code = (
        "import http.server\n"
        "class H(http.server.BaseHTTPRequestHandler):\n"
        "    protocol_version = 'HTTP/1.1'\n"
        "    def do_POST(self):\n"
        "        body = self.rfile.read(int(self.headers['content-length']))\n"
        "        if body == b'mark':\n"
        "            self.send_response(200); self.send_header('x-fc-status', '404')\n"
        "        else:\n"
        "            self.send_response(int(body))\n"
        "        said = self.headers['x-fc-async-task-id'] + ' ' + self.headers['x-roost-task-attempt']\n"
        "        self.send_header('content-length', str(len(said))); self.end_headers()\n"
        "        self.wfile.write(said.encode())\n"
        "    def log_message(self, *args): pass\n"
        "http.server.ThreadingHTTPServer(('127.0.0.1', 9000), H).serve_forever()\n"
    )
    command = fc.CustomRuntimeConfig(command=["python3", "/code/app.py"], port=9000)
    sdk.create("web", {"app.py": code}, runtime="custom.debian12", custom_runtime_config=command, timeout=10)
    tasks = Tasks(sdk, "web")
    tasks.configure(max_async_retry_attempts=1)
    for id, event, state in (("fine", "200", "Succeeded"), ("five", "500", "Failed"), ("marked", "mark", "Failed")):
        tasks.submit(event, id)
        done = tasks.until(id)
        assert (done.status, done.return_payload) == (state, f"{id} {done.already_retried_times + 1}")


def test_a_deleted_function_takes_its_tasks_along(sdk: Sdk, roost: Server) -> None:
    sdk.create("gone", {"index.py": CODE}, timeout=60)
    tasks = Tasks(sdk, "gone")
    tasks.submit("sleep 50", "runs")
    tasks.submit("hello", "waits", x_fc_async_delay="50")
    tasks.until("runs", "Running")
    sdk.client.delete_function("gone")
    assert refused(lambda: tasks.get("runs")).code == "FunctionNotFound"
    sdk.create("gone", {"index.py": CODE}, timeout=60)
    assert tasks.list().tasks in (None, [])
    tasks.submit("hello", "runs")
    assert tasks.until("runs").status == "Succeeded"


def test_metrics_count_tasks(tasks: Tasks, roost: Server) -> None:
    tasks.submit("hello", "counted", x_fc_async_delay="300")

    def page() -> str:
        return httpx.get(f"{roost.url}/metrics", trust_env=False).text

    found = eventually(
        page, lambda text: 'roost_tasks{account="default",function="worker",state="Enqueued"} 1.0' in text
    )
    assert 'roost_tasks_oldest_seconds{account="default",function="worker"}' in found
    tasks.stop("counted")


def eventually(read: Callable[[], Any], good: Callable[[Any], bool]) -> Any:
    deadline = time.monotonic() + 30
    while not good(found := read()):
        assert time.monotonic() < deadline, found
        time.sleep(0.05)
    return found
