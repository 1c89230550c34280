"""`roost sandbox snapshot`, `snapshots` and `fork`: what is sent, and what is made of the replies."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from roost.sdk import cli
from tests.support.fake_roost import FakeRoost

BOX = "i0123456789abcdefghi"
OTHER = "i0123456789zzzzzzzzz"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeRoost]:
    for name in ("ROOST_ACCESS_KEY_ID", "ROOST_ACCESS_KEY_SECRET"):
        monkeypatch.delenv(name, raising=False)
    with FakeRoost() as fake:
        fake.replies["GET /v2/sandboxes"] = (200, [{"sandboxID": BOX}, {"sandboxID": OTHER}])
        monkeypatch.setenv("ROOST_URL", fake.url)
        yield fake


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(["sandbox", *arguments])
    return int(ended.value.code or 0)


def test_a_snapshot_is_made_and_named(server: FakeRoost, capsys: pytest.CaptureFixture[str]) -> None:
    path = f"/sandboxes/{BOX}/snapshots"
    server.replies[f"POST {path}"] = (
        201,
        {"snapshotID": "abc:default", "names": ["abc:default"], "leftBehind": ["memory"]},
    )
    assert run("snapshot", BOX[:12]) == 0
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("abc:default\n", "Not copied: memory.\n")
    assert server.last("POST", path).json() == {}
    assert run("snapshot", BOX, "--name", "mine", "--json") == 0
    assert '"snapshotID": "abc:default"' in capsys.readouterr().out
    assert server.last("POST", path).json() == {"name": "mine"}


def test_snapshots_are_listed(server: FakeRoost, capsys: pytest.CaptureFixture[str]) -> None:
    server.replies["GET /snapshots"] = (200, [])
    assert run("snapshots") == 0
    assert "No snapshots" in capsys.readouterr().err
    server.replies["GET /snapshots"] = (200, [{"snapshotID": "abc:default", "names": ["mine:v1", "mine:v2"]}])
    assert run("snapshots", BOX) == 0
    assert server.last("GET", "/snapshots").query == {"sandboxID": BOX}
    printed = capsys.readouterr().out
    assert "abc:default" in printed
    assert "mine:v1, mine:v2" in printed


def test_forks_are_printed_and_failures_counted(server: FakeRoost, capsys: pytest.CaptureFixture[str]) -> None:
    path = f"/sandboxes/{BOX}/fork"
    made = [{"sandbox": {"sandboxID": OTHER, "leftBehind": ["memory", "processes"]}}, {"sandbox": {"sandboxID": BOX}}]
    server.replies[f"POST {path}"] = (201, made)
    assert run("fork", BOX, "--count", "2", "--timeout", "60") == 0
    assert capsys.readouterr().out == f"{OTHER}\n{BOX}\n"
    assert server.last("POST", path).json() == {"count": 2, "timeout": 60}
    server.replies[f"POST {path}"] = (201, [made[0], {"error": {"code": 503, "message": "no room left"}}])
    assert run("fork", BOX, "-n", "2") == 1
    assert server.last("POST", path).json() == {"count": 2}
    printed = capsys.readouterr()
    assert "Not copied: memory, processes." in printed.err
    assert printed.out == f"{OTHER}\n"
    assert "no room left" in printed.err
    assert "1 of 2 sandboxes could not be made" in printed.err


def test_a_refusal_is_one_sentence(server: FakeRoost, capsys: pytest.CaptureFixture[str]) -> None:
    server.replies[f"POST /sandboxes/{BOX}/fork"] = (409, {"code": 409, "message": "Sandbox is paused"})
    assert run("fork", BOX) == 1
    assert capsys.readouterr().err == "Error: Sandbox is paused.\n"
    server.replies[f"POST /sandboxes/{BOX}/fork"] = (201, {"not": "a list"})
    assert run("fork", BOX) == 1
    assert "of another shape" in capsys.readouterr().err
    assert run("fork", "i0123456789") == 1
    assert "2 sandboxes have ids that begin with" in capsys.readouterr().err
