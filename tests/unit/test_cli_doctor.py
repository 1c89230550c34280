"""What `roost doctor` makes of what it finds."""

import json

import pytest

from roost.isolation import doctor
from roost.isolation.driver import Preflight

V1 = "cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\ncgroup /c cgroup rw,cpu,cpuacct 0 0\n"
V2 = "cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n"
BROKEN = Preflight(usable=False, level="rooms", problems=("No loop devices: modprobe loop.",))


@pytest.mark.parametrize(
    ("mounts", "controllers", "expected"),
    [
        (V1, "", ("v1", ("cpu", "memory"))),
        (V1 + V2, "", ("hybrid", ("cpu", "memory"))),
        (V2, "cpuset cpu io memory pids", ("v2", ("cpu", "freezer", "memory", "pids"))),
        ("proc /proc proc rw 0 0\n\nshort\n", "", ("none", ())),
    ],
)
def test_cgroups(mounts: str, controllers: str, expected: tuple[str, tuple[str, ...]]) -> None:
    assert doctor.cgroups(mounts, controllers) == expected


def test_what_is_missing_comes_with_what_mends_it() -> None:
    absent = doctor.Option(program="roost-no-such-program", what_for="a test", mend="apt-get install it")
    report = doctor.look({"namespaces": BROKEN}, [absent])
    text = doctor.as_text(report)
    assert not report.ready
    assert "NOT usable" in text
    assert "modprobe loop" in text
    assert "missing, for a test: apt-get install it" in text
    assert text.endswith("can't run here yet.")


def test_programs_of_root_are_found_without_root_s_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    [nft] = [one for one in doctor.look({}).options if one.program == "nft"]
    assert nft.path.endswith("sbin/nft")


@pytest.mark.parametrize("usable", [True, False])
def test_exit_code_and_json(usable: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = Preflight(usable=usable, level="rooms", problems=() if usable else BROKEN.problems)
    for name in ("namespaces", "unprivileged", "gvisor"):
        monkeypatch.setattr(doctor, f"{name}_preflight", lambda: found)
    with pytest.raises(SystemExit) as ended:
        doctor.main(["--json"])
    assert ended.value.code == (0 if usable else 1)
    said = json.loads(capsys.readouterr().out)
    assert said["ready"] is usable
    assert said["drivers"]["namespaces"]["usable"] is usable
