import os
from pathlib import Path

import pytest

from roost.isolation.cgroups import Cgroups, Hierarchies, disk_settings, parse_flat, parse_mounts, settings
from roost.model.errors import Unavailable
from roost.model.function import Limits

HYBRID = """\
tmpfs /sys/fs/cgroup tmpfs rw 0 0
cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,nosuid,cpu,cpuacct 0 0
cgroup /sys/fs/cgroup/memory cgroup rw,relatime,memory 0 0
cgroup /sys/fs/cgroup/pids cgroup rw,pids 0 0
cgroup /sys/fs/cgroup/systemd cgroup rw,name=systemd 0 0
cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0
"""
PURE = "cgroup2 /sys/fs/cgroup cgroup2 rw,nsdelegate 0 0\n"
LIMITS = Limits(memory_mb=128, cpu=0.5, pids=32)


def test_a_hybrid_machine_has_v1_controllers_and_a_v2_tree() -> None:
    found = parse_mounts(HYBRID)
    assert found.unified == Path("/sys/fs/cgroup/unified")
    assert found.v1["cpu"] == found.v1["cpuacct"] == Path("/sys/fs/cgroup/cpu,cpuacct")
    assert len(found.trees) == 4 and found.v2_controllers == ()


def test_a_pure_machine_has_one_tree() -> None:
    found = parse_mounts(PURE)
    assert found.trees == (Path("/sys/fs/cgroup"),) and found.v2_controllers == ("memory", "pids", "cpu")


def test_without_a_v2_tree_the_command_is_told() -> None:
    with pytest.raises(Unavailable, match="mount -t cgroup2"):
        parse_mounts(HYBRID.replace("cgroup2 ", "other ").replace(" cgroup2", " other"))


@pytest.mark.parametrize(
    ("mounts", "values"),
    [
        (
            HYBRID,
            {
                "pids.max": "32",
                "memory.limit_in_bytes": "134217728",
                "memory.memsw.limit_in_bytes": "134217728",
                "cpu.cfs_period_us": "100000",
                "cpu.cfs_quota_us": "50000",
            },
        ),
        (PURE, {"pids.max": "32", "memory.max": "134217728", "memory.swap.max": "0", "cpu.max": "50000 100000"}),
    ],
)
def test_limits_become_settings(mounts: str, values: dict[str, str]) -> None:
    assert {setting.file: setting.value for setting in settings(LIMITS, parse_mounts(mounts))} == values


@pytest.mark.parametrize(
    ("mounts", "values"),
    [
        (HYBRID, {"blkio.throttle.read_bps_device": "7:3 2097152", "blkio.throttle.write_bps_device": "7:3 2097152"}),
        (PURE, {"io.max": "7:3 rbps=2097152 wbps=2097152"}),
    ],
)
def test_a_limit_of_a_disk_becomes_settings(mounts: str, values: dict[str, str]) -> None:
    found = parse_mounts(mounts + "cgroup /sys/fs/cgroup/blkio cgroup rw,blkio 0 0\n" * (mounts == HYBRID), disks=True)
    chosen = disk_settings(os.makedev(7, 3), 2, found)
    assert {setting.file: setting.value for setting in chosen} == values
    assert ("io" in found.v2_controllers) == (mounts == PURE)


def test_a_tiny_quota_is_what_the_kernel_takes_at_least() -> None:
    chosen = settings(Limits(cpu=0.001), parse_mounts(PURE))
    assert [setting.value for setting in chosen if setting.file == "cpu.max"] == ["1000 100000"]


def test_flat_files_are_read_and_odd_lines_left() -> None:
    assert parse_flat("oom_kill 3\npopulated 0\nodd\nmax -1\n") == {"oom_kill": 3, "populated": 0}


def test_usage_of_a_pure_v2_tree(tmp_path: Path) -> None:
    directory = tmp_path / "roost-tag" / "room"
    directory.mkdir(parents=True)
    files = {
        "memory.current": "4096\n",
        "memory.peak": "8192\n",
        "memory.events": "low 0\noom 2\noom_kill 1\n",
        "cpu.stat": "usage_usec 1500\nuser_usec 1000\n",
        "pids.current": "3\n",
    }
    for name, text in files.items():
        (directory / name).write_text(text)
    used = Cgroups(Hierarchies(unified=tmp_path, v1={}), "tag").get("room").usage()
    assert (used.memory_bytes, used.memory_peak_bytes, used.oom_kills) == (4096, 8192, 1)
    assert (used.cpu_us, used.pids) == (1500, 3)


def test_usage_of_a_room_that_has_gone_is_zero(tmp_path: Path) -> None:
    used = Cgroups(Hierarchies(unified=tmp_path, v1={}), "tag").get("gone").usage()
    assert used.cpu_us == used.memory_bytes == used.pids == 0


def test_a_cgroup_that_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    v1, v2 = tmp_path / "v1", tmp_path / "v2"
    for tree in (v1, v2):
        (tree / "roost-tag").mkdir(parents=True)
    groups = Cgroups(Hierarchies(unified=v2, v1={"pids": v1}), "tag")
    # A plain directory has none of the files that a cgroup has.
    with pytest.raises(Unavailable, match=r"pids\.max"):
        groups.create("room", LIMITS)
    assert groups.names() == set()
