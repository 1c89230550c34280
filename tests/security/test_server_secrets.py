"""A secret is used by a sandbox and by a function, and neither can find its value; by E2B's own SDK."""

from __future__ import annotations

import contextlib
import json
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from alibabacloud_fc20230330 import models as fc
from e2b import InvalidArgumentException, Sandbox, Secret

from roost.config import Config
from tests.integration.test_server_audit import shown
from tests.support.sdk import Sdk, refused
from tests.support.server import NOTHING, Remains, Server, running
from tests.support.tls import certificate

VALUE = "sk-live-5f1c2a7790de"

#: In a room: as any program that takes its proxy and what it trusts from the environment.
FETCH = """
import json, os, urllib.error, urllib.request
def fetch(url, **headers):
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ""
    try:
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=20).read().decode()
    except urllib.error.HTTPError as error:
        return f"{error.code} {error.read().decode()}"
    except OSError as error:
        return repr(error)
"""
#: Looks for a text in environments, command lines, memory and files.
SEARCH = r"""
import glob, os, sys
needle = sys.stdin.buffer.readline().strip()
needle = needle[::-1]  # so that the search does not find itself
found = []
for name in glob.glob("/proc/[0-9]*"):
    if name == f"/proc/{os.getpid()}":
        continue
    for part in ("environ", "cmdline"):
        try:
            if needle in open(f"{name}/{part}", "rb").read():
                found.append(f"{name}/{part}")
        except OSError:
            pass
    try:
        memory = open(f"{name}/mem", "rb", 0)
        for line in open(f"{name}/maps"):
            start, end = (int(text, 16) for text in line.split()[0].split("-"))
            if line.split()[1][0] == "r" and end - start < 1 << 28:
                try:
                    memory.seek(start)
                    if needle in memory.read(end - start):
                        found.append(f"{name}/mem")
                except (OSError, ValueError, OverflowError):
                    pass
    except OSError:
        pass
for top in ("/run", "/tmp", "/home", "/etc", "/root", "/var/log"):
    for folder, _, files in os.walk(top):
        for file in files:
            try:
                if needle in open(os.path.join(folder, file), "rb").read():
                    found.append(os.path.join(folder, file))
            except OSError:
                pass
print(sorted(set(found)))
"""


@dataclass
class Upstream:
    """An API with TLS that says back what it got."""

    port: int
    seen: list[dict[str, str]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}/"

    @property
    def place(self) -> str:
        return f"localhost:{self.port}"


@pytest.fixture(scope="module")
def certified(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return certificate(tmp_path_factory.mktemp("tls"), "localhost")


@pytest.fixture(scope="module")
def upstream(certified: tuple[Path, Path]) -> Iterator[Upstream]:
    class Api(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            made.seen.append({name.lower(): value for name, value in self.headers.items()})
            body = json.dumps({"path": self.path, "headers": dict(self.headers)}).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Api) as http:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certified)
        http.socket = context.wrap_socket(http.socket, server_side=True)
        made = Upstream(port=http.server_port)
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield made
        http.shutdown()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, certified: tuple[Path, Path]) -> Iterator[Server]:
    data_dir: Path = tmp_path_factory.mktemp("roost") / "data"
    config = 'egress_private = ["127.0.0.0/8", "::1"]\n'
    with running(data_dir, config=config, env={"SSL_CERT_FILE": str(certified[0])}) as server:
        yield server
    assert Remains.of(data_dir) == NOTHING


@pytest.fixture
def options(server: Server) -> dict[str, Any]:
    return {"api_url": server.url, "sandbox_url": server.url, "api_key": "e2b_" + "0" * 40}


@pytest.fixture
def secret(options: dict[str, Any], upstream: Upstream) -> Iterator[str]:
    made = Secret.create("api-key", VALUE, metadata={"hosts": upstream.place}, **options)
    yield made.name
    Secret.destroy("api-key", **options)


def run(box: Sandbox, source: str) -> Any:
    box.files.write("/tmp/probe.py", f"{FETCH}\nprint(json.dumps({source}))\n")
    return json.loads(box.commands.run("python3 /tmp/probe.py").stdout)


def search(box: Sandbox, needle: str) -> str:
    """What the sandbox's user finds, and what its root does."""
    box.files.write("/tmp/search.py", SEARCH)
    command = f"echo {needle[::-1]} | python3 /tmp/search.py"
    return "".join(box.commands.run(command, user=user).stdout.strip() for user in ("user", "root"))


def test_a_sandbox_uses_a_secret_and_has_a_placeholder_alone(
    server: Server, upstream: Upstream, secret: str, options: dict[str, Any]
) -> None:
    upstream.seen.clear()
    filled = Secret.fill(secret)
    with Sandbox.create("base", envs={"KEY": filled}, network={"allow_out": [upstream.place]}, **options) as box:
        background = box.commands.run("sleep 1000", background=True)
        said = run(box, f"fetch({upstream.url!r}, Authorization='Bearer ' + os.environ['KEY'])")
        assert upstream.seen[-1]["authorization"] == f"Bearer {VALUE}"
        assert json.loads(said)["headers"]["authorization"] == f"Bearer {'*' * len(VALUE)}"
        assert search(box, VALUE) == "[][]"
        assert filled in box.commands.run("env").stdout
        # positive control: the same search finds what is there, in memory and in environments
        control = box.commands.run("sleep 1000", background=True, envs={"CONTROL": VALUE[:9] + VALUE[:9]})
        found = search(box, VALUE[:9] + VALUE[:9])
        assert "/environ" in found
        assert "/mem" in found
        background.kill()
        control.kill()
        actor = f"instance/{box.sandbox_id}"
        wanted = ("secret.use", f"{secret} for {upstream.place}", "allowed")
        server.until(
            lambda: wanted in {(one["action"], one["target"], one["outcome"]) for one in shown(server.data_dir)}
        )
        assert actor in {one["actor"] for one in shown(server.data_dir) if one["action"] == "secret.use"}
    assert VALUE not in server.log()
    assert VALUE not in json.dumps(shown(server.data_dir))


def test_a_secret_is_nowhere_on_the_host_but_sealed_and_in_the_server_s_memory(
    server: Server, upstream: Upstream, secret: str, options: dict[str, Any]
) -> None:
    network: Any = {
        "allow_out": [upstream.place],
        "rules": {upstream.place: [{"transform": {"headers": {"X-Plain": VALUE[::-1]}}}]},
    }
    with Sandbox.create("base", envs={"KEY": Secret.fill(secret)}, network=network, **options) as box:
        run(box, f"fetch({upstream.url!r}, Authorization=os.environ['KEY'])")
        assert upstream.seen[-1]["x-plain"] == VALUE[::-1]
        # a program that ends with a core leaves none
        box.commands.run("cd /tmp && ulimit -c unlimited; bash -c 'kill -SEGV $$' || true")
        assert box.commands.run("ls -a /tmp /home/user | grep -c core || true").stdout.strip() == "0"
        folders = (server.data_dir, Path("/run/roost") / Config(data_dir=server.data_dir).run_dir.name)
        files = [file for folder in folders for file in folder.rglob("*") if file.is_file() and not file.is_symlink()]
        searched = []
        for file in files:
            with contextlib.suppress(FileNotFoundError):  # written anew meanwhile, under another name
                if file.stat().st_size < 1 << 27:
                    assert not _has(file.read_bytes()), file
                    searched.append(file)
        assert len(searched) > 5
        process = Path(f"/proc/{server.pid}")
        assert not _has((process / "cmdline").read_bytes()) and not _has((process / "environ").read_bytes())
        limit = next(line for line in (process / "limits").read_text().splitlines() if line.startswith("Max core"))
        assert limit.split()[4] == "1"


def _has(data: bytes) -> bool:
    return VALUE.encode() in data or VALUE[::-1].encode() in data


def test_a_secret_that_was_used_makes_a_room_private(
    server: Server, upstream: Upstream, secret: str, options: dict[str, Any]
) -> None:
    upstream.seen.clear()
    ask = f"fetch({upstream.url!r}, Authorization=os.environ['KEY'])"
    plain = f"fetch({upstream.url!r})"
    for start, asked in ((["untrusted"], (plain, ask)), ([], (ask, plain))):
        network = {"allowOut": [upstream.place], "taint": {"mode": "block", "start": start}}
        body = {"templateID": "base", "envVars": {"KEY": Secret.fill(secret)}, "network": network}
        with server.client() as client:
            made = client.post("/sandboxes", json=body).json()["sandboxID"]
            with Sandbox.connect(made, **options) as box:
                first, second = (run(box, question) for question in asked)
                assert first.startswith("{")
                assert second.startswith("403 This room has private data")
                assert client.get(f"/sandboxes/{made}").json()["taint"]["labels"] == ["private", "untrusted"]


def test_rules_put_headers_in_and_change_live(
    server: Server, upstream: Upstream, secret: str, options: dict[str, Any]
) -> None:
    upstream.seen.clear()
    headers = {"X-Api-Key": Secret.fill(secret), "X-Plain": "hello"}
    network: Any = {
        "allow_out": lambda ctx: list(ctx.rules.keys()),
        "rules": {upstream.place: [{"transform": {"headers": headers}}]},
    }
    with Sandbox.create("base", network=network, **options) as box:
        said = run(box, f"fetch({upstream.url!r}, **{{'X-Api-Key': 'mine'}})")
        assert upstream.seen[-1]["x-api-key"] == VALUE
        assert upstream.seen[-1]["x-plain"] == "hello"
        assert VALUE not in said
        info = box.get_info(**options)
        assert info.network is not None
        assert info.network["rules"][upstream.place] == [{"transform": {"headers": headers}}]
        # a room by itself can't ask for the secret elsewhere in a request
        run(box, f"fetch({upstream.url!r}, Other={Secret.fill(secret)!r})")
        assert upstream.seen[-1]["other"] == VALUE  # at its host it may: the rule sends it there anyway
        box.update_network(
            {"allow_out": [upstream.place], "rules": {upstream.place: [{"transform": {"headers": {"X-Plain": "two"}}}]}}
        )
        run(box, f"fetch({upstream.url!r})")
        assert upstream.seen[-1]["x-plain"] == "two"
        assert "x-api-key" not in upstream.seen[-1]


def test_a_restarted_server_goes_on_with_the_same_authority(
    server: Server, upstream: Upstream, secret: str, options: dict[str, Any]
) -> None:
    network: Any = {"allow_out": [upstream.place]}
    with Sandbox.create("base", envs={"KEY": Secret.fill(secret)}, network=network, **options) as box:
        ask = f"fetch({upstream.url!r}, Authorization=os.environ['KEY'])"
        run(box, ask)
        port = server.url.rpartition(":")[2]
        server.kill()
        server.start(port=port)
        upstream.seen.clear()
        assert "path" in run(box, ask)
        assert upstream.seen[-1]["authorization"] == VALUE
        Secret.update(secret, "rotated-0123", metadata={"hosts": upstream.place}, **options)
        run(box, ask)
        assert upstream.seen[-1]["authorization"] == "rotated-0123"
        Secret.update(secret, "rotated-0123", metadata={"hosts": "elsewhere.test"}, **options)
        # its host is not looked into any more: the room's own way to trust has to know the server
        box.commands.run("true")
        assert "CERTIFICATE_VERIFY_FAILED" in run(box, ask)
        assert upstream.seen[-1]["authorization"] == "rotated-0123"


def test_a_function_uses_a_secret(server: Server, upstream: Upstream, secret: str) -> None:
    upstream.seen.clear()
    sdk = Sdk(server.url)
    code = f"{FETCH}\ndef handler(event, context):\n    return fetch({upstream.url!r}, Key=os.environ['KEY'])\n"
    server.deploy(
        "keyed",
        {"index.py": code},
        environmentVariables={"KEY": Secret.fill(secret)},
        roost={"allowOut": [upstream.place]},
    )
    said = json.loads(sdk.reply("keyed", b""))
    assert upstream.seen[-1]["key"] == VALUE
    assert VALUE not in json.dumps(said)


def test_methods_and_paths_of_https_are_held(upstream: Upstream, options: dict[str, Any]) -> None:
    network: Any = {"allow_out": [f"GET {upstream.place}/v1/*"]}
    with Sandbox.create("base", network=network, **options) as box:
        assert json.loads(run(box, f"fetch({upstream.url!r} + 'v1/a')"))["path"] == "/v1/a"
        assert run(box, f"fetch({upstream.url!r} + 'v2/a')").startswith("403 ")


def test_the_room_has_no_key_of_its_authority(upstream: Upstream, secret: str, options: dict[str, Any]) -> None:
    network: Any = {"allow_out": [upstream.place]}
    with Sandbox.create("base", envs={"KEY": Secret.fill(secret)}, network=network, **options) as box:
        listed = box.commands.run("ls /run/roost; grep -l PRIVATE -r /run/roost || true", user="root").stdout.split()
        assert sorted(listed) == ["ca.pem", "index.sock", "proxy.sock"]
        assert box.commands.run("touch /run/roost/x || echo no", user="root").stdout.strip() == "no"


def test_what_makes_no_sense_is_refused(options: dict[str, Any]) -> None:
    def rules(host: str, name: str = "a", value: str = "b") -> Any:
        return {"rules": {host: [{"transform": {"headers": {name: value}}}]}}

    for network in (rules("10.0.0.0/8"), rules("a.test", "Host"), rules("a.test", "a", "b\nc")):
        with pytest.raises(Exception, match=r"is no host|can be set|that of a header"):
            Sandbox.create("base", network=network, **options)
    with pytest.raises(Exception, match="is no host"):
        Secret.create("bad", "value", metadata={"hosts": "http://"}, **options)
    with pytest.raises(InvalidArgumentException):
        Secret.fill("")


def test_a_session_has_a_network_and_replacements_of_its_own(server: Server, upstream: Upstream) -> None:
    upstream.seen.clear()
    sdk = Sdk(server.url)
    code = (
        f"{FETCH}\ndef handler(event, context):\n    return fetch({upstream.url!r}, Authorization='Bearer FAKE-KEY')\n"
    )
    server.deploy(
        "sessions",
        {"index.py": code},
        sessionAffinity="HEADER_FIELD",
        sessionAffinityConfig='{"affinityHeaderFieldName": "x-session"}',
        instanceIsolationMode="SESSION_EXCLUSIVE",
    )
    transform = fc.SessionNetworkRuleTransform(
        headers={"x-added": "yes"},
        header_value_replacements=[fc.SessionNetworkHeaderValueReplacement(placeholder="FAKE-KEY", value=VALUE)],
    )
    rules = {upstream.place: [fc.SessionNetworkRule(transform=transform)]}
    network = fc.CreateSessionNetworkConfig(allow_out=[upstream.place], rules=rules)
    body = fc.CreateSessionInput(session_id="ann", network=network)
    made = sdk.client.create_session("sessions", fc.CreateSessionRequest(body=body)).body
    [shown] = made.network.rules[upstream.place]
    assert shown.transform.header_value_replacements[0].value == "***"

    def ask(session: str) -> str:
        with server.client() as client:
            return client.post(
                "/2023-03-30/functions/sessions/invocations", headers={"x-session": session}, content=b"x"
            ).text

    said = ask("ann")
    assert upstream.seen[-1]["authorization"] == f"Bearer {VALUE}"
    assert upstream.seen[-1]["x-added"] == "yes"
    assert VALUE not in said
    assert "URLError" in ask("bob")  # whose session says nothing has what the function has: nothing
    change = fc.UpdateSessionNetworkConfig(allow_out=["elsewhere.test"], rules={})
    body = fc.UpdateSessionInput(network=change)
    sdk.client.update_session("sessions", "ann", fc.UpdateSessionRequest(body=body))
    assert "403" in ask("ann")
    count = len(upstream.seen)
    sdk.client.update_session(
        "sessions",
        "ann",
        fc.UpdateSessionRequest(
            body=fc.UpdateSessionInput(network=fc.UpdateSessionNetworkConfig(allow_out=[upstream.place], rules=rules))
        ),
    )
    ask("ann")
    assert len(upstream.seen) == count + 1
    stored = (server.data_dir / "roost.db").read_bytes() + (server.data_dir / "roost.db-wal").read_bytes()
    assert VALUE.encode() not in stored
    # it outlives the server, sealed
    port = server.url.rpartition(":")[2]
    server.kill()
    server.start(port=port)
    ask("ann")
    assert upstream.seen[-1]["authorization"] == f"Bearer {VALUE}"
    late = refused(
        lambda: sdk.client.update_session(
            "sessions", "bob", fc.UpdateSessionRequest(body=fc.UpdateSessionInput(network=change))
        )
    )
    assert late.status_code == 409
