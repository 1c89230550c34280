"""Secrets, volumes and templates, as the official SDK asks for them."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from uuid import uuid4

import pytest
from e2b import Sandbox, Secret, Template, Volume
from e2b.exceptions import (
    AuthenticationException,
    NotFoundException,
    SandboxException,
    SecretException,
    SecretNotFoundException,
    TemplateException,
    VolumeException,
    VolumeNotFoundException,
)

from tests.support.server import Server


@pytest.fixture
def volume(roost: Server, environment: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Volume]:
    monkeypatch.setenv("E2B_VOLUME_API_URL", roost.url)
    made = Volume.create(f"volume-{uuid4()}")
    yield made
    Volume.destroy(made.volume_id)


def test_secrets_are_kept_and_never_given_out() -> None:
    name = f"Key-{uuid4()}"
    made = Secret.create(name, "value-1", metadata={"env": "test"})
    assert made.secret_id.startswith("sec_")
    assert (made.name, made.version, made.metadata) == (name.lower(), 1, {"env": "test"})
    with pytest.raises(SecretException, match="409"):
        Secret.create(name, "again")
    assert Secret.get_info(made.secret_id) == Secret.get_info(name)
    updated = Secret.update(name, "value-2")
    assert (updated.version, updated.metadata) == (2, {"env": "test"})
    assert Secret.update(made.secret_id, "value-3", metadata={}).metadata == {}
    others = [Secret.create(f"other-{number}-{uuid4()}", "x") for number in range(3)]
    pages, found = Secret.list(limit=2), []
    while pages.has_next:
        found += [secret.name for secret in pages.next_items()]
    assert found == sorted([made.name, *(other.name for other in others)])
    for secret in (made, *others):
        assert Secret.destroy(secret.secret_id)
    assert not Secret.destroy(made.secret_id)
    assert not Secret.exists(name)
    with pytest.raises(SecretNotFoundException):
        Secret.update(name, "x")
    with pytest.raises(SecretException, match="400: name"):
        Secret.create("sec_mine", "x")


def test_templates_are_found_by_name_and_tag() -> None:
    assert Template.exists("base")
    assert Template.exists("code-interpreter-v1")
    assert not Template.exists(f"no-such-{uuid4()}")
    assert not Template.exists("base:no-such")
    [default] = Template.get_tags("base")
    assert default.tag == "default"
    assert Template.assign_tags("base:default", ["v1", "Prod"]).build_id == default.build_id
    assert {tag.tag for tag in Template.get_tags("base")} == {"default", "v1", "prod"}
    sandbox = Sandbox.create("base:v1", timeout=60)
    assert sandbox.get_info().template_id == "base"
    sandbox.kill()
    Template.remove_tags("base", ["v1", "prod"])
    with pytest.raises(SandboxException, match="404"):
        Sandbox.create("base:v1")
    with pytest.raises(TemplateException, match="404"):
        Template.remove_tags("base", ["v1"])


def test_volumes_come_and_go(volume: Volume) -> None:
    assert volume.volume_id in [found.volume_id for found in Volume.list()]
    assert Volume.get_info(volume.volume_id).token == volume.token
    assert Volume.connect(volume.volume_id).name == volume.name
    with pytest.raises(VolumeException, match="409"):
        Volume.create(volume.name)
    with pytest.raises(VolumeNotFoundException):
        Volume.get_info(str(uuid4()))
    assert not Volume.destroy(str(uuid4()))


def test_files_of_a_volume(volume: Volume) -> None:
    volume.write_file("/text.txt", "ä text", mode=0o640)
    assert volume.read_file("/text.txt") == "ä text"
    info = volume.get_info("/text.txt")
    assert (info.name, info.path, info.type.value, info.size) == ("text.txt", "/text.txt", "file", 7)
    assert (info.uid, info.gid, info.mode) == (1000, 1000, 0o640)
    with pytest.raises(VolumeException, match="409"):
        volume.write_file("/text.txt", "other")
    volume.write_file("/text.txt", BytesIO(b"\0\1" * 300_000), force=True)
    assert volume.read_file("/text.txt", format="bytes") == b"\0\1" * 300_000
    assert b"".join(volume.read_file("/text.txt", format="stream")) == b"\0\1" * 300_000
    volume.write_file("/empty", "")
    assert volume.read_file("/empty") == ""

    volume.make_dir("/a/b/c", force=True)
    with pytest.raises(VolumeException, match="409"):
        volume.make_dir("/a")
    with pytest.raises(NotFoundException):
        volume.make_dir("/x/y")
    volume.write_file("/a/b/file", "deep")
    assert [entry.name for entry in volume.list("/")] == ["a", "empty", "text.txt"]
    assert [entry.path for entry in volume.list("/a", depth=3)] == ["/a/b", "/a/b/c", "/a/b/file"]
    changed = volume.update_metadata("/a/b/file", uid=7, gid=8, mode=0o600)
    assert (changed.uid, changed.gid, changed.mode) == (7, 8, 0o600)
    for path in ("/a", "/empty"):
        volume.remove(path)
        assert not volume.exists(path)
    for missing in (volume.read_file, volume.remove, volume.list, volume.get_info):
        with pytest.raises(NotFoundException):
            missing("/none")
    for wrong in ("/../etc/passwd", "/a/../../etc"):
        with pytest.raises(VolumeException, match="400"):
            volume.read_file(wrong)
    with pytest.raises(AuthenticationException):
        volume.list("/", token="wrong")


def test_a_volume_is_shared_by_the_sandboxes_that_mount_it(volume: Volume) -> None:
    volume.write_file("/from-outside", "1")
    assert volume.update_metadata("/", mode=0o777).mode == 0o777
    one, two = (Sandbox.create(timeout=60, volume_mounts={"/mnt/data": volume}) for _ in range(2))
    try:
        assert run(one, "cat /mnt/data/from-outside; echo 2 > /mnt/data/from-one; stat -c %u /mnt/data") == "11000\n"
        assert run(two, "cat /mnt/data/from-one") == "2\n"
        assert volume.read_file("/from-one") == "2\n"
        assert one.get_info().volume_mounts == [{"name": volume.name, "path": "/mnt/data"}]
        # Links that a room makes lead nowhere outside, and what is no file is not opened.
        run(one, "cd /mnt/data; ln -s /etc link; ln -s /etc/passwd passwd; mkfifo pipe")
        for path in ("/link/passwd", "/passwd", "/pipe"):
            with pytest.raises(VolumeException, match="400"):
                volume.read_file(path)
        links = {entry.name: entry.target for entry in volume.list("/") if entry.target}
        assert links == {"link": "/etc", "passwd": "/etc/passwd"}
        with pytest.raises(VolumeException, match="409"):
            Volume.destroy(volume.volume_id)
    finally:
        one.kill()
        two.kill()
    assert volume.read_file("/from-one") == "2\n"
    with pytest.raises(SandboxException, match="404: Volume 'no-such' not found"):
        Sandbox.create(volume_mounts={"/mnt": "no-such"})


def run(sandbox: Sandbox, command: str) -> str:
    return str(sandbox.commands.run(command, user="root").stdout)
