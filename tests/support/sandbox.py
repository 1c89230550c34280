"""A sandbox's guest without a room, and E2B's official SDK that speaks to it.

The guest is PID 1 of a process namespace of its own, and sees a user database and a home directory of its own.
"""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from e2b import AsyncSandbox, Sandbox
from e2b.connection_config import ConnectionConfig
from packaging.version import Version

from tests.support.guest import Guest, dial

PASSWD = """\
root:x:0:0:root:/root:/bin/bash
daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin
user:x:1000:1000:,,,:/home/user:/bin/bash
other:x:1001:1001:,,,:/home/other:/bin/bash
"""
GROUP = "root:x:0:\ndaemon:x:1:\nuser:x:1000:\nother:x:1001:\nhelpers:x:2000:user\n"
_ENTER = """
root=$1; shift
mount --bind "$root/passwd" /etc/passwd
mount --bind "$root/group" /etc/group
mount --bind "$root/home" /home
mount --bind "$root/run" /run
exec "$@"
"""


class SandboxGuest(Guest):
    """A guest that serves a sandbox, to be entered with `ready_sandbox`."""

    def __init__(self, directory: Path) -> None:
        self.root = directory / "root"
        for name, text in (("passwd", PASSWD), ("group", GROUP)):
            self.root.mkdir(exist_ok=True)
            (self.root / name).write_text(text)
        for name, uid in (("user", 1000), ("other", 1001)):
            home = self.root / "home" / name
            home.mkdir(parents=True)
            shutil.chown(home, uid, uid)
        (self.root / "run").mkdir()
        namespaces = ("--mount", "--propagation=private", "--pid", "--fork", "--kill-child", "--mount-proc")
        super().__init__(directory, wrapper=("unshare", *namespaces, "sh", "-ec", _ENTER, "sh", str(self.root)))

    @property
    def home(self) -> Path:
        """Of `user`, as the test sees it."""
        return self.root / "home" / "user"

    def ready_sandbox(self, env: dict[str, str] | None = None, **sandbox: Any) -> SandboxGuest:
        event = self.start(runtime="sandbox", env=env or {}, sandbox={"version": "0.6.13", **sandbox})
        assert event["event"] == "ready", event
        return self

    def unary(self, method: str, message: object = None, user: str = "") -> tuple[int, Any]:
        """A call of `package.Service/Method`: status and JSON reply. `message` may be raw bytes."""
        body = message if isinstance(message, bytes) else json.dumps(message or {}).encode()
        headers = {"content-type": "application/json"} | ({"authorization": basic(user)} if user else {})
        status, _, data = self.request("POST", f"/{method}", body, headers)
        return status, json.loads(data)

    def stream(self, method: str, *messages: object, headers: dict[str, str] | None = None) -> list[Any]:
        """All messages of a streaming call; the last one is the end of the stream."""
        body = b"".join(envelope(json.dumps(message).encode()) for message in messages)
        fields = {"content-type": "application/connect+json"} | (headers or {})
        status, _, data = self.request("POST", f"/{method}", body, fields)
        assert status == 200, (status, data)
        return [json.loads(message) for _, message in envelopes(data)]

    @contextlib.contextmanager
    def tcp(self) -> Iterator[int]:
        """A TCP port whose connections go to app.sock as they are."""
        with socket.create_server(("127.0.0.1", 0), backlog=128) as server:
            threading.Thread(target=_accept, args=(server, self.app_path), daemon=True).start()
            try:
                yield server.getsockname()[1]
            finally:
                server.shutdown(socket.SHUT_RDWR)


def sdk(port: int) -> Sandbox:
    """The official SDK's sandbox, whose envd is at the port."""
    return Sandbox(**_options(port))


def async_sdk(port: int) -> AsyncSandbox:
    return AsyncSandbox(**_options(port))


def _options(port: int) -> Any:
    return {
        "sandbox_id": "i0123456789abcdefghi",
        "sandbox_domain": None,
        "envd_version": Version("0.6.13"),
        "envd_access_token": None,
        "traffic_access_token": None,
        "connection_config": ConnectionConfig(
            api_key="any", api_url="http://127.0.0.1:9", sandbox_url=f"http://127.0.0.1:{port}"
        ),
    }


def basic(user: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:".encode()).decode()


def envelope(message: bytes, flags: int = 0) -> bytes:
    return bytes([flags]) + len(message).to_bytes(4, "big") + message


def envelopes(data: bytes) -> list[tuple[int, bytes]]:
    """(flags, message) of each; nothing may be left over."""
    found = []
    while data:
        length = int.from_bytes(data[1:5], "big")
        assert len(data) >= 5 + length
        found.append((data[0], data[5 : 5 + length]))
        data = data[5 + length :]
    return found


def _accept(server: socket.socket, path: Path) -> None:
    while True:
        try:
            near, _ = server.accept()
        except OSError:
            return
        near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        far = dial(path)
        far.settimeout(None)
        for source, sink in ((near, far), (far, near)):
            threading.Thread(target=_relay, args=(source, sink), daemon=True).start()


def _relay(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    for sock in (source, sink):
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
