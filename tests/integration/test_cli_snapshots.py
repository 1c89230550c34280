"""`roost sandbox snapshot`, `snapshots`, `fork`, `checkpoint`, `rollback` and `tree`: what is sent, and what is made of
the replies."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from roost.sdk import checkpoints, cli
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


NODES = [
    {"checkpointID": "c1", "label": "start", "parentID": None, "memory": "held", "memoryBytes": 5 << 20},
    {"checkpointID": "c2", "label": "left", "parentID": "c1", "memory": "held", "memoryBytes": 10, "current": True},
    {"checkpointID": "c3", "label": "", "parentID": "c2", "memory": "dropped: \x1b[2Jfull"},
    {"checkpointID": "c4", "label": "right", "parentID": "c1", "memory": "held", "memoryBytes": 2 << 20},
    {"checkpointID": "c5", "label": "right", "parentID": None, "memory": "on disk", "memoryBytes": 0},
]


def test_checkpoints_are_made_drawn_and_gone_back_to(server: FakeRoost, capsys: pytest.CaptureFixture[str]) -> None:
    path = f"/sandboxes/{BOX}"
    server.replies[f"POST {path}/checkpoints"] = (201, {**NODES[0], "leftBehind": ["processes"]})
    assert run("checkpoint", BOX, "--label", "start") == 0
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("c1\n", "Not copied: processes.\n")
    assert server.last("POST", f"{path}/checkpoints").json() == {"label": "start"}
    assert server.last("POST", f"{path}/checkpoints").query == {}
    assert run("checkpoint", BOX, "--now", "--json") == 0
    assert server.last("POST", f"{path}/checkpoints").query == {"when": "now"}
    assert '"checkpointID": "c1"' in capsys.readouterr().out

    server.replies[f"GET {path}/checkpoints"] = (200, [])
    assert run("tree", BOX) == 0
    assert "No checkpoints" in capsys.readouterr().err
    server.replies[f"GET {path}/checkpoints"] = (200, NODES)
    assert run("tree", BOX) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["c1 start: memory held, 5 MB", "├── * c2 left: memory held, 1 MB"]
    assert lines[2].startswith("│   └── c3: files alone (") and "\x1b" not in lines[2]
    assert lines[3:] == ["└── c4 right: memory held, 2 MB", "c5 right: memory on disk"]

    token = "secret"
    server.replies[f"POST {path}/rollback"] = (
        200,
        {"sandboxID": BOX, "checkpointID": "c2", "envdAccessToken": token, "leftBehind": ["memory"], "notCopied": []},
    )
    for name, options in (("left", []), ("c2", ["--now", "--json"])):
        assert run("rollback", BOX, name, *options) == 0
        printed = capsys.readouterr()
        assert token not in printed.out
        assert "c2" in printed.out
        assert printed.err == "Not copied: memory.\n"
        assert server.last("POST", f"{path}/rollback").json() == {"checkpointID": "c2"}
    assert server.last("POST", f"{path}/rollback").query == {"when": "now"}
    assert run("rollback", BOX, "right") == 1
    assert "2 checkpoints have the label 'right': c4, c5." in capsys.readouterr().err
    assert run("rollback", BOX, "nowhere") == 1
    assert "No checkpoint has the id or label 'nowhere'" in capsys.readouterr().err
    asked = len(server.requests)
    for command in (("rollback", BOX, ""), ("fork", BOX, "--checkpoint", "")):  # c3 has no label
        assert run(*command) == 2
        assert "The id or label of a checkpoint is empty" in capsys.readouterr().err
    assert {request.method for request in server.requests[asked:]} == {"GET"}

    server.replies[f"POST {path}/fork"] = (201, [{"sandbox": {"sandboxID": OTHER}}])
    assert run("fork", BOX, "--checkpoint", "start", "--now") == 0
    assert server.last("POST", f"{path}/fork").json() == {"count": 1, "checkpointID": "c1"}
    assert server.last("POST", f"{path}/fork").query == {"when": "now"}


def test_a_tree_that_is_none_is_drawn_all_the_same() -> None:
    loop = [{"checkpointID": "a", "parentID": "b"}, {"checkpointID": "b", "parentID": "a"}]
    assert list(checkpoints.drawn(loop)) == []
    deep = [{"checkpointID": str(n), "parentID": str(n - 1) if n else None} for n in range(3000)]
    assert len(list(checkpoints.drawn(deep))) == 3000
    assert [line[:1] for line in checkpoints.drawn([{"checkpointID": "a", "parentID": "gone"}])] == ["a"]
