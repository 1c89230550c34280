"""Objects in buckets: their names, and what is known of one. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from roost.model.errors import InvalidArgument

#: As of OSS and S3. No bucket begins with a dot, so what a store keeps for itself may.
BUCKET = re.compile(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]")
MAX_KEY_BYTES = 1023
#: Of one part of a key between slashes: it is the name of a file where objects are files.
MAX_PART_BYTES = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectInfo:
    """One object as a store shows it. `stamp` is another one after every write, and the same one as long as nothing was
    written; `birth` is another one, too, when the object has been away and came back as it was.
    """

    key: str
    size: int
    etag: str
    modified: float  # Unix seconds
    appeared: float  # Unix seconds: when it became an object of its bucket, or later
    stamp: str
    birth: str
    writing: bool = False  # somebody has it open to write to it: it is not whole


def check_bucket(name: str) -> str:
    """Return `name`, or raise InvalidArgument."""
    if not BUCKET.fullmatch(name):
        raise InvalidArgument(
            f"bucket: {name[:80]!r} is not a bucket's name; it has 3 to 63 lower-case letters, digits or '-', "
            "and begins and ends with a letter or digit."
        )
    return name


def check_key(key: str) -> tuple[str, ...]:
    """The parts of a key. Raises InvalidArgument for one that can't be a file in a directory."""
    parts = tuple(key.split("/"))
    if not is_key(key):
        raise InvalidArgument(
            f"key: {key[:80]!r} can't be an object's; it has at most {MAX_KEY_BYTES} bytes, and its parts between '/' "
            f"are 1 to {MAX_PART_BYTES} bytes without NUL, and neither '.' nor '..'."
        )
    return parts


def is_key(key: str) -> bool:
    """Whether an object may have this key."""
    try:
        encoded = key.encode()
    except UnicodeEncodeError:  # surrogates: the name of a file that is no text
        return False
    parts = encoded.split(b"/")
    return (
        len(encoded) <= MAX_KEY_BYTES
        and b"\0" not in encoded
        and all(0 < len(part) <= MAX_PART_BYTES for part in parts)
        and not {b".", b".."} & set(parts)
    )
