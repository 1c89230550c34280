"""A server that can't start says why in one sentence, and one that is interrupted ends without a traceback."""

from __future__ import annotations

import fcntl
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.server import NOTHING, Remains, share_bundle


def serve(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "roost.server", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def refused(*arguments: str) -> tuple[int, str]:
    """Exit code and last line of a server that must not start."""
    process = serve(*arguments)
    try:
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert "Traceback" not in err
    assert "Errno" not in err
    assert out == ""
    return process.returncode, err.splitlines()[-1]


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    path = tmp_path / "data"
    path.mkdir()
    share_bundle(path)
    return path


def test_a_port_in_use_is_named(data_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        code, said = refused("--data-dir", str(data_dir), "--port", str(port))
    assert (code, said.partition(";")[0]) == (1, f"roost: Port {port} on 127.0.0.1 is in use")
    assert Remains.of(data_dir) == NOTHING


@pytest.mark.parametrize("host", ["192.0.2.1", "nowhere.invalid"])
def test_an_address_of_another_machine_is_named(tmp_path: Path, data_dir: Path, host: str) -> None:
    config = tmp_path / "roost.toml"
    config.write_text('[keys]\nid = "secret"\n')
    code, said = refused("--data-dir", str(data_dir), "--port", "0", "--host", host, "--config", str(config))
    assert (code, said) == (1, f"roost: This machine has no address {host}; take one of its own with --host.")
    assert Remains.of(data_dir) == NOTHING


@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("file", "it is not a directory"),
        ("file/data", "Not a directory"),
        ("d" * 300, "File name too long"),
    ],
)
def test_a_data_directory_that_cannot_be_made_is_named(tmp_path: Path, place: str, why: str) -> None:
    (tmp_path / "file").write_text("")
    code, said = refused("--data-dir", str(tmp_path / place), "--port", "0")
    assert (code, said) == (1, f"roost: The data directory {tmp_path / place} can't be used: {why}.")


def test_a_file_in_the_place_of_a_directory_of_ours_is_named(data_dir: Path) -> None:
    (data_dir / "code").write_text("")
    code, said = refused("--data-dir", str(data_dir), "--port", "0")
    assert (code, said) == (1, f"roost: {data_dir / 'code'} can't be used: File exists.")


def test_a_port_that_is_no_number_is_named() -> None:
    code, said = refused("--port", "http")
    assert (code, said) == (2, "roost serve: error: argument --port: 'http' is not a whole number")


def test_ctrl_c_while_the_server_is_made_ends_it_without_a_traceback(tmp_path: Path) -> None:
    """The lock of the guest bundle holds the server at a known place of its start."""
    (tmp_path / "guest").mkdir()
    with (tmp_path / "guest" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = serve("--data-dir", str(tmp_path), "--port", "0")
        try:
            _until_open(process, Path(lock.name))
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=30)
        finally:
            process.kill()
    assert (process.returncode, out, err) == (130, "", "roost: interrupted\n")


def test_ctrl_c_during_the_imports_of_roost_serve_is_heard_after_them(tmp_path: Path) -> None:
    """`roost serve` blocks the signal and becomes the server, which is interrupted here before its first line."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process = serve("--data-dir", str(tmp_path), "--port", "0")
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    try:
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert (process.returncode, out, err) == (130, "", "roost: interrupted\n")


def _until_open(process: subprocess.Popen[str], file: Path) -> None:
    deadline = time.monotonic() + 30
    while not any(_is(entry, file) for entry in Path(f"/proc/{process.pid}/fd").iterdir()):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _is(entry: Path, file: Path) -> bool:
    try:
        return entry.readlink() == file
    except FileNotFoundError:
        return False
