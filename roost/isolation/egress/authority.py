"""One room's own certificate authority: for hosts whose requests the proxy has to look into, and for no other room.

Its key never enters the room. It is kept beside the room's sockets, so that a restarted server goes on with it.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import ssl
from collections import OrderedDict
from pathlib import Path

import certifi
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

#: In the folder that the room sees at /run/roost: what the host trusts, and this authority.
BUNDLE = "ca.pem"
_BUNDLE_IN_ROOM = f"/run/roost/{BUNDLE}"
_KEPT = "authority.pem"
_SYSTEM = Path("/etc/ssl/certs/ca-certificates.crt")
_YEARS = 10
_SERVED = 64  # hosts
_VARIABLES = (
    "AWS_CA_BUNDLE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO", "NODE_EXTRA_CA_CERTS", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE",
)  # fmt: skip


def authority_environment() -> dict[str, str]:
    """Where programs in the room look for what they trust."""
    return dict.fromkeys(_VARIABLES, _BUNDLE_IN_ROOM)


class Authority:
    """Made by `open`."""

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self._certificate = certificate
        self._key = key
        self._leaf_key = ec.generate_private_key(ec.SECP256R1())
        self._contexts: OrderedDict[str, ssl.SSLContext] = OrderedDict()

    @classmethod
    def open(cls, run_dir: Path, shown: Path) -> Authority:
        """That of the room of `run_dir`, made if there is none; `shown` is the folder that the room sees.
        Raises OSError."""
        kept = run_dir / _KEPT
        try:
            pem = kept.read_bytes()
            key = serialization.load_pem_private_key(pem, None)
            assert isinstance(key, ec.EllipticCurvePrivateKey)
            made = cls(x509.load_pem_x509_certificate(pem), key)
        except (OSError, ValueError):  # there is none, or the server ended in the middle of it
            made = cls._new(run_dir.name)
            _write(kept, _pem_key(made._key) + _pem(made._certificate), 0o600)
        trusted = _SYSTEM if _SYSTEM.exists() else Path(certifi.where())
        _write(shown / BUNDLE, trusted.read_bytes() + b"\n" + _pem(made._certificate), 0o644)
        return made

    @classmethod
    def _new(cls, room: str) -> Authority:
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name(f"Roost, for {room}"[:64])
        builder = _builder(name, name, key.public_key(), days=365 * _YEARS)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        return cls(builder.sign(key, hashes.SHA256()), key)

    def context(self, name: str) -> ssl.SSLContext:
        """To be the server of this name."""
        if (context := self._contexts.get(name)) is None:
            context = self._contexts[name] = self._made_context(name)
            if len(self._contexts) > _SERVED:
                self._contexts.popitem(last=False)
        self._contexts.move_to_end(name)
        return context

    def _made_context(self, name: str) -> ssl.SSLContext:
        subject = _name(name if len(name) <= 64 else "Roost")
        builder = _builder(subject, self._certificate.subject, self._leaf_key.public_key(), days=365)
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
        leaf = builder.add_extension(usage, critical=False).sign(self._key, hashes.SHA256())
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.set_alpn_protocols(["http/1.1"])
        _load(context, _pem_key(self._leaf_key) + _pem(leaf))
        return context


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, *, days: int
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _pem_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _load(context: ssl.SSLContext, pem: bytes) -> None:
    """Python takes files alone; this one is in memory."""
    fd = os.memfd_create("roost-certificate")
    try:
        os.write(fd, pem)
        context.load_cert_chain(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def _write(path: Path, data: bytes, mode: int) -> None:
    """All of it, or nothing."""
    draft = path.with_name(f"{path.name}.new")
    with contextlib.suppress(FileNotFoundError):
        draft.unlink()
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
    os.chmod(draft, mode)  # noqa: PTH101 - whatever the umask
    draft.rename(path)
