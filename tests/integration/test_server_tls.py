"""TLS by certificate files: requests, a renewed certificate, files that are no good; and no open door without keys."""

from __future__ import annotations

import datetime
import os
import signal
import socket
import ssl
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from roost.config import ConfigError, load
from roost.gateway.tls import Certificate
from roost.model.errors import Unavailable
from tests.support.server import NOTHING, Remains, running


def make(folder: Path, serial: int) -> None:
    """A certificate of its own for localhost, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(issuer_name=name, subject_name=name, public_key=key.public_key(), serial_number=serial)
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


def shown(port: int) -> int:
    """The serial number of the certificate that the server shows."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection(("127.0.0.1", port)) as raw, context.wrap_socket(raw) as secure:
        return x509.load_der_x509_certificate(secure.getpeercert(binary_form=True) or b"").serial_number


def test_a_server_with_a_certificate(tmp_path: Path) -> None:
    make(tmp_path, 1)
    config = f'[tls]\ncert = "{tmp_path}/cert.pem"\nkey = "{tmp_path}/key.pem"\n'
    with running(tmp_path / "data", config=config) as server:
        assert "https://" in server.ready_line
        port = int(server.url.rpartition(":")[2])
        trusting = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
        with httpx.Client(base_url=f"https://localhost:{port}", verify=trusting, trust_env=False) as client:
            assert client.get("/healthz").json() == {"status": "ok"}
            # A body larger than any buffer, both ways of the control plane.
            content = os.urandom(3 << 20)
            assert client.put("/roost/objects/inbox/key", content=content).status_code == 200
            assert client.get("/roost/objects/inbox/key").content == content
            assert client.get("/no-such-function/").json()["Code"] == "FunctionNotFound"
        with pytest.raises(httpx.ConnectError), httpx.Client(trust_env=False) as stranger:
            stranger.get(f"https://localhost:{port}/healthz")  # nobody vouches for it there
        with pytest.raises(httpx.HTTPError), httpx.Client(trust_env=False) as plain:
            plain.get(f"http://localhost:{port}/healthz")
        assert shown(port) == 1
        make(tmp_path, 2)
        os.kill(server.pid, signal.SIGHUP)
        server.until(lambda: shown(port) == 2)
        (tmp_path / "key.pem").write_text("no key")
        os.kill(server.pid, signal.SIGHUP)
        server.until(lambda: "stays as it was" in server.log())
        assert shown(port) == 2
    assert Remains.of(tmp_path / "data") == NOTHING


def test_a_certificate_follows_its_files(tmp_path: Path) -> None:
    make(tmp_path, 1)
    certificate = Certificate(tmp_path / "cert.pem", tmp_path / "key.pem")
    assert not certificate.reload_if_changed()
    make(tmp_path, 2)
    assert certificate.reload_if_changed() and not certificate.reload_if_changed()
    (tmp_path / "cert.pem").write_text("none")
    with pytest.raises(Unavailable, match="can't be used"):
        certificate.reload_if_changed()
    assert not certificate.reload_if_changed()  # told once
    (tmp_path / "cert.pem").unlink()
    with pytest.raises(Unavailable, match="can't be read"):
        certificate.reload()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"host": "0.0.0.0"}, "refuses to listen"),
        ({"host": "::"}, "refuses to listen"),
        ({"host": "192.0.2.1", "tls": {"cert": "/c", "key": "/k"}}, "refuses to listen"),
        ({"tls": {"cert": "/c"}}, "go together"),
        ({"tls": {"cert": "c", "key": "k"}}, "absolute"),
        ({"tls": {"certificate": "/c"}}, "tls.certificate"),
        ({"quota": {"sandboxes": -1}}, "quota.sandboxes"),
        ({"quota": {"sandboxes": "1"}}, "quota.sandboxes"),
        ({"quota": {"rooms": 1}}, "quota.rooms"),
    ],
)
def test_settings_that_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(None, settings, {})


def test_settings_that_are_taken() -> None:
    assert load(None, {"host": "0.0.0.0", "keys": {"a": "b"}}, {}).host == "0.0.0.0"
    assert load(None, {"quota": {"sandboxes": 3}}, {}).quota.sandboxes == 3
