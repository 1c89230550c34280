"""What was uploaded last, so that an unchanged package is not sent again."""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path


class Note:
    """About one function of one server. It is only a hint: it counts when the server still has that very package."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def says(self, digest: str, checksum: str) -> bool:
        """Whether the package with this digest is the one that the server reports with this checksum."""
        try:
            noted = json.loads(self._path.read_text())
        except (OSError, ValueError):
            return False
        return bool(checksum) and noted == {"digest": digest, "checksum": checksum}

    def write(self, digest: str, checksum: str) -> None:
        """Remember it; without a place to write to, the next deploy uploads again."""
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text(json.dumps({"digest": digest, "checksum": checksum}))


class Uploads:
    """A folder of notes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def note(self, url: str, function: str) -> Note:
        """The note about `function` of the server at `url`."""
        return Note(self._folder / hashlib.sha256(f"{url}\0{function}".encode()).hexdigest()[:32])
