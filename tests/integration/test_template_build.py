"""Templates built from directories, OCI image layouts and what mmdebstrap writes."""

import gzip
import hashlib
import io
import json
import os
import platform
import stat
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from roost.isolation.templates import Templates
from roost.isolation.templates.catalog import BuildOptions
from roost.model.errors import Conflict, InvalidArgument, NotFound, Unavailable

HERE = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]


@pytest.fixture
def templates(tmp_path) -> Templates:
    return Templates(tmp_path / "data")


def layer(*members: tuple[str, str, bytes | str]) -> bytes:
    """A tar of (name, kind, content or target); kinds: dir, file, link, hard."""
    kinds = {"dir": tarfile.DIRTYPE, "file": tarfile.REGTYPE, "link": tarfile.SYMTYPE, "hard": tarfile.LNKTYPE}
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, kind, content in members:
            member = tarfile.TarInfo(name)
            member.type = kinds[kind]
            member.mode = 0o755 if kind == "dir" else 0o644
            if isinstance(content, str):
                member.linkname = content
                archive.addfile(member)
            else:
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


class ImageWriter:
    """Writes an image layout as a directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "blobs/sha256").mkdir(parents=True)
        (root / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')

    def blob(self, content: bytes) -> dict[str, object]:
        digest = hashlib.sha256(content).hexdigest()
        (self.root / "blobs/sha256" / digest).write_bytes(content)
        return {"digest": f"sha256:{digest}", "size": len(content)}

    def document(self, content: object) -> dict[str, object]:
        return self.blob(json.dumps(content).encode())

    def image(
        self, *layers: bytes, architecture: str = HERE, config: dict[str, object] | None = None
    ) -> dict[str, object]:
        described = {"os": "linux", "architecture": architecture, "config": config or {}}
        manifest = {"config": self.document(described), "layers": [self.blob(content) for content in layers]}
        return self.document(manifest)

    def index(self, *descriptors: dict[str, object]) -> Path:
        (self.root / "index.json").write_text(json.dumps({"manifests": descriptors}))
        return self.root


@pytest.fixture
def image(tmp_path) -> ImageWriter:
    return ImageWriter(tmp_path / "image")


def test_the_host_is_built_in(templates):
    template = templates.get("host")
    assert (template.root / "etc/passwd").read_text().startswith("root:")
    assert not (template.root / "etc/shadow").exists()
    assert template.binds[0] == (Path("/usr"), "/usr")
    assert [info.name for info in templates.list()] == ["host"]
    with pytest.raises(Conflict, match="built in"):
        templates.remove("host")
    with pytest.raises(InvalidArgument, match="host"):
        templates.build("/usr", "host")


def test_an_unknown_name_is_answered_with_those_that_exist(templates, tmp_path):
    (tmp_path / "tree").mkdir()
    templates.build(str(tmp_path / "tree"), "tiny")
    for name in ("other", "../tiny", ".lock", ""):
        with pytest.raises(NotFound, match="host, tiny"):
            templates.get(name)


def test_a_directory_is_copied_with_owners_modes_and_links(templates, tmp_path):
    tree = tmp_path / "tree"
    (tree / "bin").mkdir(parents=True)
    program = tree / "bin/tool"
    program.write_bytes(b"x" * (3 << 20))
    os.chown(program, 0, 65535)
    program.chmod(0o4755)
    os.link(program, tree / "bin/same-tool")
    (tree / "bin/sh").symlink_to("/bin/tool")
    os.mkfifo(tree / "pipe")
    os.mknod(tree / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    lines: list[str] = []
    info = templates.build(str(tree), "tiny", report=lines.append)
    root = templates.get("tiny").root
    copied = (root / "bin/tool").lstat()
    assert (copied.st_uid, copied.st_gid, stat.S_IMODE(copied.st_mode)) == (0, 65535, 0o4755)
    assert (root / "bin/same-tool").lstat().st_ino == copied.st_ino
    assert (root / "bin/sh").readlink() == Path("/bin/tool")
    assert not (root / "pipe").exists()
    assert not (root / "null").exists()
    assert all((root / name).is_dir() for name in (".roost", "proc", "dev", "sys", "tmp", "run", "code", "opt", "root"))
    assert info.bytes == 3 << 20
    assert info.kind == "directory"
    assert templates.list()[1] == info


def test_a_root_with_one_static_program_runs(templates, tmp_path):
    tree = tmp_path / "tree"
    (tree / "bin").mkdir(parents=True)
    source = b'#include <stdio.h>\nint main(void) { puts("from the template"); return 0; }'
    subprocess.run(["gcc", "-static", "-x", "c", "-o", tree / "bin/hello", "-"], input=source, check=True)
    templates.build(str(tree), "tiny")
    ran = subprocess.run(["chroot", templates.get("tiny").root, "/bin/hello"], capture_output=True, check=True)
    assert ran.stdout == b"from the template\n"


def test_layers_lie_over_each_other(templates, image):
    lower = layer(
        ("usr/", "dir", ""),
        ("usr/lib/", "dir", ""),
        ("lib", "link", "usr/lib"),
        ("usr/lib/one", "file", b"1"),
        ("usr/lib/two", "file", b"2"),
        ("etc/keep", "file", b"kept"),
        ("etc/gone", "file", b"gone"),
        ("cache/old/deep", "file", b"old"),
    )
    upper = layer(
        ("lib/three", "file", b"3"),
        ("lib/one", "file", b"one"),
        ("usr/lib/four", "hard", "usr/lib/one"),
        ("etc/.wh.gone", "file", b""),
        ("etc/.wh.never", "file", b""),
        ("cache/", "dir", ""),
        ("cache/new", "file", b"new"),
        ("cache/.wh..wh..opq", "file", b""),
    )
    config = {"Env": ["PATH=/bin:/usr/bin", "MODE=a=b"], "Entrypoint": ["/run"], "Cmd": ["me"], "WorkingDir": "/work"}
    image.index(image.image(lower, gzip.compress(upper), config=config))
    info = templates.build(str(image.root), "layered")
    root = templates.get("layered").root
    files = {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file() and not p.is_symlink()}
    assert files == {
        "usr/lib/one": b"one",
        "usr/lib/two": b"2",
        "usr/lib/three": b"3",
        "usr/lib/four": b"one",
        "etc/keep": b"kept",
        "cache/new": b"new",
    }
    assert (root / "lib").readlink() == Path("usr/lib")
    assert info.environment == {"PATH": "/bin:/usr/bin", "MODE": "a=b"}
    assert info.command == ("/run", "me")
    assert info.working_dir == "/work"
    assert templates.list()[1] == info


def test_a_whiteout_leaves_what_its_own_layer_wrote(templates, image):
    lower = layer(("a/", "dir", ""), ("a/x", "file", b"lower"))
    upper = layer(("a/x", "file", b"upper"), ("a/.wh.x", "file", b""), ("a/.wh..wh..opq", "file", b""))
    image.index(image.image(lower, upper))
    templates.build(str(image.root), "layered")
    assert (templates.get("layered").root / "a/x").read_bytes() == b"upper"


@pytest.mark.parametrize("compress", [["zstd", "-q"], ["gzip"]])
def test_an_archive_of_a_layout_with_compressed_layers(templates, image, tmp_path, compress):
    packed = subprocess.run(
        [*compress, "-c"], input=layer(("hello", "file", b"hi")), capture_output=True, check=True
    ).stdout
    image.index(image.image(packed))
    archive = tmp_path / "image.tar"
    subprocess.run(["tar", "-C", image.root, "-cf", archive, "."], check=True)
    templates.build(str(archive), "packed")
    assert (templates.get("packed").root / "hello").read_bytes() == b"hi"


def test_the_image_of_this_machine_is_chosen_and_attestations_are_not(templates, image):
    foreign = {**image.image(layer(("f", "file", b"foreign"))), "platform": {"os": "linux", "architecture": "s390x"}}
    own = {**image.image(layer(("f", "file", b"own"))), "platform": {"os": "linux", "architecture": HERE}}
    note = {**image.image(layer(("n", "file", b""))), "platform": {"os": "unknown", "architecture": "unknown"}}
    image.index(image.document({"manifests": [foreign, own, note]}))
    templates.build(str(image.root), "mine")
    assert (templates.get("mine").root / "f").read_bytes() == b"own"
    image.index(foreign)
    with pytest.raises(InvalidArgument, match="linux/s390x"):
        templates.build(str(image.root), "theirs")
    image.index(own, image.image(layer(("other", "file", b""))))
    with pytest.raises(InvalidArgument, match="several images"):
        templates.build(str(image.root), "both")


def test_a_blob_with_another_content_is_refused(templates, image):
    content = layer(("f", "file", b"honest"))
    image.index(image.image(content))
    digest = hashlib.sha256(content).hexdigest()
    (image.root / "blobs/sha256" / digest).write_bytes(layer(("f", "file", b"forged")))
    with pytest.raises(InvalidArgument, match=digest):
        templates.build(str(image.root), "forged")
    assert [info.name for info in templates.list()] == ["host"]


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ("[]", "not a JSON object"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"manifests": 1}', "manifests"),
        ('{"manifests": [1]}', "no sha256 digest"),
        ('{"manifests": [{"digest": "sha256:../../../../etc/passwd"}]}', "no sha256 digest"),
        ('{"manifests": [{"digest": "sha256:' + "0" * 64 + '"}]}', "no readable"),
        ('{"manifests": []}', "no image"),
    ],
)
def test_a_malformed_index_is_refused(templates, image, document, reason):
    (image.root / "index.json").write_text(document)
    with pytest.raises(InvalidArgument, match=reason):
        templates.build(str(image.root), "bad")


def test_what_is_no_source_is_refused_with_the_reason(templates, tmp_path):
    (tmp_path / "note.txt").write_text("no archive")
    with pytest.raises(InvalidArgument, match="no tar file"):
        templates.build(str(tmp_path / "note.txt"), "bad")
    with tarfile.open(tmp_path / "plain.tar", "w"):
        pass
    with pytest.raises(InvalidArgument, match="skopeo"):
        templates.build(str(tmp_path / "plain.tar"), "bad")
    with pytest.raises(InvalidArgument, match="neither a directory"):
        templates.build(str(tmp_path / "Absent File"), "bad")
    with pytest.raises(InvalidArgument, match="data directory"):
        templates.build(str(tmp_path), "bad")
    for name in ("", "UPPER", "../up", "a" * 64, ".hidden"):
        with pytest.raises(InvalidArgument, match="name"):
            templates.build(str(tmp_path), name)


def test_existing_names_are_kept_unless_replaced(templates, tmp_path):
    for number in (1, 2):
        (tmp_path / f"tree{number}").mkdir()
        (tmp_path / f"tree{number}" / "f").write_text(str(number))
    templates.build(str(tmp_path / "tree1"), "t")
    with pytest.raises(Conflict, match="exists"):
        templates.build(str(tmp_path / "tree2"), "t")
    assert (templates.get("t").root / "f").read_text() == "1"
    templates.build(str(tmp_path / "tree2"), "t", BuildOptions(replace=True))
    assert (templates.get("t").root / "f").read_text() == "2"
    templates.remove("t")
    with pytest.raises(NotFound):
        templates.remove("t")
    assert sorted(p.name for p in (tmp_path / "data/templates").iterdir()) == [".lock"]


def test_a_template_in_use_is_neither_replaced_nor_removed(templates, tmp_path):
    (tmp_path / "tree").mkdir()
    (tmp_path / "target").mkdir()
    templates.build(str(tmp_path / "tree"), "t")
    script = f"mount --bind {templates.get('t').root} {tmp_path / 'target'}; echo ready; read end"
    user = subprocess.Popen(["unshare", "--mount", "sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert user.stdout.readline() == b"ready\n"
        with pytest.raises(Conflict, match="in use"):
            templates.remove("t")
        with pytest.raises(Conflict, match="in use"):
            templates.build(str(tmp_path / "tree"), "t", BuildOptions(replace=True))
        assert templates.get("t").root.is_dir()
    finally:
        user.communicate(b"\n")
    templates.remove("t")


def test_what_a_killed_build_left_is_removed_by_the_next(templates, tmp_path):
    left = tmp_path / "data/templates/.building-t"
    (left / "root").mkdir(parents=True)
    (left / "root" / "half").touch()
    (tmp_path / "tree").mkdir()
    templates.build(str(tmp_path / "tree"), "t")
    assert not (templates.get("t").root / "half").exists()
    assert not left.exists()


def mmdebstrap(folder: Path, script: str) -> None:
    """Put a stand-in for mmdebstrap on the PATH: what it does here is write a tar file, or fail."""
    folder.mkdir()
    program = folder / "mmdebstrap"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def test_a_suite_is_taken_from_what_mmdebstrap_writes(templates, tmp_path, monkeypatch):
    own = ("etc/hostname", "file", b"this-machine\n")
    (tmp_path / "suite.tar").write_bytes(layer(("etc/debian_version", "file", b"99\n"), own))
    mmdebstrap(tmp_path / "bin", f'echo "$@" >{tmp_path}/arguments; cat {tmp_path}/suite.tar')
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    info = templates.build("bookworm", "deb", BuildOptions(packages=("curl", "git")))
    assert (templates.get("deb").root / "etc/debian_version").read_text() == "99\n"
    assert (templates.get("deb").root / "etc/hostname").read_text() == "localhost\n"
    assert (info.kind, info.source) == ("debian", "bookworm")
    arguments = (tmp_path / "arguments").read_text().split()
    assert arguments == ["--variant=minbase", "--format=tar", "--quiet", "--include=curl,git", "bookworm", "-"]
    with pytest.raises(InvalidArgument, match="package"):
        templates.build("bookworm", "deb2", BuildOptions(packages=("--hook=x",)))
    with pytest.raises(InvalidArgument, match="variant"):
        templates.build("bookworm", "deb2", BuildOptions(variant="custom"))


def test_mmdebstraps_failure_and_absence_are_told(templates, tmp_path, monkeypatch):
    mmdebstrap(tmp_path / "bin", "echo 'E: no such suite' >&2; exit 25")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    with pytest.raises(Unavailable, match="no such suite"):
        templates.build("nowhere", "deb")
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with pytest.raises(Unavailable, match="apt-get install -y mmdebstrap"):
        templates.build("bookworm", "deb")
    assert [info.name for info in templates.list()] == ["host"]


def command(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "roost.isolation.templates", *arguments, "--data-dir", tmp_path / "data"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )


def test_the_command(tmp_path):
    (tmp_path / "tree").mkdir()
    built = command(tmp_path, "build", str(tmp_path / "tree"), "t")
    assert (built.returncode, built.stdout) == (0, f"t: 1 entries, 0 MiB, from directory {tmp_path}/tree\n")
    assert [line.split()[0] for line in command(tmp_path, "list").stdout.splitlines()] == ["host", "t"]
    again = command(tmp_path, "build", str(tmp_path / "tree"), "t")
    assert (again.returncode, again.stderr) == (
        1,
        "roost template: The template t exists; remove it first or replace it.\n",
    )
    assert command(tmp_path, "remove", "t").returncode == 0
    assert command(tmp_path, "remove", "t").returncode == 1
