"""Secrets at rest: AES-256-GCM with a key file of the server's. Who has the database alone has no secret."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from roost.model.errors import Unavailable

_KEY_BYTES = 32
_NONCE_BYTES = 12


class Sealer:
    """`open()` before use."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._cipher: AESGCM | None = None

    def open(self, *, may_make: bool = True) -> None:
        """Where there is no file one is made, readable by its owner alone, if it may be.

        Raises Unavailable when it is missing, can't be read, or is not a key."""
        try:
            if not self._file.exists():
                if not may_make:
                    raise Unavailable(
                        f"The key file {self._file} is missing, and keys or secrets in the store are sealed with it: "
                        "put it back."
                    )
                self._make()
            key = self._file.read_bytes()
        except OSError as error:
            raise Unavailable(f"The key file {self._file} can't be used: {error.strerror}.") from error
        if len(key) != _KEY_BYTES:
            raise Unavailable(f"The key file {self._file} has {len(key)} bytes, not {_KEY_BYTES}.")
        self._cipher = AESGCM(key)

    def seal(self, text: str, purpose: str) -> bytes:
        """`purpose` says whose it is: what was sealed for another does not open."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return nonce + self._ready().encrypt(nonce, text.encode(), purpose.encode())

    def unseal(self, sealed: bytes, purpose: str) -> str:
        """Raises Unavailable when another key sealed it, or it was changed."""
        try:
            opened = self._ready().decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], purpose.encode())
        except (InvalidTag, ValueError):
            raise Unavailable(f"{purpose} can't be opened with the key file {self._file}.") from None
        return opened.decode()

    def _ready(self) -> AESGCM:
        if self._cipher is None:
            raise RuntimeError("the sealer is not open")
        return self._cipher

    def _make(self) -> None:
        """Whole or not at all, also when the server is killed meanwhile."""
        draft = self._file.with_suffix(".new")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, secrets.token_bytes(_KEY_BYTES))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        draft.rename(self._file)
        folder = os.open(self._file.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
