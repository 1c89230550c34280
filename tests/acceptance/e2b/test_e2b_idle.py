"""A sandbox that nobody uses has no more memory than it needs, and is what it was."""

from __future__ import annotations

import httpx
from e2b_code_interpreter import Sandbox

from tests.support.forks import forks_of, value
from tests.support.server import Server

LIMITS = "sandbox_memory_mb = 768\nsandbox_disk_mb = 256\ncheckpoints_memory_mb = 1\n"
STATE = "import numpy as np, pandas as pd\nx = 41\nbig = np.arange(1_000_000)\ntable = pd.DataFrame({'a': [1, 2]})"
SEEN = "x, int(big.sum()), table['a'].tolist()"
THERE = "(41, 499999500000, [1, 2])"


def used(roost: Server) -> float:
    """By all sandboxes, in MB."""
    with httpx.Client(trust_env=False, timeout=30) as client:
        lines = client.get(f"{roost.url}/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("roost_memory_bytes{")) / 2**20


def test_memory_is_given_back_and_what_was_in_it_is_there(box: Sandbox, roost: Server) -> None:
    threaded = Sandbox.create(timeout=300)
    assert value(
        threaded, f"{STATE}\nimport threading, time\nthreading.Thread(target=time.sleep, args=(300,)).start()\n1"
    )
    assert value(box, SEEN) == value(threaded, SEEN) == THERE
    before = used(roost)
    # A daemon and a context, and one more daemon: another thread could write to what is looked at.
    roost.until(lambda: used(roost) < before - 3.3, timeout=90)
    assert used(roost) > before - 6
    (fork,) = forks_of(box)
    own, headers = f"{roost.url}/sandboxes/{box.sandbox_id}/", {"x-api-key": "any"}
    with httpx.Client(base_url=own, headers=headers, trust_env=False, timeout=60) as api:
        taken = api.post("checkpoints", json={}).raise_for_status().json()
        roost.until(lambda: api.get("checkpoints").json()[0]["memory"] == "on disk", timeout=60)
        assert value(box, "x = 0; del big, table; x") == "0"
        api.post("rollback", json={"checkpointID": taken["checkpointID"]}).raise_for_status()
    for one in (box, fork, threaded):
        assert value(one, SEEN) == THERE
        drawn = one.run_code("ax = table.plot(); table.describe().to_dict()['a']['mean']")
        assert (drawn.text, len(drawn.results)) == ("1.5", 2)
    fork.kill()
    threaded.kill()
