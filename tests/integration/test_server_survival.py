"""A server that is killed, and what the next one finds."""

from __future__ import annotations

import json
import random
import threading
from pathlib import Path

import httpx

from tests.integration.test_server_sessions import EXCLUSIVE, NOTES
from tests.support.server import NOTHING, Remains, Server


def test_a_killed_server_comes_back_with_everything(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    server = Server(data_dir).start()
    server.deploy("notes", {"index.py": NOTES}, **EXCLUSIVE)
    with server.client() as client:
        client.post("/2023-03-30/functions/notes/versions", json={"description": "one"})
        client.post("/2023-03-30/functions/notes/aliases", json={"aliasName": "live", "versionId": "1"})
    assert server.invoke("notes", "add 1", x_chat_id="s").text == "1|1;|1;"
    server.kill()
    again = Server(data_dir).start()
    with again.client() as client:
        assert client.get("/2023-03-30/functions/notes/aliases/live").json()["versionId"] == "1"
        assert client.get("/2023-03-30/functions/notes/sessions/s").json()["sessionStatus"] == "Active"
    # The instance lived on, and so did its memory.
    assert again.invoke("notes", "read", x_chat_id="s").text == "1|1;|1;"
    assert again.stop() == 0
    assert Remains.of(data_dir) == NOTHING


def test_killed_again_and_again_under_load_nothing_leaks(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    dice = random.Random(7)
    server = Server(data_dir).start()
    server.deploy("notes", {"index.py": NOTES}, **EXCLUSIVE)
    for round in range(4):
        stop = threading.Event()

        def load(server: Server = server, stop: threading.Event = stop, round: int = round) -> None:
            n = 0
            while not stop.is_set():
                try:
                    server.invoke("notes", f"add {n}", x_chat_id=f"r{round}-{n % 5}")
                except httpx.HTTPError:
                    return
                n += 1

        threads = [threading.Thread(target=load) for _ in range(3)]
        for thread in threads:
            thread.start()
        stop.wait(dice.uniform(0.05, 1.0))
        server.kill()
        stop.set()
        for thread in threads:
            thread.join()
        server = Server(data_dir).start()
        assert server.invoke("notes", "read", x_chat_id="fresh").status_code == 200
    with server.client() as client:
        sessions = client.get("/2023-03-30/functions/notes/sessions?limit=100").json()["sessions"]
    for session in sessions:
        reply = server.invoke("notes", "read", x_chat_id=session["sessionId"])
        assert reply.status_code == 200, json.dumps(session)
    assert server.stop() == 0
    assert Remains.of(data_dir) == NOTHING


def test_a_second_server_on_the_same_data_is_refused(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    server = Server(data_dir).start()
    second = Server(data_dir)
    try:
        second.start()
        raise AssertionError("two servers on one data directory")
    except AssertionError as error:
        assert "did not start" in str(error)
        assert "uses" in second.log()
    assert server.stop() == 0
