"""Templates built with the official SDK, in rooms with their daemon, and what sandboxes of them find."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from e2b import Sandbox, Template, wait_for_file, wait_for_port
from e2b.exceptions import BuildException, SandboxException, TemplateException
from e2b.template.types import TemplateBuildStatus
from e2b_code_interpreter import Sandbox as CodeSandbox

from tests.support.interpreter import data_packages
from tests.support.server import NOTHING, Remains, Server, running

SETTINGS = 'sandbox_memory_mb = 512\nsandbox_disk_mb = 256\n[images]\n"python:3.11" = "base"\n'


@pytest.fixture(scope="module")
def roost(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    data_dir: Path = tmp_path_factory.mktemp("roost") / "data"
    data_dir.mkdir()
    (data_dir / "packages").symlink_to(data_packages().parent)
    with running(data_dir, config=SETTINGS) as server:
        yield server
    assert Remains.of(data_dir) == NOTHING


@pytest.fixture
def name() -> str:
    return f"built-{uuid4().hex[:8]}"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "main.py").write_text("print('hello from the template')\n")
    (tmp_path / "app" / "data.txt").write_text("data\n")
    os.symlink("data.txt", tmp_path / "app" / "link.txt")
    return tmp_path


def test_a_template_of_every_kind_of_step(name: str, files: Path) -> None:
    template = (
        Template(file_context_path=files)
        .from_base_image()
        .set_envs({"GREETING": "hello"})
        .set_envs({"TARGET": "$GREETING world"})
        .run_cmd("echo built by $(whoami) with $TARGET > built.txt")
        .run_cmd("echo rooted > /srv/rooted", user="root")
        .copy("app", "/opt/app", user="root", mode=0o755)
        .copy("app/*.txt", "texts/")
        .set_workdir("/home/user/work")
        .run_cmd("pwd > where; ls /opt/app | sort > listed")
        .make_dir("deep/er")
        .make_symlink("/opt/app/data.txt", "shortcut")
    )
    said: list[str] = []
    built = Template.build(
        template, name, cpu_count=1, memory_mb=256, on_build_logs=lambda line: said.append(str(line))
    )
    assert Template.exists(name)
    with Sandbox.create(name, timeout=60) as box:
        assert box.get_info().template_id == built.template_id
        assert box.files.read("/home/user/built.txt") == "built by user with hello world\n"
        assert box.files.read("/srv/rooted") == "rooted\n"
        found = box.commands.run(
            "pwd; cat where listed; echo $TARGET; cat shortcut; ls -d deep/er; stat -c %U:%a /opt/app"
        )
        assert found.stdout.splitlines() == [
            *("/home/user/work", "/home/user/work", "data.txt", "link.txt", "main.py"),
            *("hello world", "data", "deep/er", "root:755"),
        ]
        assert box.commands.run("python3 /opt/app/main.py").stdout == "hello from the template\n"
        assert box.files.read("/home/user/texts/data.txt") == "data\n"
    assert any("built.txt" in line for line in said)
    assert any("The template is ready" in line for line in said)


def test_users_start_and_ready_commands(name: str) -> None:
    template = (
        Template()
        .from_template("base")
        .set_user("app")
        .set_workdir("/srv/site")
        .set_envs({"PORT": "7000"})
        .run_cmd("echo served > index.html")
        .set_start_cmd("python3 -m http.server $PORT", wait_for_port(7000))
    )
    Template.build(template, name)
    with Sandbox.create(name, timeout=60) as box:
        assert box.commands.run("whoami; pwd").stdout == "app\n/srv/site\n"
        assert box.commands.run("curl -s http://127.0.0.1:7000/index.html").stdout == "served\n"
        (fork,) = (box for box in box.fork(timeout=60) if isinstance(box, Sandbox))
        assert fork.commands.run("curl -s http://127.0.0.1:7000/index.html").stdout == "served\n"
        fork.kill()


def test_names_tags_and_builds(name: str) -> None:
    def versioned(version: str) -> Template:
        return Template().from_base_image().run_cmd(f"echo {version} > version")

    first = Template.build(versioned("1"), f"{name}:v1")
    second = Template.build(versioned("2"), name, tags=["v2", "stable"])
    assert first.template_id == second.template_id
    tags = {tag.tag: tag.build_id for tag in Template.get_tags(name)}
    assert tags == {"v1": first.build_id, "v2": second.build_id, "stable": second.build_id}
    assert Template.assign_tags(f"{name}:v1", ["production", "stable"]).build_id == first.build_id
    for of, version in ((f"{name}:v1", "1"), (f"{name}:stable", "1"), (f"{name}:v2", "2"), (name, "2")):
        with Sandbox.create(of, timeout=60) as box:
            assert (of, box.files.read("version")) == (of, f"{version}\n")
    Template.remove_tags(name, ["v1", "stable"])
    with pytest.raises(TemplateException, match="404"):
        Template.remove_tags(name, "v1")
    with pytest.raises(SandboxException, match="404"):
        Sandbox.create(f"{name}:v1")
    for wrong in (":tag", f"{name}:"):
        with pytest.raises(TemplateException):
            Template.assign_tags(f"{name}:production", wrong)


def test_templates_on_templates_and_snapshots(name: str, roost: Server) -> None:
    with Sandbox.create("base", timeout=60) as box:
        box.files.write("from-snapshot", "1")
        box.create_snapshot(name=f"{name}-snap")
    Template.build(Template().from_template(f"{name}-snap").run_cmd("echo 2 > first"), f"{name}-one")
    Template.build(Template().from_template(f"{name}-one").run_cmd("echo 3 > second"), f"{name}-two")
    with httpx.Client(base_url=roost.url, trust_env=False, timeout=30) as client:
        for gone in (f"{name}-snap", f"{name}-one"):
            assert client.delete(f"/templates/{gone}").status_code == 204
            assert not Template.exists(gone)
    with Sandbox.create(f"{name}-two", timeout=60) as box:
        assert box.commands.run("cat from-snapshot first second").stdout == "12\n3\n"
    assert len(list((roost.data_dir / "snapshots").iterdir())) >= 3


def test_what_was_built_before_is_not_built_again(name: str, files: Path) -> None:
    template = Template(file_context_path=files).from_base_image().copy("app", "app").run_cmd("date +%N > stamp")
    Template.build(template, f"{name}-a")
    Template.build(template, f"{name}-b")
    Template.build(template, f"{name}-c", skip_cache=True)
    stamps = []
    for variant in "abc":
        with Sandbox.create(f"{name}-{variant}", timeout=60) as box:
            stamps.append(box.files.read("stamp"))
    assert stamps[0] == stamps[1] != stamps[2]


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (Template().from_base_image().run_cmd("echo before").run_cmd("exit 7"), "step 2 failed with exit code 7"),
        (Template().from_base_image().run_cmd("whoami", user="nobody-here"), "invalid username: 'nobody-here'"),
        (Template().from_template("not-there"), "template 'not-there' not found"),
        (Template().from_image("registry.example.com/app:1"), "pulls no images"),
        (Template().from_base_image().set_start_cmd("exit 3", wait_for_file("/never")), "exit code 3"),
    ],
)
def test_builds_that_fail_say_why(name: str, template: Template, reason: str) -> None:
    with pytest.raises(BuildException, match=reason):
        Template.build(template, name)
    assert not Template.exists(name)


def test_from_a_dockerfile_whose_image_has_a_stand_in(name: str, files: Path) -> None:
    dockerfile = "FROM python:3.11\nWORKDIR /app\nCOPY app/main.py .\nENV A=1\nRUN echo $A > env\n"
    Template.build(Template(file_context_path=files).from_dockerfile(dockerfile), name)
    with Sandbox.create(name, timeout=60) as box:
        assert box.commands.run("cat /app/env; ls /app").stdout == "1\nenv\nmain.py\n"


def test_a_build_in_the_background(name: str) -> None:
    template = Template().from_base_image().run_cmd("sleep 1; echo done")
    started = Template.build_in_background(template, name)
    assert Template.get_build_status(started).status in (TemplateBuildStatus.BUILDING, TemplateBuildStatus.WAITING)
    while (status := Template.get_build_status(started)).status is TemplateBuildStatus.BUILDING:
        pass
    assert status.status is TemplateBuildStatus.READY
    texts = [entry.message for entry in status.log_entries]
    assert Template.get_build_status(started, logs_offset=len(texts)).log_entries == []
    assert any("done" in text for text in texts)


def test_uploads_need_their_link(name: str, roost: Server) -> None:
    with httpx.Client(base_url=roost.url, trust_env=False, timeout=30) as client:
        asked = client.post("/v3/templates", json={"name": name}).json()
        link = client.get(f"/templates/{asked['templateID']}/files/{'a' * 64}").json()
        assert link["present"] is False
        for change in (
            ("signature=", "signature=0"),
            ("account=", "account=x"),
            ("expires=", "expires=9"),
            ("aaa", "aab"),
        ):
            assert client.put(link["url"].replace(*change, 1), content=b"x").status_code == 403
        assert client.put(link["url"], content=b"x").status_code == 200
        assert client.get(f"/templates/{asked['templateID']}/files/{'a' * 64}").json()["present"] is True
        assert client.get(f"/templates/nothing/files/{'a' * 64}").status_code == 404
        build = f"/v2/templates/{asked['templateID']}/builds/{asked['buildID']}"
        assert client.post(build, json={"steps": []}).status_code == 400
        assert client.post(build.replace("/builds/", "/builds/x"), json={"fromTemplate": "base"}).status_code == 404
        for body in ({"name": "base"}, {"name": "no name"}, {"name": ""}, {"name": name, "tags": ["a b"]}):
            assert client.post("/v3/templates", json=body).status_code in (400, 409)
        assert client.delete("/templates/base").status_code == 403
        assert client.get("/templates/base").json()["buildCount"] == 1


def test_code_contexts_in_a_built_template(name: str) -> None:
    template = (
        Template().from_template("code-interpreter-v1").run_cmd("python3 -c 'import numpy; print(6 * 7)' > answer")
    )
    Template.build(template, name)
    with CodeSandbox.create(name, timeout=60) as box:
        assert box.run_code("import pandas; open('/home/user/answer').read()").text == r"42\n"
        (fork,) = (made for made in box.fork(timeout=60) if isinstance(made, CodeSandbox))
        assert fork.run_code("1 + 1").text == "2"
        assert fork.commands.run("curl -s -w '%{http_code}' http://localhost:49999/health -o /dev/null").stdout == "200"
        fork.kill()


def test_the_model_s_key_is_not_shown_to_a_build(name: str) -> None:
    template = Template().from_base_image().set_envs({"OPENAI_API_KEY": "sk-secret", "MINE": "1"}).run_cmd("env > seen")
    Template.build(template, name)
    with Sandbox.create(name, timeout=60) as box:
        seen = box.files.read("/home/user/seen")
        assert "MINE=1" in seen and "sk-secret" not in seen
        now = box.commands.run("env").stdout
        assert "OPENAI_BASE_URL=http://127.0.0.1" in now and "sk-secret" not in now


def test_httpbin() -> None:
    with Sandbox.create("httpbin", timeout=60) as box:
        told = box.commands.run("curl -s -H 'X-Mine: 1' 'http://127.0.0.1:8080/anything?a=1' -d b=2").stdout
        assert '"X-Mine": [\n' in told and '"b": [\n' in told
        codes = box.commands.run(
            "for path in get status/418 bytes/10 headers delay/0 redirect/2 gzip nothing status/9 post; do"
            " curl -s -o /dev/null -w '%{http_code} ' http://127.0.0.1:8080/$path; done"
        )
        assert codes.stdout.split() == ["200", "418", "200", "200", "200", "302", "200", "404", "400", "405"]


def test_built_templates_outlive_their_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(tmp_path / "data", config=SETTINGS).start()
    for _ in range(2):
        monkeypatch.setenv("E2B_API_URL", server.url)
        monkeypatch.setenv("E2B_SANDBOX_URL", server.url)
        if not Template.exists("kept"):
            Template.build(Template().from_base_image().set_envs({"A": "1"}).run_cmd("echo kept > file"), "kept:v1")
            cut_off = Template.build_in_background(Template().from_base_image().run_cmd("sleep 30"), "never")
            while Template.get_build_status(cut_off).status is TemplateBuildStatus.WAITING:
                pass
            server.kill()
            server = Server(tmp_path / "data", config=SETTINGS).start()
            continue
        assert not Template.exists("never")
        assert list((tmp_path / "data" / "builds" / "work").iterdir()) == []
        with Sandbox.create("kept:v1", timeout=60) as box:
            assert box.commands.run("cat file; echo $A").stdout == "kept\n1\n"
    assert server.stop() == 0
    assert Remains.of(tmp_path / "data") == NOTHING
