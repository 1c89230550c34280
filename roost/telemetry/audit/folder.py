"""The files of an audit log, in a folder of their own. Blocking.

key             the private key, 32 bytes; `key.pub` the public one, for whoever verifies elsewhere
head.json       the newest signed head
<number>.jsonl  records, named by the number of their first
"""

from __future__ import annotations

import base64
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from roost.model.errors import NotFound, Unavailable
from roost.telemetry.audit.chain import Broken, Head, read_head

HEAD = "head.json"
PUBLIC = "key.pub"
_KEY = "key"
_RECORDS = "*.jsonl"
_KEY_BYTES = 32


def replace(path: Path, data: bytes) -> None:
    """Whole or not at all, also when the process is killed meanwhile."""
    draft = path.with_name(f".{path.name}.new")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    draft.rename(path)


def signing_key(folder: Path) -> Ed25519PrivateKey:
    """The folder's, made where there is none. Raises Unavailable for a file that is no key."""
    path = folder / _KEY
    if not path.exists():
        replace(path, secrets.token_bytes(_KEY_BYTES))
    raw = path.read_bytes()
    if len(raw) != _KEY_BYTES:
        raise Unavailable(f"The key of the audit log {path} has {len(raw)} bytes, not {_KEY_BYTES}.")
    key = Ed25519PrivateKey.from_private_bytes(raw)
    public = base64.b64encode(key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)) + b"\n"
    if not (folder / PUBLIC).exists() or (folder / PUBLIC).read_bytes() != public:
        replace(folder / PUBLIC, public)
    return key


def public_key(path: Path) -> Ed25519PublicKey:
    """Raises NotFound, Unavailable."""
    try:
        return Ed25519PublicKey.from_public_bytes(base64.b64decode(path.read_bytes()))
    except FileNotFoundError:
        raise NotFound(f"There is no public key {path}.") from None
    except (OSError, ValueError) as error:
        raise Unavailable(f"{path} is no public key: {error}.") from error


def head_of(folder: Path, key: Ed25519PublicKey) -> Head:
    """Raises Broken."""
    try:
        return read_head((folder / HEAD).read_bytes(), key)
    except FileNotFoundError:
        raise Broken(f"The head {folder / HEAD} is missing.") from None


def record_files(folder: Path) -> list[Path]:
    """The oldest first."""
    return sorted(folder.glob(_RECORDS))


def records(folder: Path) -> Iterator[tuple[str, bytes]]:
    """(file and line, record), the oldest first. What a killed server left without an end of its line is left out."""
    for file in record_files(folder):
        with file.open("rb") as opened:
            for number, line in enumerate(opened, 1):
                if line.endswith(b"\n"):
                    yield f"{file.name}:{number}", line[:-1]


def first_record(file: Path) -> bytes:
    """b"" in an empty file."""
    with file.open("rb") as opened:
        return opened.readline().rstrip(b"\n")


def last_record(file: Path) -> bytes:
    """The last that has an end of its line; b"" without any."""
    last = b""
    with file.open("rb") as opened:
        for line in opened:
            last = line if line.endswith(b"\n") else last
    return last.rstrip(b"\n")
