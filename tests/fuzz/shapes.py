"""Inputs for parsers: what is right, changed a little in many ways."""

from __future__ import annotations

import itertools
import ssl
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

#: What breaks things more often than chance does.
_BYTES = st.sampled_from(
    [
        b"",
        b"\0",
        b"\r\n",
        b"\n",
        b"\r",
        b" ",
        b":",
        b"\xff" * 4,
        b"0",
        b"-1",
        b"ffffffff",
        b"\t",
        b"\x80",
        b"{",
        b"\r\n\r\n",
    ]
)


@st.composite
def mutated(draw: st.DrawFn, samples: Sequence[bytes]) -> bytes:
    """One of the samples with parts removed, doubled, changed or put in; at times any bytes."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=600))
    data = draw(st.sampled_from(samples))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        length = draw(st.integers(0, 8))
        part = data[at : at + length]
        match draw(st.sampled_from(["remove", "double", "replace", "insert", "flip", "cut"])):
            case "remove":
                data = data[:at] + data[at + length :]
            case "double":
                data = data[:at] + part + data[at:]
            case "replace":
                data = data[:at] + draw(st.binary(min_size=length, max_size=length)) + data[at + length :]
            case "insert":
                data = data[:at] + draw(_BYTES) + data[at:]
            case "flip" if at < len(data):
                data = data[:at] + bytes([data[at] ^ (1 << draw(st.integers(0, 7)))]) + data[at + 1 :]
            case "cut":
                data = data[:at]
    return data


def around(text: str) -> st.SearchStrategy[str]:
    """The text with characters put in and replaced."""
    odd = st.sampled_from([*".:/[]%@0x", "\0", "。", "①", "\u200b", "ﬁ", "İ", ""])
    return st.tuples(st.integers(0, len(text)), st.integers(0, 2), odd).map(
        lambda change: text[: change[0]] + change[2] + text[change[0] + change[1] :]
    )


def json_values(keys: Sequence[str]) -> st.SearchStrategy[Any]:
    """Any value of JSON, objects with keys that mean something among them."""
    leaves = st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.integers(-(10**400), 10**400)
    )
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.lists(inner, max_size=4), st.dictionaries(st.sampled_from([*keys, "other"]), inner, max_size=4)
        ),
        max_leaves=8,
    )


def cut(data: bytes, places: Sequence[int]) -> list[bytes]:
    """In pieces."""
    at = sorted({place % (len(data) + 1) for place in places} | {0, len(data)})
    return [data[start:end] for start, end in itertools.pairwise(at)]


def hello(name: str | None) -> bytes:
    """A ClientHello as OpenSSL makes it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    try:
        context.wrap_bio(incoming, outgoing, server_hostname=name).do_handshake()
    except ssl.SSLWantReadError:
        return outgoing.read()
    raise AssertionError("nobody has answered")
