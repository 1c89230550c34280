"""What a server without root decides: when its rooms stop, what is read of /proc, where it keeps its sockets."""

from __future__ import annotations

from pathlib import Path

import pytest

from roost.config import Config, ConfigError, runtime_dir, validate
from roost.guest.sandbox.identities import Identities, has_one_id
from roost.instances.decide import Action, View, decide
from roost.isolation.driver import RoomSpec, Template
from roost.isolation.drivers import Drivers
from roost.isolation.namespaces.within import within
from roost.isolation.unprivileged.realm import remedy
from roost.isolation.unprivileged.usage import own_pages, ticks_of
from roost.model.errors import InvalidArgument, Unavailable
from roost.model.function import GVISOR, Idle, Limits
from roost.model.instance import State, StopReason
from roost.sdk import tables
from tests.support.fake_driver import FakeDriver

NOW = 1000.0
VIEW = View(state=State.READY, leases=0, idle_since=NOW, idle=Idle(freeze_after_s=1, stop_after_s=10), freezes=False)


@pytest.mark.parametrize(
    ("later", "action", "wake_at"), [(0, Action.WAIT, NOW + 10), (5, Action.WAIT, NOW + 10), (10, Action.STOP, None)]
)
def test_what_can_not_freeze_stays_ready_until_it_is_stopped(
    later: float, action: Action, wake_at: float | None
) -> None:
    found = decide(VIEW, NOW + later)
    assert found.action is action
    assert found.reason is StopReason.IDLE if wake_at is None else found.wake_at == wake_at


def test_what_can_not_freeze_is_paused_with_its_files_at_once() -> None:
    assert decide(View(**{**vars(VIEW), "pause_wanted": True}), NOW).action is Action.PAUSE
    assert decide(View(**{**vars(VIEW), "pause_wanted": True, "leases": 1}), NOW).action is Action.WAIT


def test_times_are_those_of_a_process_and_of_the_children_it_waited_for() -> None:
    fields = ["S", *map(str, range(4, 14)), "7", "5", "3", "2", "20"]
    assert ticks_of(f"17 (a (b) c) {' '.join(fields)}") == 17
    assert ticks_of("") == 0


@pytest.mark.parametrize(("text", "pages"), [("100 40 15 1 0 20 0\n", 25), ("", 0), ("100 10 15", 0)])
def test_memory_is_what_is_resident_without_files(text: str, pages: int) -> None:
    assert own_pages(text) == pages


def test_what_forbids_user_namespaces_is_named_with_what_allows_them(tmp_path: Path) -> None:
    (tmp_path / "kernel").mkdir()
    assert "as root" in remedy(tmp_path)
    (tmp_path / "kernel/apparmor_restrict_unprivileged_userns").write_text("1\n")
    assert remedy(tmp_path).endswith("apparmor_restrict_unprivileged_userns=0")
    (tmp_path / "kernel/unprivileged_userns_clone").write_text("0\n")
    assert remedy(tmp_path).endswith("unprivileged_userns_clone=1")


@pytest.mark.parametrize(
    ("uid", "given", "expected"),
    [
        (0, "/run/user/0", "/run/roost"),
        (1000, "/run/user/1000", "/run/user/1000/roost"),
        (1000, "", "/tmp/roost-1000"),
        (1000, "relative", "/tmp/roost-1000"),
        (1000, "/" + "x" * 64, "/tmp/roost-1000"),
    ],
)
def test_sockets_are_where_their_paths_are_short(uid: int, given: str, expected: str) -> None:
    assert runtime_dir(uid, {"XDG_RUNTIME_DIR": given}) == Path(expected)


def test_who_has_no_home_names_a_directory() -> None:
    with pytest.raises(ConfigError, match="--data-dir"):
        validate(Config(data_dir=Path()))


def test_in_a_room_with_one_id_every_user_is_that_one(tmp_path: Path) -> None:
    (tmp_path / "passwd").write_text("root:x:0:0::/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/bash\n")
    (tmp_path / "group").write_text("user:x:1000:\n")
    table = tmp_path / "uid_map"
    for text, uid in (("         0          0          1\n", 0), ("         0     268435456      65536\n", 1000)):
        table.write_text(text)
        assert has_one_id(table) is (uid == 0)
        user = Identities(default="user", env={}, database=tmp_path, id_map=table).lookup("user")
        assert (user.uid, user.name, user.home) == (uid, "user", "/home/user")


async def test_an_isolation_that_no_driver_has_falls_back_to_none(tmp_path: Path) -> None:
    drivers = Drivers(FakeDriver(), {}, lacking={GVISOR: "it takes root."})
    assert GVISOR not in drivers.present()
    with pytest.raises(InvalidArgument, match="it takes root"):
        drivers.admit(GVISOR)
    template = Template(name="any", root=tmp_path)
    spec = RoomSpec(id="one", template=template, limits=Limits(), run_dir=tmp_path, isolation=GVISOR)
    with pytest.raises(Unavailable, match="it takes root"):
        await drivers.create(spec)


def test_helpers_are_started_in_the_realm_there_is() -> None:
    assert within(None, ["rm", "x"]) == ["rm", "x"]
    assert within(7, ["rm", "x"])[-3:] == ["7", "rm", "x"]


@pytest.mark.parametrize(("driver", "shown"), [("namespaces", False), ("unprivileged", True)])
def test_a_driver_that_lacks_something_is_shown_beside_its_instances(driver: str, shown: bool) -> None:
    table = tables.instances([{"function": "f", "id": "i", "driver": driver}], ["f", "g"], 0)
    assert [str(column.header) for column in table.columns][-1] == ("DRIVER" if shown else "AGE")
    assert table.row_count == 2
