"""Paths, forms, codings, ranges and what is told about files: pure parts of envd."""

from __future__ import annotations

import gzip
import os
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.guest.sandbox.encodings import (
    BadEncoding,
    Inflater,
    NotAcceptable,
    accepted,
    content_type,
    identity_accepted,
)
from roost.guest.sandbox.entries import BadMetadata, check_metadata, permissions, readable, timestamp
from roost.guest.sandbox.identities import User
from roost.guest.sandbox.multipart import BadMultipart, Data, MultipartParser, Part, PartEnd, parameters
from roost.guest.sandbox.paths import BadPath, resolve
from roost.guest.sandbox.ranges import BadRange, Range, parse_ranges

USER = User(name="user", uid=1000, gid=1000, home="/home/user", shell="/bin/bash")


@pytest.mark.parametrize(
    ("path", "workdir", "meant"),
    [
        ("", "", "/home/user"),
        ("", "/srv", "/srv"),
        ("a/b", "/srv", "/home/user/a/b"),
        ("../x/./y", "", "/home/x/y"),
        ("~", "", "/home/user"),
        ("~/a", "", "/home/user/a"),
        ("~//a", "", "/home/user/a"),
        ("/a/../b", "", "/a/../b"),
    ],
)
def test_which_file_is_meant(path: str, workdir: str, meant: str) -> None:
    assert resolve(path, USER, workdir) == meant


@pytest.mark.parametrize("path", ["~root/x", "a\0b"])
def test_paths_that_name_nothing(path: str) -> None:
    with pytest.raises(BadPath):
        resolve(path, USER, "")


def test_modes_and_times_as_go_prints_them() -> None:
    shown = {
        stat.S_IFREG | 0o644: "-rw-r--r--",
        stat.S_IFDIR | 0o1777: "dtrwxrwxrwx",
        stat.S_IFLNK | 0o777: "Lrwxrwxrwx",
        stat.S_IFREG | 0o4755: "urwxr-xr-x",
        stat.S_IFCHR | 0o620: "Dcrw--w----",
        stat.S_IFBLK | 0o660: "Drw-rw----",
        stat.S_IFIFO | 0o600: "prw-------",
        stat.S_IFSOCK | 0o666: "Srw-rw-rw-",
    }
    assert {mode: permissions(mode) for mode in shown} == shown
    assert timestamp(0) == "1970-01-01T00:00:00Z"
    assert timestamp(1_700_000_000_120_000_000) == "2023-11-14T22:13:20.120Z"
    assert timestamp(1_700_000_000_000_120_000) == "2023-11-14T22:13:20.000120Z"
    assert timestamp(-1) == "1969-12-31T23:59:59.999999999Z"
    assert readable(os.fsdecode(b"a\xff")) == "a�"


@pytest.mark.parametrize("metadata", [{"": "x"}, {"k" * 247: ""}, {"k": "ü"}, {"k\n": ""}, {"k": "v" * 4096}])
def test_metadata_that_no_file_can_have(metadata: dict[str, str]) -> None:
    with pytest.raises(BadMetadata):
        check_metadata(metadata)
    check_metadata({"k" * 246: "v" * 1000})


def form(*parts: tuple[str, bytes], boundary: str = "B") -> bytes:
    body = b"".join(
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'.encode()
        + data
        + b"\r\n"
        for name, data in parts
    )
    return body + f"--{boundary}--\r\n".encode()


def read(body: bytes, step: int, boundary: str = "B") -> list[tuple[str | None, bytes]]:
    parser = MultipartParser(f"multipart/form-data; boundary={boundary}")
    found: list[tuple[str | None, bytes]] = []
    data, ended = b"", 0
    for at in range(0, len(body), step):
        for item in parser.feed(body[at : at + step]):
            if isinstance(item, Part):
                assert len(found) == ended
                found.append((item.filename, b""))
                data = b""
            elif isinstance(item, Data):
                data += item.data
            else:
                assert isinstance(item, PartEnd)
                found[-1] = (found[-1][0], data)
                ended += 1
    assert parser.done
    return found


NEARLY = st.sampled_from([b"\r\n--", b"\r\n--Bound", b"--Boundary-of-the-test--", b"\r\n--B\r\n"])


@given(st.lists(st.binary(max_size=60) | NEARLY, max_size=5), st.integers(1, 70))
def test_forms_survive_any_cut(contents: list[bytes], step: int) -> None:
    boundary = "Boundary-of-the-test"
    parts = [(f"dir/{i}.bin", data) for i, data in enumerate(contents)]
    assert read(form(*parts, boundary=boundary), step, boundary) == parts


def test_a_form_with_a_preamble_and_an_empty_head() -> None:
    assert read(b"ignored\r\n--B \t\r\n\r\nno head\r\n--B--epilogue", 3) == [(None, b"no head")]


@pytest.mark.parametrize(
    "body", [b"x" * 70_000, b"--B\r\n" + b"a: b\r\n" * 4000, b"--B and more\r\n", b"--B" + b" " * 300]
)
def test_what_is_no_form(body: bytes) -> None:
    parser = MultipartParser("multipart/form-data; boundary=B")
    with pytest.raises(BadMultipart):
        for at in range(0, len(body), 1000):
            list(parser.feed(body[at : at + 1000]))
    for header in ("multipart/form-data", "multipart/form-data; boundary=" + "x" * 300):
        with pytest.raises(BadMultipart):
            MultipartParser(header)


def test_parameters_of_a_header() -> None:
    assert parameters('form-data; Name="a\\"b;c"; filename=plain ; x="ü"') == {
        "name": 'a"b;c',
        "filename": "plain",
        "x": "ü",
    }


@pytest.mark.parametrize(
    ("header", "coding"),
    [
        ("", "identity"),
        ("gzip, deflate", "gzip"),
        ("br;q=1, gzip;q=0.5", "gzip"),
        ("gzip;q=0", "identity"),
        ("identity, gzip;q=0.9", "identity"),
        ("*", "identity"),
        ("*, identity;q=0", "gzip"),
        ("br", "identity"),
    ],
)
def test_which_coding_a_client_gets(header: str, coding: str) -> None:
    assert accepted(header) == coding


def test_no_coding_at_all() -> None:
    with pytest.raises(NotAcceptable):
        accepted("br, *;q=0")
    assert not identity_accepted("*;q=0")
    assert identity_accepted("*;q=0, identity;q=0.1")


@given(st.binary(max_size=2000), st.integers(1, 100), st.booleans())
def test_bodies_are_inflated(data: bytes, step: int, twice: bool) -> None:
    body = gzip.compress(data) + (gzip.compress(data) if twice else b"")
    inflater = Inflater("gzip")
    found = b"".join(part for at in range(0, len(body), step) for part in inflater.feed(body[at : at + step]))
    inflater.finish()
    assert found == data * (2 if twice else 1)


def test_a_bomb_comes_in_pieces() -> None:
    pieces = [len(piece) for piece in Inflater("gzip").feed(gzip.compress(bytes(64 << 20)))]
    assert sum(pieces) == 64 << 20
    assert max(pieces) <= 256 << 10


@pytest.mark.parametrize("body", [b"no gzip", gzip.compress(b"x" * 1000, mtime=0)[:-9], b""])
def test_broken_bodies(body: bytes) -> None:
    inflater = Inflater("GZIP")
    with pytest.raises(BadEncoding):
        list(inflater.feed(body))
        inflater.finish()
    with pytest.raises(BadEncoding):
        Inflater("br")


@pytest.mark.parametrize(
    ("header", "ranges"),
    [
        ("", []),
        ("bytes=2-4", [Range(2, 5)]),
        ("bytes=2-400", [Range(2, 10)]),
        ("bytes=-400", [Range(0, 10)]),
        ("bytes=7-", [Range(7, 10)]),
        ("bytes=0-1, 3-4 ,,-1", [Range(0, 2), Range(3, 5), Range(9, 10)]),
        ("bytes=0-1,40-", [Range(0, 2)]),
        ("bytes=0-8,1-9", []),  # more than there is: the whole file is shorter
        ("bytes=", []),
        ("bytes=" + "0-0," * 101, []),
    ],
)
def test_ranges(header: str, ranges: list[Range]) -> None:
    assert parse_ranges(header, 10) == ranges


@pytest.mark.parametrize(
    ("header", "overlaps"),
    [
        ("bytes=10-", False), ("bytes=-0", False), ("bytes=11-12,20-", False),
        ("lines=1-2", True), ("bytes=5-2", True), ("bytes=x-", True), ("bytes=-", True), ("bytes=1", True),
        ("bytes=--1", True), ("bytes=1-2-3", True), ("bytes=" + "9" * 40 + "-", True),
    ],
)  # fmt: skip
def test_ranges_that_are_refused(header: str, overlaps: bool) -> None:
    with pytest.raises(BadRange) as caught:
        parse_ranges(header, 10)
    assert caught.value.overlaps == overlaps


def test_of_an_empty_file_the_whole_is_sent() -> None:
    assert parse_ranges("bytes=0-", 0) == []


def test_types_of_contents() -> None:
    assert content_type("a.html", b"") == "text/html; charset=utf-8"
    assert content_type("a.png", b"") == "image/png"
    assert content_type("a", b"text ") == "text/plain; charset=utf-8"
    assert content_type("a", b"\0") == "application/octet-stream"
    assert content_type("a", "ü".encode() * 400) == "text/plain; charset=utf-8"
    assert content_type("a", b"x" + "ü".encode() * 400) == "text/plain; charset=utf-8"
