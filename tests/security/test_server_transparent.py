"""What programs that know no proxy reach from a room with transparent egress, and what they can't do to it."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from e2b import Sandbox

from tests.integration.test_server_audit import shown
from tests.support.brokers import PASSWORD, USER, RedisServer
from tests.support.sdk import Sdk
from tests.support.server import NOTHING, Remains, Server, running

TRANSPARENT = {"egress": "transparent"}
MODULE = "tests.support.naming_server"
CONFIG = 'egress_private = ["127.0.0.0/8", "::1"]\n'
PROBE = """
import errno, json, os, socket, urllib.error, urllib.request
os.environ.clear()
def tcp(host, port, setup=lambda sock: None):
    try:
        with socket.create_connection((host, port), 5) as sock:
            setup(sock)
            sock.sendall(b"hello")
            return sock.recv(100).decode() or "closed"
    except OSError as error:
        return type(error).__name__
def web(url):
    try:
        return urllib.request.urlopen(url, timeout=20).status
    except urllib.error.HTTPError as error:
        return error.code
def udp(host, port):
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(5)
            sock.connect((host, port))
            sock.send(b"hello")
            return sock.recv(100).decode()
    except OSError as error:
        return type(error).__name__
def refused(family, kind, protocol=0, *option):
    try:
        with socket.socket(family, kind, protocol) as sock:
            if option:
                sock.setsockopt(*option)
    except OSError as error:
        return errno.errorcode[error.errno]
    return "allowed"
"""


@pytest.fixture(scope="module")
def canary() -> Iterator[int]:
    """Answers with what it is told."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=answer, args=(connection,), daemon=True).start()

        def answer(connection: socket.socket) -> None:
            with connection:
                while data := connection.recv(1000):
                    connection.sendall(data)

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    data_dir: Path = tmp_path_factory.mktemp("roost") / "data"
    with running(data_dir, config=f'{CONFIG}sandbox_egress = "transparent"\n', module=MODULE) as server:
        yield server
    assert Remains.of(data_dir) == NOTHING


def sandbox(server: Server, *allow: str) -> Sandbox:
    options = {"api_url": server.url, "sandbox_url": server.url, "api_key": "e2b_" + "0" * 40}
    return Sandbox.create("base", network={"allow_out": list(allow)}, **options)


def run(box: Sandbox, source: str) -> Any:
    box.files.write("/tmp/probe.py", f"{PROBE}\nprint(json.dumps({source}))\n")
    return json.loads(box.commands.run("python3 /tmp/probe.py").stdout)


def test_a_client_that_knows_no_proxy_reaches_its_server(server: Server, tmp_path: Path) -> None:
    broker = RedisServer(tmp_path / "redis")
    broker.start()
    try:
        with sandbox(server, f"good.test:{broker.port}") as box:
            command = f"env -i /usr/bin/redis-cli -h %s -p {broker.port} --user {USER} --pass {PASSWORD} ping"
            assert box.commands.run(command % "good.test").stdout.strip() == "PONG"
            other = box.commands.run(f"{command % 'other.test'} || true")
            assert "PONG" not in other.stdout
    finally:
        broker.stop()


def test_what_is_not_allowed_is_not_reached(server: Server, canary: int) -> None:
    own = server.url.rpartition(":")[2]
    with sandbox(server, f"good.test:{canary}", f"inner.test:{canary}") as box:
        assert run(box, f"tcp('good.test', {canary})") == "hello"
        assert run(box, f"tcp('good.test', {own})") == "ConnectionResetError"
        assert run(box, f"tcp('other.test', {canary})") == "gaierror"
        assert run(box, f"tcp('inner.test', {canary})") == "ConnectionResetError"  # it leads to a private network
        assert (
            run(box, f"[tcp(host, {canary}) for host in ('127.0.0.1', '::1', '0.0.0.0')]")
            == ["ConnectionRefusedError"] * 3
        )
        assert (
            run(box, "[tcp(host, 22) for host in ('1.1.1.1', '169.254.169.254', '2606:4700::1', '10.0.0.1')]")
            == ["ConnectionResetError"] * 4
        )
        assert (
            run(box, "[udp(host, port) for host in ('1.1.1.1', '2606:4700::1') for port in (443, 5)]")
            == ["PermissionError"] * 4
        )


def test_nothing_is_reached_without_rules(server: Server, canary: int) -> None:
    with sandbox(server) as box:
        assert run(box, f"[tcp('good.test', {canary}), tcp('1.1.1.1', {canary})]") == [
            "gaierror",
            "ConnectionResetError",
        ]


def test_a_room_has_no_power_over_its_way_out(server: Server, canary: int) -> None:
    with sandbox(server, f"good.test:{canary}") as box:
        assert run(box, "refused(socket.AF_NETLINK, socket.SOCK_RAW, 12)") == "EAFNOSUPPORT"  # nftables
        assert run(box, "refused(socket.AF_PACKET, socket.SOCK_RAW)") == "EAFNOSUPPORT"
        assert run(box, "refused(socket.AF_INET, socket.SOCK_RAW, 1)") == "EPERM"
        assert run(box, "refused(socket.AF_INET, socket.SOCK_DGRAM, 1)") == "EACCES"  # ping
        stream = "socket.AF_INET, socket.SOCK_STREAM, 0"
        assert run(box, f"refused({stream}, socket.SOL_SOCKET, socket.SO_MARK, 1)") == "EPERM"
        assert run(box, f"refused({stream}, socket.SOL_IP, 19, 1)") == "EPERM"  # IP_TRANSPARENT
        assert run(box, f"refused({stream}, socket.SOL_IP, 64, bytes(100))") in ("EPERM", "ENOPROTOOPT")  # iptables
        for path in ("/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv4/ip_local_port_range"):
            said = box.commands.run(f"echo 1 > {path} || true", user="root")
            assert "Read-only" in said.stderr or "denied" in said.stderr, path
        # An address that stands for a name can be bound, and hears nothing.
        spoof = f"""(lambda listener: (listener.bind((socket.gethostbyname('good.test'), {canary})), listener.listen(),
            tcp('good.test', {canary})))(socket.socket())[2]"""
        assert run(box, spoof) == "hello"


def test_rules_change_and_cut(server: Server, canary: int) -> None:
    with sandbox(server, f"good.test:{canary}") as box, server.client() as client:
        path = f"/sandboxes/{box.sandbox_id}/network"
        hold = f"""{PROBE}
with socket.create_connection(("good.test", {canary}), 5) as sock:
    sock.sendall(b"x")
    sock.recv(1)
    open("/tmp/held", "w").close()
    sock.settimeout(60)
    try:
        print(json.dumps(sock.recv(1).decode()))
    except OSError as error:
        print(json.dumps(type(error).__name__))
"""
        box.files.write("/tmp/hold.py", hold)
        held = box.commands.run("python3 /tmp/hold.py", background=True)
        server.until(lambda: box.files.exists("/tmp/held"))
        assert client.put(path, json={"allowOut": [f"other.test:{canary}"]}).status_code == 204
        assert json.loads(held.wait().stdout) in ("", "ConnectionResetError")
        assert run(box, f"[tcp('good.test', {canary}), tcp('other.test', {canary})]") == ["gaierror", "hello"]


def test_the_audit_has_it(server: Server, canary: int) -> None:
    with sandbox(server, f"good.test:{canary}") as box:
        run(box, f"[tcp('good.test', {canary}), tcp('secret.bad.test', 1), tcp('1.1.1.1', 7)]")
        actor = f"instance/{box.sandbox_id}"
        wanted = {(f"good.test:{canary}", "allowed"), ("secret.bad.test:53", "denied"), ("1.1.1.1:7", "denied")}

        def told() -> set[tuple[str, str]]:
            return {(one["target"], one["outcome"]) for one in shown(server.data_dir) if one["actor"] == actor}

        server.until(lambda: wanted <= told())


def test_it_outlives_the_server_and_a_pause(server: Server, canary: int) -> None:
    with sandbox(server, f"good.test:{canary}") as box:
        assert run(box, f"tcp('good.test', {canary})") == "hello"
        port = server.url.rpartition(":")[2]
        server.kill()
        server.start(port=port)
        assert run(box, f"[tcp('good.test', {canary}), tcp('other.test', {canary})]") == ["hello", "gaierror"]
        box.pause()
        box.connect()
        assert run(box, f"[tcp('good.test', {canary}), tcp('other.test', {canary})]") == ["hello", "gaierror"]


def test_a_function_says_how_it_reaches_what_it_may(server: Server, canary: int) -> None:
    fc = Sdk(server.url)
    code = f"{PROBE}\ndef handler(event, context):\n    return tcp('good.test', {canary})\n"
    allow = {"allowOut": [f"good.test:{canary}"]}
    server.deploy("through", {"index.py": code}, roost={**allow, **TRANSPARENT})
    server.deploy("by-proxy", {"index.py": code}, roost=allow)
    assert fc.reply("through") == b"hello"
    assert fc.reply("by-proxy") == b"gaierror"
    server.deploy("through", {"index.py": code}, roost={**allow, "egress": "proxy"})
    assert fc.reply("through") == b"gaierror"
    with server.client() as client:
        bad = client.put("/2023-03-30/functions/through", json={"roost": {"egress": "veth"}})
        assert bad.status_code == 400
        assert "egress" in bad.text


def test_a_sandbox_says_how_it_reaches_what_it_may(tmp_path: Path, canary: int) -> None:
    with running(tmp_path / "data", config=CONFIG, module=MODULE) as server, server.client() as client:
        for said, reached in ((TRANSPARENT, "hello"), ({}, "gaierror")):
            network = {"allowOut": [f"good.test:{canary}"], **said}
            made = client.post("/sandboxes", json={"templateID": "base", "network": network})
            assert made.status_code == 201, made.text
            box = Sandbox.connect(
                made.json()["sandboxID"], api_url=server.url, sandbox_url=server.url, api_key="e2b_" + "0" * 40
            )
            assert run(box, f"tcp('good.test', {canary})") == reached
            assert box.get_info().sandbox_id == box.sandbox_id  # the client takes what it does not know
            # What is said once stays when the rules change.
            assert client.put(f"/sandboxes/{box.sandbox_id}/network", json={"allowOut": ["*"]}).status_code == 204
            assert run(box, f"tcp('good.test', {canary})") == reached
            box.kill()
        bad = client.post("/sandboxes", json={"templateID": "base", "network": {"egress": "veth"}})
        assert bad.status_code == 400
        assert "network.egress" in bad.text
    assert Remains.of(tmp_path / "data") == NOTHING


def test_a_setting_that_makes_no_sense_is_named(tmp_path: Path) -> None:
    server = Server(tmp_path / "data", config='sandbox_egress = "veth"\n')
    with pytest.raises(AssertionError, match="did not start"):
        server.start()
    assert "'sandbox_egress' is one of proxy, transparent" in server.log()


def test_labels_close_this_door_too(server: Server, canary: int) -> None:
    options = {"api_url": server.url, "sandbox_url": server.url, "api_key": "e2b_" + "0" * 40}
    for start, said in ((["private"], "ConnectionResetError"), (["untrusted"], "hello"), ([], "hello")):
        network = {"allowOut": [f"good.test:{canary}"], "taint": {"mode": "block", "start": start}}
        with server.client() as client:
            made = client.post("/sandboxes", json={"templateID": "base", "network": network}).json()
            with Sandbox.connect(made["sandboxID"], **options) as box:
                assert run(box, f"tcp('good.test', {canary})") == said
                labels = client.get(f"/sandboxes/{box.sandbox_id}").json()["taint"]["labels"]
                assert labels == (start or ["untrusted"])
