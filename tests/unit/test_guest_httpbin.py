"""The built-in httpbin, served here instead of in a room."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator

import httpx
import pytest

from roost.guest.httpbin import MOST_BODY, Handler, main


@pytest.fixture(scope="module")
def bin() -> Iterator[httpx.Client]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    with httpx.Client(base_url=f"http://127.0.0.1:{server.server_port}", trust_env=False) as client:
        yield client
    server.shutdown()
    server.server_close()
    thread.join()


def test_what_was_sent_is_told(bin: httpx.Client) -> None:
    told = bin.get("/get?a=1&a=2", headers=[("x-mine", "1"), ("x-mine", "2")]).json()
    assert told["args"] == {"a": ["1", "2"]}
    assert told["headers"]["X-Mine"] == ["1", "2"]
    assert (told["method"], told["url"]) == ("GET", str(bin.base_url.join("/get?a=1&a=2")))
    assert bin.post("/post", data={"b": "3"}).json()["form"] == {"b": ["3"]}
    assert bin.put("/anything/deep", json={"c": 4}).json()["json"] == {"c": 4}
    assert bin.post("/anything", content=iter([b"a", b"b"])).json()["data"] == "ab"
    assert bin.post("/anything", content=b"\xff").json()["data"].startswith("data:application/octet-stream;base64,")


@pytest.mark.parametrize(
    ("path", "status"),
    [
        *(("/status/204", 204), ("/status/503", 503), ("/status/1", 400), ("/status/x", 400)),
        *(("/nothing", 404), ("/post", 405), ("/bytes/-1", 200), ("/bytes/x", 400), ("/delay/99", 400)),
        *(("/redirect/3", 302), ("/redirect/0", 400), ("/redirect-to?url=/get&status_code=307", 307)),
        *(("/basic-auth/u/p", 401), ("/basic-auth/u", 400), ("/bearer", 401), ("/base64/decode/!", 400), ("/", 200)),
        *(("/uuid", 200), ("/ip", 200), ("/headers", 200), ("/stream/3", 200), ("/encoding", 200), ("/cookies", 200)),
    ],
)
def test_statuses(bin: httpx.Client, path: str, status: int) -> None:
    assert bin.get(path).status_code == status


def test_bytes_compression_and_heads(bin: httpx.Client) -> None:
    assert bin.get("/bytes/100?seed=1").content == bin.get("/bytes/100?seed=1").content
    assert len(bin.get("/bytes/9999999").content) == 100 << 10
    assert bin.get("/gzip").json()["gzipped"] is True
    assert bin.get("/deflate").json()["deflated"] is True
    assert bin.head("/get").content == b""
    assert bin.options("/get").headers["allow"].startswith("GET")
    assert bin.get("/redirect/3", follow_redirects=True).json()["url"].endswith("/get")
    assert bin.get("/basic-auth/u/p", auth=("u", "p")).json()["authorized"] is True
    assert bin.get("/response-headers?X-A=1&Content-Length=9&X-B=%0d%0aX-Evil: 1").headers.get("x-a") == "1"
    assert "x-evil" not in bin.get("/response-headers?X-B=%0d%0aX-Evil: 1").headers


def test_bodies_are_bounded(bin: httpx.Client) -> None:
    assert bin.post("/post", content=b"x" * (MOST_BODY + 1)).status_code == 413
    assert bin.get("/get").status_code == 200


def test_ready_says_whether_it_serves(bin: httpx.Client) -> None:
    assert main(["--ready", "--port", str(bin.base_url.port)]) == 0
    assert main(["--ready", "--port", "1"]) == 1
