"""TLS from certificate files, read again when they change: a renewed certificate needs no restart."""

from __future__ import annotations

import ssl
from pathlib import Path

from roost.model.errors import Unavailable


class Certificate:
    """A server's certificate chain and its key, in PEM. `context` stays the same; new connections see what was read
    last."""

    def __init__(self, cert: Path, key: Path) -> None:
        """Raises Unavailable when the files can't be read, or don't belong together."""
        self._files = (cert, key)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.context.set_alpn_protocols(["http/1.1"])
        self._stamps = self._stamp()
        self._load(self.context)

    def reload(self) -> None:
        """Read the files again. Raises Unavailable and changes nothing when they are no good."""
        self._stamps = self._stamp()
        self._load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))  # half a pair must not get into the one in use
        self._load(self.context)

    def reload_if_changed(self) -> bool:
        """The same, when a file is another than before. Whether it was. Raises as `reload` does, once for a change."""
        if self._stamp() == self._stamps:
            return False
        self.reload()
        return True

    def _stamp(self) -> tuple[tuple[int, int, int], ...]:
        try:
            found = [file.stat() for file in self._files]
        except OSError as error:
            raise Unavailable(f"{error.filename} can't be read: {error.strerror}.") from error
        return tuple((status.st_ino, status.st_mtime_ns, status.st_size) for status in found)

    def _load(self, context: ssl.SSLContext) -> None:
        cert, key = self._files
        try:
            # Without a callback OpenSSL would ask the terminal for the key's password.
            context.load_cert_chain(cert, key, password=_no_password)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            reason = getattr(error, "reason", None) or error
            raise Unavailable(f"The certificate {cert} with the key {key} can't be used: {reason}.") from error


def _no_password() -> str:
    raise ValueError("the key has a password")
