"""Real message brokers: programs of Debian packages, child processes on free ports, each in a directory of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

USER, PASSWORD = "roost", "s3cret"


@dataclass(frozen=True)
class Certificate:
    """Of 127.0.0.1, signed by itself: whoever trusts `file` as an authority trusts it."""

    file: Path
    key: Path

    @classmethod
    def make(cls, directory: Path) -> Certificate:
        made = cls(directory / "certificate.pem", directory / "key.pem")
        subprocess.run(
            [
                "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                "-days", "2", "-subj", "/CN=roost-test", "-addext", "subjectAltName=IP:127.0.0.1",
                "-keyout", str(made.key), "-out", str(made.file),
            ],
            check=True,
            capture_output=True,
        )  # fmt: skip
        return made


class Broker:
    """Starts in `directory`, and keeps what it has there when it starts again."""

    package = ""
    program = ""
    scheme = ""
    secure_scheme = ""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.port = free_port()
        self.secure_port = free_port()
        self.certificate = Certificate.make(directory)
        self._process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        raise NotImplementedError

    def environment(self) -> Mapping[str, str]:
        return {}

    @property
    def url(self) -> str:
        return f"{self.scheme}://{USER}:{PASSWORD}@127.0.0.1:{self.port}"

    @property
    def secure_url(self) -> str:
        return f"{self.secure_scheme}://{USER}:{PASSWORD}@127.0.0.1:{self.secure_port}"

    @property
    def wrong_url(self) -> str:
        return self.url.replace(PASSWORD, "wrong")

    def start(self, *, timeout: float = 120) -> None:
        log = (self.directory / "log").open("ab")
        self._process = subprocess.Popen(
            self.command(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=self.directory,
            env={"PATH": os.environ["PATH"], "HOME": str(self.directory), "LANG": "C.UTF-8", **self.environment()},
            start_new_session=True,
        )
        log.close()
        wait_until(self._answers, timeout, what=lambda: f"{self.program} did not start:\n{self.log()}")

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"{self.program} has ended:\n{self.log()}"
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
            return self.ready()
        return False

    def ready(self) -> bool:
        return True

    def log(self) -> str:
        return (self.directory / "log").read_text(errors="replace")[-4000:]

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> None:
        """It leads a session, so its children go with it."""
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


class RedisServer(Broker):
    package, program, scheme, secure_scheme = "redis-server", "redis-server", "redis", "rediss"

    def command(self) -> list[str]:
        return [
            find(self), "--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self.directory),
            "--appendonly", "yes", "--appendfsync", "always", "--save", "",
            "--tls-port", str(self.secure_port), "--tls-auth-clients", "no",
            "--tls-cert-file", str(self.certificate.file), "--tls-key-file", str(self.certificate.key),
            "--tls-ca-cert-file", str(self.certificate.file),
            "--user", USER, "on", f">{PASSWORD}", "~*", "&*", "+@all",
            "--requirepass", "another",  # the default user loads what was kept, and has to be able to
        ]  # fmt: skip

    def ready(self) -> bool:
        return self.log().rstrip().endswith("Ready to accept connections")


class NatsServer(Broker):
    """Speaks TLS on all connections or on none."""

    package, program, scheme, secure_scheme = "nats-server", "nats-server", "nats", "tls"
    extra: tuple[str, ...] = ()

    def command(self) -> list[str]:
        return [
            find(self), "--addr", "127.0.0.1", "--port", str(self.port), "--jetstream",
            "--store_dir", str(self.directory / "store"), "--user", USER, "--pass", PASSWORD, *self.extra,
        ]  # fmt: skip


class SecureNatsServer(NatsServer):
    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.secure_port = self.port
        self.extra = ("--tls", "--tlscert", str(self.certificate.file), "--tlskey", str(self.certificate.key))


class Mosquitto(Broker):
    package, program, scheme, secure_scheme = "mosquitto", "mosquitto", "mqtt", "mqtts"

    def command(self) -> list[str]:
        passwords = self.directory / "passwords"
        if not passwords.exists():
            subprocess.run(
                [find(self, "mosquitto_passwd"), "-c", "-b", str(passwords), USER, PASSWORD],
                check=True,
                capture_output=True,
            )
            passwords.chmod(0o600)
        config = self.directory / "mosquitto.conf"
        # As root it would drop to a user who may not write here.
        config.write_text(
            f"listener {self.port} 127.0.0.1\nlistener {self.secure_port} 127.0.0.1\n"
            f"certfile {self.certificate.file}\nkeyfile {self.certificate.key}\nallow_anonymous false\n"
            f"password_file {passwords}\nuser root\n"
            f"persistence true\npersistence_location {self.directory}/\n"
            "max_queued_messages 0\nlog_type warning\nlog_type error\n"
        )
        return [find(self), "-c", str(config)]


class RabbitServer(Broker):
    """With a name server for Erlang nodes (epmd) of its own, since that would otherwise stay behind as a daemon."""

    package, program = "rabbitmq-server", "/usr/lib/rabbitmq/bin/rabbitmq-server"
    scheme, secure_scheme = "amqp", "amqps"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._names_port = free_port()
        self._distribution_port = free_port()
        self._names: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        return [find(self)]

    def environment(self) -> Mapping[str, str]:
        home = self.directory
        (home / "rabbitmq.conf").write_text(
            f"listeners.tcp.1 = 127.0.0.1:{self.port}\ndefault_user = {USER}\ndefault_pass = {PASSWORD}\n"
            f"listeners.ssl.1 = 127.0.0.1:{self.secure_port}\nssl_options.verify = verify_none\n"
            f"ssl_options.certfile = {self.certificate.file}\nssl_options.keyfile = {self.certificate.key}\n"
            "log.console = false\nvm_memory_high_watermark.absolute = 512MB\ndisk_free_limit.absolute = 10MB\n"
        )
        (home / "plugins").write_text("[].\n")
        return {
            "ERL_EPMD_PORT": str(self._names_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_CONFIG_FILE": str(home / "rabbitmq"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(home / "plugins"),
            "RABBITMQ_NODENAME": f"roost-test-{self.port}@localhost",
            "RABBITMQ_DIST_PORT": str(self._distribution_port),
            "RABBITMQ_MNESIA_BASE": str(home / "mnesia"),
            "RABBITMQ_LOG_BASE": str(home / "logs"),
            "RABBITMQ_PID_FILE": str(home / "pid"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1 +sbwt none +sbwtdcpu none +sbwtdio none",
        }

    def start(self, *, timeout: float = 120) -> None:
        if self._names is None:
            self._names = subprocess.Popen(
                [find(self, "epmd"), "-port", str(self._names_port), "-address", "127.0.0.1"],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
        super().start(timeout=timeout)

    def close(self) -> None:
        if self._names is not None:
            self._names.kill()
            self._names.wait()
            self._names = None

    def ready(self) -> bool:
        return True


@contextlib.contextmanager
def broker(kind: type[Broker], directory: Path) -> Iterator[Broker]:
    """A running one, which is killed at the end."""
    made = kind(directory)
    try:
        made.start()
        yield made
    finally:
        made.kill()
        if isinstance(made, RabbitServer):
            made.close()


def find(kind: Broker, program: str = "") -> str:
    """The path of a broker's program. A test that needs it fails without it."""
    path = shutil.which(program or kind.program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    assert path, f"{program or kind.program} is not installed: apt-get install {kind.package} (make test does that)"
    return path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(
    condition: Callable[[], bool], timeout: float = 20, *, what: Callable[[], str] = lambda: "timed out"
) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, what()
        time.sleep(0.1)
