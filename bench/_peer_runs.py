"""Runs `1+1` on what sandboxes are measured beside, with the peers' own libraries, in their own environment.

    python bench/_peer_runs.py jupyter PORT
    python bench/_peer_runs.py swerex

For each line of its input, `pair` or `warm`, it prints the milliseconds that took: from nothing to the first result,
or one more in what the last `pair` made.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
import urllib.request
import uuid
from typing import Any, Protocol


class Peer(Protocol):
    def begin(self) -> None: ...
    def run(self) -> None: ...
    def end(self) -> None: ...


class Jupyter:
    """A kernel of the Jupyter Kernel Gateway."""

    def __init__(self, port: str) -> None:
        self._place = f"127.0.0.1:{port}/api/kernels"
        self._kernel = ""
        self._socket: Any = None

    def begin(self) -> None:
        import websocket

        self._kernel = json.loads(self._call("POST", ""))["id"]
        self._socket = websocket.create_connection(f"ws://{self._place}/{self._kernel}/channels", timeout=60)

    def run(self) -> None:
        ours = uuid.uuid4().hex
        header = {"msg_id": ours, "msg_type": "execute_request", "session": ours, "username": "", "version": "5.3"}
        content = {"code": "1+1", "silent": False, "store_history": True, "allow_stdin": False}
        message = {"header": header, "parent_header": {}, "metadata": {}, "content": content, "channel": "shell"}
        self._socket.send(json.dumps(message))
        while True:
            said = json.loads(self._socket.recv())
            if said["parent_header"].get("msg_id") == ours and said["msg_type"] == "execute_result":
                assert said["content"]["data"]["text/plain"] == "2"
                return

    def end(self) -> None:
        self._socket.close()
        self._call("DELETE", f"/{self._kernel}")

    def _call(self, method: str, path: str) -> bytes:
        data = b"{}" if method == "POST" else None
        request = urllib.request.Request(f"http://{self._place}{path}", data, method=method)
        with urllib.request.urlopen(request, timeout=60) as reply:
            body: bytes = reply.read()
            return body


class SweRex:
    """A local deployment of SWE-ReX, whose bash starts Python: it has no contexts of its own."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        self._deployment: Any = None

    def begin(self) -> None:
        self._runner.run(self._begin())

    async def _begin(self) -> None:
        from swerex.deployment.local import LocalDeployment
        from swerex.runtime.abstract import CreateBashSessionRequest

        self._deployment = LocalDeployment()
        await self._deployment.start()
        await self._deployment.runtime.create_session(CreateBashSessionRequest())

    def run(self) -> None:
        self._runner.run(self._run())

    async def _run(self) -> None:
        from swerex.runtime.abstract import BashAction

        said = await self._deployment.runtime.run_in_session(BashAction(command="python3 -c 'print(1+1)'"))
        assert said.output.strip() == "2"

    def end(self) -> None:
        self._runner.run(self._deployment.stop())


def serve(peer: Peer) -> None:
    running = False
    for line in sys.stdin:
        pair = line.strip() == "pair"
        if pair and running:
            peer.end()
        started = time.perf_counter()
        if pair:
            peer.begin()
        peer.run()
        running = True
        print((time.perf_counter() - started) * 1000, flush=True)
    if running:
        peer.end()


if __name__ == "__main__":
    serve(Jupyter(sys.argv[2]) if sys.argv[1] == "jupyter" else SweRex())
