"""What the `host` template's skeleton takes of a host, on small host trees made here."""

import os
import stat
from pathlib import Path

import pytest

from roost.isolation.templates import host

KEY = "-----BEGIN PRIVATE KEY-----\nnever to be seen\n-----END PRIVATE KEY-----\n"


@pytest.fixture
def machine(tmp_path) -> Path:
    """A usr-merged host with secrets in the places where hosts have them."""
    root = tmp_path / "machine"
    for folder in (
        "usr/bin",
        "usr/lib",
        "etc/ssl/certs",
        "etc/ssl/private",
        "etc/ssh",
        "etc/alternatives",
        "root/.ssh",
    ):
        (root / folder).mkdir(parents=True)
    for name in ("bin", "lib"):
        (root / name).symlink_to(f"usr/{name}")
    (root / "usr/bin/bash").touch()
    for name in ("shadow", "machine-id", "ssh/ssh_host_key", "pip.conf", "npmrc", "fstab", "environment"):
        (root / "etc" / name).write_text("never to be seen")
    (root / "etc/passwd").write_text("someone:x:1234:1234:A Person:/home/someone:/bin/sh\n")
    (root / "etc/ssl/certs/root.pem").write_text("-----BEGIN CERTIFICATE-----\n")
    (root / "etc/ssl/certs/by-hash.0").symlink_to("root.pem")
    (root / "etc/ssl/certs/with-key.pem").write_text(KEY)
    (root / "etc/ssl/private/site.key").write_text(KEY)
    (root / "etc/services").write_text("http 80/tcp\n")
    (root / "etc/shells").write_text("never to be seen")
    (root / "etc/shells").chmod(0o640)
    (root / "etc/alternatives/awk").symlink_to("/usr/bin/mawk")
    os.mkfifo(root / "etc/ssl/pipe")
    return root


def skeleton(machine: Path) -> dict[str, host.Entry]:
    return {entry.path: entry for entry in host.plan(machine)}


def test_takes_what_programs_need(machine):
    taken = skeleton(machine)
    assert taken["bin"].target == "usr/bin"
    assert taken["etc/services"].content == b"http 80/tcp\n"
    assert taken["etc/ssl/certs/root.pem"].content is not None
    assert taken["etc/ssl/certs/by-hash.0"].target == "root.pem"
    assert taken["etc/alternatives/awk"].target == "/usr/bin/mawk"
    assert b"root:x:0:0" in (taken["etc/passwd"].content or b"")
    assert b"/bin/bash" in (taken["etc/passwd"].content or b"")


def test_takes_no_secret_and_no_person(machine):
    taken = skeleton(machine)
    everything = b"".join(entry.content or b"" for entry in taken.values())
    assert b"never to be seen" not in everything
    assert b"someone" not in everything
    assert not {"etc/shadow", "etc/machine-id", "etc/ssh", "etc/pip.conf", "etc/ssl/private", "etc/ssl/pipe"} & set(
        taken
    )


def test_parents_come_before_children(machine):
    seen = {""}
    for entry in host.plan(machine):
        assert entry.path.rpartition("/")[0] in seen
        assert entry.path not in seen
        seen.add(entry.path)


def test_a_host_whose_bin_is_no_link_gets_it_bound(machine):
    (machine / "bin").unlink()
    (machine / "bin").mkdir()
    assert list(host.binds(machine)) == [(machine / "usr", "/usr"), (machine / "bin", "/bin")]
    assert skeleton(machine)["bin"] == host.Entry(path="bin")


def test_written_as_planned_and_the_same_again(machine, tmp_path):
    folder = tmp_path / "skeletons"
    first = host.prepare(folder, host=machine, boot_id="11111111-2222")
    assert (first.root / "bin").readlink() == Path("usr/bin")
    assert (first.root / "etc/services").read_text() == "http 80/tcp\n"
    assert stat.S_IMODE((first.root / "tmp").stat().st_mode) == 0o1777
    assert stat.S_IMODE((first.root / "root").stat().st_mode) == 0o700
    assert (first.root / "home/user").stat().st_uid == 1000
    assert (first.root / ".roost").is_dir()
    again = host.prepare(folder, host=machine, boot_id="11111111-2222")
    assert again.root == first.root
    assert again.name == "host"
    assert again.binds == ((machine / "usr", "/usr"),)


def test_another_content_is_another_directory_and_other_boots_are_removed(machine, tmp_path):
    folder = tmp_path / "skeletons"
    first = host.prepare(folder, host=machine, boot_id="11111111-2222")
    (machine / "etc/services").write_text("https 443/tcp\n")
    second = host.prepare(folder, host=machine, boot_id="11111111-2222")
    assert first.root.is_dir()
    assert second.root != first.root
    third = host.prepare(folder, host=machine, boot_id="33333333-4444")
    assert list(folder.iterdir()) == [third.root]


def test_an_interrupted_skeleton_is_made_again(machine, tmp_path, monkeypatch):
    folder = tmp_path / "skeletons"

    def fail(entries: list[host.Entry], root: Path) -> None:
        (root / "half").touch()
        raise OSError(28, "no space left")

    monkeypatch.setattr(host, "write", fail)
    with pytest.raises(OSError, match="no space"):
        host.prepare(folder, host=machine, boot_id="11111111-2222")
    assert list(folder.iterdir()) == []
    monkeypatch.undo()
    assert (host.prepare(folder, host=machine, boot_id="11111111-2222").root / "etc/hosts").exists()
