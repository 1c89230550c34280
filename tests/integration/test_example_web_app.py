"""The web application: streamed both ways, WebSocket, and bad input, on its own server."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator

import httpx
import pytest
from websockets.sync.client import connect

from tests.support.example_app import example_server, free_port


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    port = free_port()
    with example_server("web-app", [sys.executable, "main.py"], port) as base:
        yield base


def test_events_come_one_by_one(url: str) -> None:
    with httpx.stream("GET", f"{url}/events?count=3&interval=0.01") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        ids = [line for line in response.iter_lines() if line.startswith("id: ")]
    assert ids == ["id: 1", "id: 2", "id: 3"]


def test_bad_numbers_are_refused(url: str) -> None:
    response = httpx.get(f"{url}/events?count=many")
    assert response.status_code == 400
    assert response.json() == {"error": "count and interval have to be numbers."}


def test_websocket_echo(url: str) -> None:
    with connect(url.replace("http", "ws") + "/ws") as socket:
        for text in ("one", "zwölf"):
            socket.send(text)
            assert socket.recv(timeout=10) == text


def test_an_upload_is_hashed_as_it_comes(url: str) -> None:
    blocks = [bytes([number]) * 65536 for number in range(64)]
    answer = httpx.post(f"{url}/upload", content=iter(blocks)).json()
    assert answer == {"bytes": 4 << 20, "sha256": hashlib.sha256(b"".join(blocks)).hexdigest()}


def test_the_page_and_an_event(url: str) -> None:
    assert "<!doctype html>" in httpx.get(f"{url}/").text
    assert httpx.post(f"{url}/invoke", content=b"event").content == b"event"
