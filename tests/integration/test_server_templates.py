"""Templates end to end: root file systems without Python, from a directory and an image, with functions in them."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.server import NOTHING, Remains, Server, running, zip_base64

ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
#: A web server in a language that Roost does not bring along.
WEB = r"""
use strict; use IO::Socket::INET;
my $listener = IO::Socket::INET->new(
    LocalAddr => '127.0.0.1', LocalPort => $ENV{FC_SERVER_PORT}, Listen => 10, ReuseAddr => 1) or die $!;
while (my $client = $listener->accept) {
    my $request = <$client> // next;
    my $length = 0;
    while (my $line = <$client>) { last if $line =~ /^\r?\n$/; $length = $1 if $line =~ /^content-length: (\d+)/i; }
    read($client, my $body, $length) if $length;
    my ($method, $path) = split ' ', $request;
    my $text = join '|', $method, $path, $ENV{MOOD} // '', $ENV{FROM_IMAGE} // '', scalar reverse($body // '');
    print $client "HTTP/1.1 200 OK\r\ncontent-length: @{[length $text]}\r\nconnection: close\r\n\r\n$text";
    close $client;
}
"""
LOOK = """
import json, os, subprocess, sys
def handler(event, context):
    found = [n for d in ("/bin", "/usr/bin") if os.path.isdir(d) for n in os.listdir(d) if "python" in n]
    import asyncio, ctypes, hashlib, sqlite3, ssl, zlib
    with open("/marker", "a") as f:
        f.write("+")
    return json.dumps({
        "pythons": found,
        "interpreter": sys.executable,
        "shell": subprocess.run(["sh", "-c", "echo from $0"], capture_output=True, text=True).stdout,
        "marker": open("/marker").read(),
        "root": sorted(os.listdir("/")),
        "digest": hashlib.sha256(event).hexdigest(),
        "mood": os.environ.get("FROM_IMAGE", ""),
    })
"""


def libraries(program: str) -> Iterable[str]:
    """The shared libraries of a program of this machine, its loader among them."""
    listed = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout
    return [word for line in listed.splitlines() for word in line.split() if word.startswith("/")]


def copy(root: Path, *files: str) -> None:
    """Copy files of this machine, links followed, to the same paths below `root`."""
    for file in files:
        target = root / file.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(file, target)


@pytest.fixture(scope="module")
def shell_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root file system with a shell, and nothing else."""
    root = tmp_path_factory.mktemp("shell-root")
    shell = str(Path("/bin/sh").resolve())
    copy(root, shell, *libraries(shell))
    (root / "bin").mkdir(exist_ok=True)
    if not (root / "bin/sh").exists():
        (root / "bin/sh").symlink_to(shell)
    (root / "marker").write_text("template")
    return root


def layer(tree: Path, *, whiteouts: Iterable[str] = ()) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name in sorted(os.listdir(tree)):
            archive.add(tree / name, name)
        for name in whiteouts:
            archive.addfile(tarfile.TarInfo(name))
    return gzip.compress(out.getvalue(), compresslevel=1)


def write_image(root: Path, layers: list[bytes], config: dict[str, Any]) -> Path:
    """An OCI image layout."""
    blobs = root / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def blob(content: bytes, kind: str) -> dict[str, Any]:
        digest = hashlib.sha256(content).hexdigest()
        (blobs / digest).write_bytes(content)
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": f"sha256:{digest}", "size": len(content)}

    described = {"os": "linux", "architecture": ARCHITECTURE, "config": config}
    manifest = {
        "schemaVersion": 2,
        "config": blob(json.dumps(described).encode(), "config.v1+json"),
        "layers": [blob(content, "layer.v1.tar+gzip") for content in layers],
    }
    index = {"schemaVersion": 2, "manifests": [blob(json.dumps(manifest).encode(), "manifest.v1+json")]}
    (root / "index.json").write_text(json.dumps(index))
    (root / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return root


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory, shell_root: Path) -> Path:
    """A shell, then Perl with a web server; the second layer takes the first one's marker away."""
    folder = tmp_path_factory.mktemp("image")
    upper = folder / "upper"
    copy(upper, "/usr/bin/perl", *libraries("/usr/bin/perl"))
    modules = f"/usr/lib/{sysconfig.get_config_var('MULTIARCH') or platform.machine() + '-linux-gnu'}/perl-base"
    shutil.copytree(modules, upper / modules.lstrip("/"))
    (upper / "srv").mkdir()
    (upper / "srv/web.pl").write_text(WEB)
    config = {
        "Env": ["FROM_IMAGE=yes", "MOOD=plain", "PATH=/usr/bin:/bin"],
        "Entrypoint": ["/usr/bin/perl"],
        "Cmd": ["/srv/web.pl"],
    }
    return write_image(folder / "layout", [layer(shell_root), layer(upper, whiteouts=[".wh.marker"])], config)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, shell_root: Path, image: Path) -> Iterator[Server]:
    data_dir = tmp_path_factory.mktemp("roost") / "data"
    build(data_dir, shell_root, "shell")
    build(data_dir, image, "perl")
    with running(data_dir) as server:
        yield server
    assert Remains.of(data_dir) == NOTHING


def build(data_dir: Path, source: Path, name: str) -> None:
    done = run_build(data_dir, source, name)
    assert done.returncode == 0, done.stderr


def run_build(data_dir: Path, source: Path, name: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "roost.isolation.templates", "build", str(source), name, *options]
    return subprocess.run([*command, "--data-dir", str(data_dir)], capture_output=True, text=True, check=False)


def look(server: Server, name: str, event: bytes = b"") -> dict[str, Any]:
    reply = server.invoke(name, event)
    assert "x-fc-error-type" not in reply.headers, reply.text
    return dict(reply.json())


def container(image: str, **fields: Any) -> dict[str, Any]:
    return {"runtime": "custom-container", "customContainerConfig": {"image": image, **fields}, "timeout": 20}


def test_a_python_handler_runs_where_there_is_no_python(server: Server) -> None:
    server.deploy("bare", {"index.py": LOOK}, roost={"template": "shell"})
    found = look(server, "bare", b"x")
    assert found["pythons"] == []
    assert found["interpreter"].startswith("/.roost/")
    assert found["shell"] == "from sh\n"
    assert found["marker"] == "template+"
    assert "srv" not in found["root"]
    assert found["digest"] == hashlib.sha256(b"x").hexdigest()


def test_what_a_room_writes_stays_out_of_the_template(server: Server) -> None:
    server.deploy("writer", {"index.py": LOOK}, roost={"template": "shell"})
    assert [look(server, "writer")["marker"] for _ in range(2)] == ["template+", "template++"]
    server.deploy("reader", {"index.py": LOOK}, roost={"template": "shell"})
    assert look(server, "reader")["marker"] == "template+"
    assert (server.data_dir / "templates/shell/root/marker").read_text() == "template"


def test_an_images_layers_and_environment(server: Server) -> None:
    server.deploy("layers", {"index.py": LOOK}, roost={"template": "perl"})
    found = look(server, "layers")
    assert (found["pythons"], found["shell"], found["mood"]) == ([], "from sh\n", "yes")
    assert found["marker"] == "+"  # the layer's whiteout removed the one below


def test_a_container_is_a_template_with_its_own_start_command(server: Server) -> None:
    server.deploy("box", {"readme": "x"}, **container("perl"), environmentVariables={"MOOD": "bright"})
    with server.client() as client:
        assert client.get("/box/some/path?x=1").text == "GET|/some/path?x=1|bright|yes|"
    assert server.invoke("box", b"abc").text == "POST|/invoke|bright|yes|cba"


def test_a_container_needs_no_code(server: Server) -> None:
    body = {"functionName": "codeless", "handler": "x", **container("perl")}
    with server.client() as client:
        made = client.post("/2023-03-30/functions", json=body)
        assert made.status_code == 200, made.text
        assert client.get("/codeless/").text == "GET|/|plain|yes|"


def test_a_container_takes_an_entrypoint_and_a_port(server: Server) -> None:
    entry = {"entrypoint": ["/bin/sh", "-c"], "command": ["exec perl /srv/web.pl"], "port": 8080}
    server.deploy("entered", {"readme": "x"}, **container("perl", **entry))
    with server.client() as client:
        assert client.get("/entered/").text == "GET|/|plain|yes|"


def test_an_unknown_template_is_refused_at_deployment(server: Server) -> None:
    for fields in (container("missing"), {"runtime": "python3", "roost": {"template": "missing"}}):
        code = {"zipFile": zip_base64({"index.py": LOOK})}
        body = {"functionName": "nowhere", "handler": "index.handler", "code": code, **fields}
        with server.client() as client:
            reply = client.post("/2023-03-30/functions", json=body)
        assert reply.status_code in (400, 404)
        assert "missing" in reply.json()["Message"]


def test_a_template_in_use_is_not_replaced_but_a_function_moves_to_another(
    server: Server, shell_root: Path, tmp_path: Path
) -> None:
    build(server.data_dir, shell_root, "first")
    server.deploy("moving", {"index.py": LOOK}, roost={"template": "first"})
    assert look(server, "moving")["marker"] == "template+"
    changed = tmp_path / "changed"
    shutil.copytree(shell_root, changed, symlinks=True)
    (changed / "marker").write_text("second")
    refused = run_build(server.data_dir, changed, "first", "--replace")
    assert (refused.returncode, "in use" in refused.stderr) == (1, True)
    build(server.data_dir, changed, "second")
    server.deploy("moving", {"index.py": LOOK}, roost={"template": "second"})
    assert look(server, "moving")["marker"] == "second+"
