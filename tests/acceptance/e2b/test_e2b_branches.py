"""Forks of sandboxes with what their code contexts have in memory, as the official SDK asks for them."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import httpx
import pytest
from e2b_code_interpreter import Sandbox

from roost.isolation.namespaces.room import NO_SHADOWS
from tests.support.forks import forks_of, value
from tests.support.interpreter import data_packages
from tests.support.server import NOTHING, Remains, Server, share_packages

LIMITS = "sandbox_memory_mb = 768\nsandbox_disk_mb = 256\n"
STATE = """
import random, tempfile, uuid
import numpy as np
x = {"answer": 41}
big = np.arange(1_000_000)
random.random(), np.random.random()
kept = open("kept.txt", "w+")
kept.write("line\\n"); kept.flush()
def bump(by):
    x["answer"] += by
    return x["answer"]
"""
DICE = "(random.random(), np.random.random(), next(tempfile._get_candidate_names()), str(uuid.uuid4()))"


def test_forks_have_variables_and_files_and_go_their_own_ways(box: Sandbox) -> None:
    forks = forks_of(box, 3)
    try:
        for number, fork in enumerate(forks):
            assert value(fork, f"bump({number + 1})") == str(42 + number)
            assert value(fork, "int(big.sum())") == "499999500000"
            assert value(fork, "kept.seek(0), kept.read()") == "(0, 'line\\n')"
            assert value(fork, "import os; os.environ['E2B_SANDBOX_ID']") == fork.sandbox_id
            assert value(fork, f"kept.write('fork {number}'); kept.flush(); os.getuid(), os.getcwd()")
        assert value(box, "x['answer']") == "41"
        assert box.files.read("kept.txt") == "line\n"
        assert [fork.files.read("kept.txt") for fork in forks] == [f"line\nfork {number}" for number in range(3)]
        # Positive control of the next: what is not made anew is the same in all of them.
        assert len({value(fork, "hash('seed')") for fork in forks}) == 1
        dice = [eval(value(fork, DICE)) for fork in (box, *forks)]
        assert all(len({str(throw[index]) for throw in dice}) == 4 for index in range(4))
    finally:
        for fork in forks:
            fork.kill()


def test_a_fork_of_a_fork_when_the_first_is_gone(box: Sandbox) -> None:
    current, sums = box, []
    for generation in range(4):
        (fork,) = forks_of(current)
        sums.append(value(fork, f"bump({generation})"))
        if current is not box:
            current.kill()
        current = fork
    current.kill()
    assert sums == ["41", "42", "44", "47"]


def test_a_context_that_was_copied_is_interrupted_restarted_and_imports(box: Sandbox) -> None:
    (fork,) = forks_of(box)
    try:
        code = "import signal; signal.getsignal(signal.SIGINT).__name__, __import__('decimal').Decimal('1') + 1"
        assert value(fork, code) == "('_on_interrupt', Decimal('2'))"
        assert value(fork, "import subprocess; subprocess.check_output(['echo', 'hi'])") == "b'hi\\n'"
        assert value(
            fork, "import threading; t = threading.Thread(target=bump, args=(1,)); t.start(); t.join(); x"
        ) == ("{'answer': 42}")
        assert value(fork, "import asyncio\nawait asyncio.sleep(0, 'slept')") == "slept"
        error = fork.run_code("1 / 0").error
        assert error is not None and error.name == "ZeroDivisionError"
        (context,) = [one for one in fork.list_code_contexts() if one.language == "python"]
        fork.restart_code_context(context)
        error = fork.run_code("x").error
        assert error is not None and error.name == "NameError"
    finally:
        fork.kill()


def test_all_python_contexts_come_along(box: Sandbox) -> None:
    second = box.create_code_context(cwd="/tmp")
    assert box.run_code("y = 1", context=second).error is None
    (fork,) = forks_of(box)
    try:
        assert value(fork, "x['answer']") == "41"
        copied = fork.run_code("y += 1; import os; y, os.getcwd(), 'x' in globals()", context=second)
        assert copied.text == "(2, '/tmp', False)"
    finally:
        fork.kill()


def test_a_context_is_forked_kept_and_rolled_back_in_its_sandbox(box: Sandbox) -> None:
    (context,) = [one for one in box.list_code_contexts() if one.language == "python"]
    with interpreter(box, context.id) as client:
        first = client.post("checkpoints", json={"label": "before"}).json()
        assert (first["label"], first["context_id"], first["parent"]) == ("before", context.id, None)
        assert value(box, "bump(1)") == "42"
        second = client.post("checkpoints", json={}).json()
        assert second["parent"] == first["id"]
        assert value(box, "bump(100); del big") == ""
        # Another context with the same variables.
        twin = client.post("fork").json()
        (listed,) = [one for one in box.list_code_contexts() if one.id == twin["id"]]
        assert box.run_code("bump(1)", context=listed).text == "143"
        assert value(box, "x['answer']") == "142"
        for wanted, answer in ((second, "42"), (first, "41"), (second, "42")):
            assert client.post("rollback", json={"checkpoint": wanted["id"]}).json()["id"] == wanted["id"]
            assert value(box, "x['answer'], int(big.sum())") == f"({answer}, 499999500000)"
            bumped = value(box, "bump(7), random.random()")
            assert bumped.startswith(f"({int(answer) + 7}, ")
        third = client.post("checkpoints").json()
        assert third["parent"] == second["id"]  # a tree: where it came from, not what was made last
        assert [one["id"] for one in client.get("checkpoints").json()] == [first["id"], second["id"], third["id"]]
        assert client.delete(f"checkpoints/{first['id']}").status_code == 200
        gone = client.post("rollback", json={"checkpoint": first["id"]})
        assert (gone.status_code, gone.text) == (404, f"Checkpoint {first['id']} not found")
        assert client.post("rollback", json={}).status_code == 422
        assert client.get("fork").status_code == client.get("rollback").status_code == 405
        (bash,) = [one.id for one in [box.create_code_context(language="bash")]]
    with interpreter(box, bash) as client:
        refused = client.post("fork")
    assert (refused.status_code, refused.text) == (
        409,
        "The context was not copied: its process was made by a fork of the daemon's",
    )


def interpreter(box: Sandbox, context: str) -> httpx.Client:
    """The code interpreter's address for one context."""
    headers = {
        "e2b-sandbox-id": box.sandbox_id,
        "e2b-sandbox-port": "49999",
        "x-access-token": box._envd_access_token or "",
    }
    return httpx.Client(
        base_url=f"{os.environ['E2B_SANDBOX_URL']}/contexts/{context}/", headers=headers, trust_env=False, timeout=60
    )


def test_what_did_not_come_along_is_told(box: Sandbox, roost: Server) -> None:
    second = box.create_code_context(language="bash")
    assert box.run_code("y=1", context=second).error is None
    with httpx.Client(base_url=roost.url, headers={"x-api-key": "any"}, trust_env=False, timeout=60) as client:
        (made,) = client.post(f"/sandboxes/{box.sandbox_id}/fork", json={"timeout": 60}).json()
        client.delete(f"/sandboxes/{made['sandbox']['sandboxID']}")
    assert made["sandbox"]["leftBehind"] == ["memory", "processes"]
    assert made["sandbox"]["notCopied"] == [f"context {second.id}: bash can't be copied"]
    box.remove_code_context(second)
    with httpx.Client(base_url=roost.url, headers={"x-api-key": "any"}, trust_env=False, timeout=60) as client:
        (made,) = client.post(f"/sandboxes/{box.sandbox_id}/fork", json={"timeout": 60}).json()
        client.delete(f"/sandboxes/{made['sandbox']['sandboxID']}")
    assert (made["sandbox"]["leftBehind"], made["sandbox"]["notCopied"]) == (["processes"], [])


@pytest.mark.parametrize(
    "code",
    [
        "import os\nfor fd in (1, 2): os.close(fd)",
        "import sys, types\nfor name in ('numpy', 'ssl', 'tempfile'): sys.modules[name] = types.MappingProxyType({})",
        "import os, shutil; os.makedirs('gone'); os.chdir('gone'); os.rmdir(os.getcwd())",
        "import random\ndef seed(*_): raise ValueError\nrandom.seed = random.getrandbits = seed",
    ],
    ids=["closed its outputs", "has other libraries", "is nowhere", "has other random numbers"],
)
def test_a_context_is_copied_that(code: str, box: Sandbox) -> None:
    assert value(box, f"y = 41\n{code}\ny") == "41"
    (fork,) = forks_of(box)
    try:
        assert (value(fork, "y + 1"), value(box, "y")) == ("42", "41")
    finally:
        fork.kill()


OPENS_ALL = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
kept = []
try:
    while True:
        kept.append(open("/dev/null"))
except OSError:
    pass
"""


def test_a_context_whose_files_a_copy_can_t_have_lives_on(box: Sandbox, roost: Server) -> None:
    assert box.run_code(OPENS_ALL).error is None
    with httpx.Client(base_url=roost.url, headers={"x-api-key": "any"}, trust_env=False) as client:
        (made,) = client.post(f"/sandboxes/{box.sandbox_id}/fork", json={"timeout": 60}).json()
        Sandbox.kill(made["sandbox"]["sandboxID"])
        (why,) = made["sandbox"]["notCopied"]
        assert ": what it has open can't be made anew: [Errno 24] Too many open files" in why
        assert value(box, "len(kept) > 100; kept.clear()") == ""
        (made,) = client.post(f"/sandboxes/{box.sandbox_id}/fork", json={"timeout": 60}).json()
        Sandbox.kill(made["sandbox"]["sandboxID"])
        assert made["sandbox"]["notCopied"] == []


def test_a_context_that_is_stopped_lives_on(box: Sandbox, roost: Server) -> None:
    pid = value(box, "y = 41; import os; os.getpid()")
    box.commands.run(f"sudo kill -STOP {pid}")
    with httpx.Client(base_url=roost.url, headers={"x-api-key": "any"}, trust_env=False, timeout=60) as client:
        (made,) = client.post(f"/sandboxes/{box.sandbox_id}/fork", json={"timeout": 60}).json()
    Sandbox.kill(made["sandbox"]["sandboxID"])
    (why,) = made["sandbox"]["notCopied"]
    assert why.endswith(": it did not stand still"), why
    box.commands.run(f"sudo kill -CONT {pid}")
    assert value(box, "y") == "41"
    (fork,) = forks_of(box)
    assert value(fork, "y + 1") == "42"
    fork.kill()


LATE = """
import signal
ticks = 0
def late(*_):
    global ticks
    ticks += 1
    signal.setitimer(signal.ITIMER_REAL, 0.05 if ticks < 5 else 0)
    raise TimeoutError
signal.signal(signal.SIGALRM, late)
signal.setitimer(signal.ITIMER_REAL, 1)
y = 41
y
"""


def test_what_a_handler_of_signals_raises_between_cells_is_nobody_s(box: Sandbox) -> None:
    assert value(box, LATE) == "41"
    time.sleep(2)
    assert value(box, "ticks") == "5"
    (fork,) = forks_of(box)
    assert (value(fork, "y + 1"), value(box, "y")) == ("42", "41")
    fork.kill()


def test_a_server_that_is_killed_meanwhile_leaves_no_shadow_and_sandboxes_live_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data_dir = tmp_path / "data"
    server = Server(data_dir, config=LIMITS).start()
    share_packages(data_dir, data_packages())
    for name in ("E2B_API_URL", "E2B_SANDBOX_URL"):
        monkeypatch.setenv(name, server.url)
    box = Sandbox.create(timeout=300)
    assert value(box, "x = 41; x") == "41"
    stop = threading.Event()

    def fork() -> None:
        with httpx.Client(base_url=server.url, headers={"x-api-key": "any"}, trust_env=False, timeout=60) as client:
            while not stop.is_set():
                try:
                    client.post(f"/sandboxes/{box.sandbox_id}/fork", json={"count": 2, "timeout": 60})
                except httpx.HTTPError:
                    return

    threads = [threading.Thread(target=fork) for _ in range(3)]
    for thread in threads:
        thread.start()
    (tracer,) = [pid for pid in _processes() if _field(pid, "PPid") == str(server.pid) and _name(pid) == "roost-tracer"]
    held: set[int] = set()
    server.until(lambda: held.update(set(_held_by(tracer)) & set(_shadows())) or len(held) > 4)
    server.kill()
    stop.set()
    for thread in threads:
        thread.join()
    server.until(lambda: not held & set(_shadows()))
    server = Server(data_dir, config=f"{LIMITS}sandbox_live = false\n").start()
    for name in ("E2B_API_URL", "E2B_SANDBOX_URL"):
        monkeypatch.setenv(name, server.url)
    again = Sandbox.connect(box.sandbox_id)
    assert value(again, "x + 1") == "42"
    with httpx.Client(base_url=server.url, headers={"x-api-key": "any"}, trust_env=False, timeout=60) as client:
        (made,) = client.post(f"/sandboxes/{box.sandbox_id}/fork", json={"timeout": 60}).json()
        assert made["sandbox"]["leftBehind"] == ["memory", "processes"]
        assert made["sandbox"]["notCopied"] == [NO_SHADOWS]
        plain = Sandbox.create(timeout=60)
        assert value(plain, "x = 1; x") == "1"
        (made,) = client.post(f"/sandboxes/{plain.sandbox_id}/fork", json={"timeout": 60}).json()
        assert made["sandbox"]["notCopied"] == [NO_SHADOWS]
        for listed in client.get("/v2/sandboxes").json():
            client.delete(f"/sandboxes/{listed['sandboxID']}")
    assert server.stop() == 0
    assert Remains.of(data_dir) == NOTHING


def _processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _held_by(tracer: int) -> list[int]:
    return [pid for pid in _processes() if _field(pid, "TracerPid") == str(tracer)]


def _shadows() -> list[int]:
    return [pid for pid in _processes() if _name(pid) == "roost-shadow"]


def _name(pid: int) -> str:
    return _field(pid, "Name")


def _field(pid: int, name: str) -> str:
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return ""
    return text.partition(f"{name}:")[2].partition("\n")[0].strip()
