"""A real server that keeps its records in a real PostgreSQL: it has to be as good as with SQLite, and live through the
database's own troubles."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.support.postgres import Postgres, serving
from tests.support.server import NOTHING, Remains, Server, running
from tests.support.tasks import EFFECTS, FINISHED, MOUNT, configure, effects, submit


@pytest.fixture
def data_dir(tmp_path: Path) -> Iterator[Path]:
    found = tmp_path / "data"
    yield found
    assert Remains.of(found) == NOTHING


def on(url: str) -> dict[str, str]:
    return {"ROOST_DATABASE": url}


def deploy(server: Server) -> None:
    server.deploy("f", {"index.py": EFFECTS}, timeout=30, **MOUNT)
    assert configure(server, "f", maxAsyncRetryAttempts=8).status_code == 200


def states(url: str) -> dict[str, str]:
    with psycopg.connect(url) as connection:
        return dict(connection.execute("SELECT id, state FROM tasks").fetchall())


def all_finished(url: str, ids: set[str]) -> dict[str, str]:
    deadline = time.monotonic() + 60
    while True:
        found = states(url)
        if all(found.get(id) in FINISHED for id in ids):
            return found
        assert time.monotonic() < deadline, Counter(found.values())
        time.sleep(0.1)


def test_what_a_server_was_given_outlives_its_end_and_its_death(postgres_url: str, data_dir: Path) -> None:
    with running(data_dir, env=on(postgres_url)) as server:
        deploy(server)
        assert server.invoke("f", "now echo", x_fc_session_id="s").text == "done now"
        assert submit(server, "f", "first echo", id="first").status_code == 202
        assert all_finished(postgres_url, {"first"})["first"] == "Succeeded"
        later = {f"later{number}" for number in range(6)}
        for id in sorted(later):
            assert submit(server, "f", f"{id} sleep 1", id=id).status_code == 202
        server.until(lambda: "Running" in states(postgres_url).values())
        server.kill()
        server.start()
        assert submit(server, "f", "first echo", id="first").status_code == 202  # known already
        found = all_finished(postgres_url, later)
        assert set(found.values()) == {"Succeeded"}
        counted = effects(data_dir)
        assert counted["first"] == 1 and set(counted) == {"now", "first", *later}
    assert not (data_dir / "roost.db").exists()
    with running(data_dir, env=on(postgres_url)) as server:
        assert server.invoke("f", "again echo").text == "done again"


def test_a_database_that_is_restarted_under_load_loses_no_task(data_dir: Path) -> None:
    accepted: set[str] = set()
    with serving() as postgres, postgres.database() as url, running(data_dir, env=on(url)) as server:
        deploy(server)
        ended = threading.Event()

        def load(lane: int) -> None:
            number = 0
            while not ended.is_set():
                id = f"t{lane}-{number}"
                number += 1
                if submit(server, "f", f"{id} sleep 0.01", id=id).status_code == 202:
                    accepted.add(id)

        lanes = [threading.Thread(target=load, args=(lane,)) for lane in range(3)]
        for lane in lanes:
            lane.start()
        for end in (postgres.stop, postgres.kill):
            time.sleep(0.7)
            end()
            assert server.invoke("f", f"{end.__name__} echo").text == f"done {end.__name__}", (
                "requests need no database"
            )
            postgres.start()
        time.sleep(0.7)
        ended.set()
        for lane in lanes:
            lane.join()
        found = all_finished(url, accepted | set(states(url)))
        assert set(found.values()) == {"Succeeded"}
        assert len(accepted) > 5
        counted = effects(data_dir)
        assert {id for id in accepted if counted[id] != 1} == set()


def test_what_keeps_it_from_starting_is_one_line(postgres: Postgres, postgres_url: str, data_dir: Path) -> None:
    def refused(url: str) -> str:
        command = [sys.executable, "-m", "roost.server", "--port", "0", "--data-dir", str(data_dir)]
        command += ["--database", url]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
        assert done.returncode in {1, 2} and not done.stdout
        [line] = done.stderr.splitlines()
        assert "wrong@" not in line and "secret" not in line and "quiet-feathers" not in line
        return line

    name = postgres_url.rpartition("/")[2]
    place = f"the PostgreSQL database '{name}' at 127.0.0.1:{postgres.port}"
    assert refused(postgres.url(name, password="wrong")) == (
        f'roost: Can\'t open {place}: password authentication failed for user "roost".'
    )
    assert refused("mysql://secret@host/name") == (
        "roost: 'database' is a PostgreSQL URL, as in postgresql://user:password@host:5432/name."
    )
    with running(data_dir.with_name("other"), env=on(postgres_url)):
        assert refused(postgres_url) == f"roost: Another Roost uses {place}."
