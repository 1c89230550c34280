"""Names and links of volumes: nothing leads out, whatever a room has put there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from roost.instances.volumes import Volumes
from roost.model.errors import InvalidArgument


@pytest.fixture
def volumes(tmp_path: Path) -> Volumes:
    return Volumes(tmp_path / "volumes")


def where(fd: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def test_folders_are_made_on_the_way(volumes: Volumes, tmp_path: Path) -> None:
    assert where(volumes.open("acc", "notes", "/ann/s1/t1")) == str(tmp_path / "volumes/acc/notes/ann/s1/t1")
    assert where(volumes.open("acc", "notes", "/")) == str(tmp_path / "volumes/acc/notes")
    assert (tmp_path / "volumes").stat().st_mode & 0o77 == 0


@pytest.mark.parametrize("path", ["..", "/../x", "a/../../b", "a/..", "x\0y", "/" + "n" * 300])
def test_a_path_that_leads_out_is_refused(volumes: Volumes, path: str) -> None:
    with pytest.raises(InvalidArgument):
        volumes.open("acc", "notes", path)


@pytest.mark.parametrize("name", ["", "..", ".disks", "a/b", "-x", "x" * 129, "a b"])
def test_a_name_that_is_none_is_refused(volumes: Volumes, name: str) -> None:
    with pytest.raises(InvalidArgument):
        volumes.open("acc", name, "/")
    with pytest.raises(InvalidArgument):
        volumes.image("acc", name, "/")


@pytest.mark.parametrize("target", ["/etc", "..", "../other", "/proc/self/root"])
def test_a_link_that_a_room_planted_is_not_followed(volumes: Volumes, tmp_path: Path, target: str) -> None:
    os.close(volumes.open("acc", "notes", "/ann"))
    (tmp_path / "volumes/acc/notes/ann/s1").symlink_to(target)
    with pytest.raises(InvalidArgument):
        volumes.open("acc", "notes", "/ann/s1")
    with pytest.raises(InvalidArgument):
        volumes.open("acc", "notes", "/ann/s1/deeper")


def test_a_file_in_the_way_is_said(volumes: Volumes, tmp_path: Path) -> None:
    os.close(volumes.open("acc", "notes", "/"))
    (tmp_path / "volumes/acc/notes/file").touch()
    with pytest.raises(InvalidArgument, match="not a folder"):
        volumes.open("acc", "notes", "/file")


def test_no_descriptor_is_left_open(volumes: Volumes, tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for path in ("/a/b", "..", "/" + "n" * 300):
        try:
            os.close(volumes.open("acc", "notes", path))
        except InvalidArgument:
            continue
    assert len(os.listdir("/proc/self/fd")) <= before


def test_each_path_has_an_image_of_its_own(volumes: Volumes) -> None:
    images = {volumes.image("acc", v, p) for v in ("a", "b") for p in ("/", "/x", "/x/y")}
    assert len(images) == 6
    assert volumes.image("acc", "a", "/x") == volumes.image("acc", "a", "x")


async def test_a_removed_folder_is_gone_however_deep_it_is(volumes: Volumes, tmp_path: Path) -> None:
    fd = volumes.open("acc", "notes", "/ann/s1")
    for _ in range(3000):
        os.mkdir("d", dir_fd=fd)
        child = os.open("d", os.O_PATH, dir_fd=fd)
        os.close(fd)
        fd = child
    os.close(fd)
    await volumes.remove("acc", "notes", "/ann/s1")
    await volumes.remove("acc", "notes", "/ann/s1")
    assert os.listdir(tmp_path / "volumes/acc/notes/ann") == []
    assert os.listdir(tmp_path / "volumes/.trash") == []


async def test_removing_follows_no_link(volumes: Volumes, tmp_path: Path) -> None:
    os.close(volumes.open("acc", "notes", "/ann"))
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/kept").touch()
    (tmp_path / "volumes/acc/notes/ann/s1").symlink_to(tmp_path / "outside")
    with pytest.raises(InvalidArgument):
        await volumes.remove("acc", "notes", "/ann/s1/kept")
    await volumes.remove("acc", "notes", "/ann/s1")
    assert (tmp_path / "outside/kept").exists()


async def test_a_removed_folder_takes_its_images_along(volumes: Volumes) -> None:
    kept = volumes.image("acc", "notes", "/ann")
    gone = [volumes.image("acc", "notes", path) for path in ("/ann/s1", "/ann/s1/deeper")]
    for image in (kept, *gone):
        image.touch()
    await volumes.remove("acc", "notes", "/ann/s1")
    assert kept.exists()
    assert not any(image.exists() for image in gone)


def test_asking_where_an_image_would_be_makes_nothing(volumes: Volumes, tmp_path: Path) -> None:
    assert not volumes.image("acc", "notes", "/ann", make=False).parent.exists()
    assert sorted(os.listdir(tmp_path / "volumes")) == [".pending", ".trash"]


def test_a_pending_folder_gets_its_place_with_what_was_there_and_its_descriptor_stays_good(
    volumes: Volumes, tmp_path: Path
) -> None:
    place = tmp_path / "volumes/acc/notes/ann/t1"
    for number, expected in enumerate(([], ["0"], ["0", "1"])):
        fd = volumes.open_pending(f"i{number}.0")
        volumes.settle(f"i{number}.0", "acc", "notes", "/ann/t1")
        assert where(os.dup(fd)) == str(place)
        assert sorted(os.listdir(place)) == expected
        (Path(f"/proc/self/fd/{fd}") / str(number)).touch()
        os.close(fd)
    assert os.listdir(tmp_path / "volumes/.pending") == []


@pytest.mark.parametrize("where_it_is", ["ann", "ann/t1"])
def test_a_pending_folder_is_not_put_behind_a_link(volumes: Volumes, tmp_path: Path, where_it_is: str) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/kept").touch()
    link = tmp_path / "volumes/acc/notes" / where_it_is
    link.parent.mkdir(parents=True)
    link.symlink_to(tmp_path / "outside")
    os.close(volumes.open_pending("i.0"))
    with pytest.raises(InvalidArgument):
        volumes.settle("i.0", "acc", "notes", "/ann/t1")
    assert os.listdir(tmp_path / "outside") == ["kept"]


def test_pending_folders_of_the_living_are_kept(volumes: Volumes, tmp_path: Path) -> None:
    for name in ("alive.0", "gone.0", "gone.1"):
        os.close(volumes.open_pending(name))
    volumes.forget_pending({"alive"})
    assert os.listdir(tmp_path / "volumes/.pending") == ["alive.0"]
