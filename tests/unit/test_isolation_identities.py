from pathlib import Path

import pytest

from roost.isolation.namespaces.policy import RoomPolicy
from roost.isolation.namespaces.preflight import Found, problems
from roost.isolation.usernamespaces import IDS, RANGES, Ranges, first_id
from roost.model.errors import Unavailable

GOOD = Found(
    root=True,
    privileged=True,
    kernel="6.1.0-18-amd64",
    filesystems=frozenset({"overlay", "ext4"}),
    loop_devices=True,
    mkfs=True,
    user_namespaces=1000,
    cgroups="",
    closed="",
    seccomp="",
)


def test_ranges_are_handed_out_once_and_reused_last() -> None:
    ranges = Ranges(3)
    assert ranges.take() == 0
    ranges.give_back(0)
    assert [ranges.take() for _ in range(3)] == [1, 2, 0]
    with pytest.raises(Unavailable, match="3 id ranges"):
        ranges.take()


def test_a_reserved_range_is_not_handed_out() -> None:
    ranges = Ranges(2)
    ranges.reserve(0)
    ranges.reserve(0)
    assert ranges.take() == 1


@pytest.mark.parametrize("index", [-1, 0, 5])
def test_giving_back_what_was_not_taken_is_a_bug(index: int) -> None:
    with pytest.raises(ValueError, match="not in use"):
        Ranges(3).give_back(index)


@pytest.mark.parametrize("name", ["a", "b", "c", "d", "e", "f", "g", "h"])
def test_host_ids_are_above_those_of_users_and_within_32_bits(name: str) -> None:
    first = first_id(Path("/data") / name)
    assert first >= 0x10000000 and first + RANGES * IDS <= 0x6FFF0000 + IDS


def test_a_policy_survives_the_way_to_the_zygote() -> None:
    policy = RoomPolicy(seccomp=b"\x00\xff" * 8, masked=("keys",), capabilities=frozenset({1, 40}))
    assert RoomPolicy.from_json(policy.to_json()) == policy


def test_a_good_machine_has_no_problems() -> None:
    assert problems(GOOD) == ()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"root": False}, "sudo roost serve"),
        ({"privileged": False}, "--privileged"),
        ({"kernel": "5.10.0"}, "upgrade the kernel"),
        ({"kernel": "odd"}, "upgrade the kernel"),
        ({"filesystems": frozenset({"ext4"})}, "modprobe overlay"),
        ({"loop_devices": False}, "modprobe loop"),
        ({"mkfs": False}, "apt install e2fsprogs"),
        ({"user_namespaces": 0}, "sysctl -w"),
        ({"cgroups": "No cgroup v2 tree"}, "No cgroup v2 tree"),
        ({"closed": "/sys/fs/cgroup"}, "/sys/fs/cgroup is not writable"),
    ],
)
def test_each_problem_says_what_mends_it(change: dict[str, object], words: str) -> None:
    (problem,) = problems(Found(**{**vars(GOOD), **change}))
    assert words in problem


def test_without_root_only_that_is_told_of_what_root_can_do() -> None:
    found = Found(**{**vars(GOOD), "root": False, "privileged": False, "closed": "/sys/fs/cgroup"})
    assert problems(found) == ("These rooms take root: sudo roost serve.",)
