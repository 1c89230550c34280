"""Names of files in an upload, however it comes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from roost.gateway.head import parse_request
from roost.gateway.uploads import UploadNames, boundary_of

MARK = b"a-boundary"


class Sink:
    def __init__(self) -> None:
        self.came = b""
        self.ended = False

    def body(self, data: bytes) -> None:
        self.came += data

    def body_end(self) -> None:
        self.ended = True


def part(name: str, content: bytes) -> bytes:
    told = name.replace("\\", "\\\\").replace('"', '\\"').encode()
    head = b'Content-Disposition: form-data; name="file"; filename="' + told + b'"\r\nContent-Type: text/plain'
    return b"--" + MARK + b"\r\n" + head + b"\r\n\r\n" + content + b"\r\n"


def names(body: bytes, pieces: list[int]) -> list[str]:
    sink, found = Sink(), list[str]()
    filtered = UploadNames(sink, MARK, found.append)
    at = 0
    for size in pieces:
        filtered.body(body[at : at + size])
        at += size
    filtered.body(body[at:])
    filtered.body_end()
    assert sink.came == body and sink.ended
    return found


CONTENT = st.binary(max_size=40) | st.sampled_from([b"\r\n", b"--" + MARK[:-1], b"\r\n--", b'filename="no"\r\n\r\n'])


@given(
    st.lists(st.tuples(st.text(st.characters(exclude_categories=["C"]), min_size=1, max_size=20), CONTENT), max_size=5),
    st.lists(st.integers(0, 50), max_size=20),
)
def test_each_file_is_named_however_the_body_is_cut(files: list[tuple[str, bytes]], pieces: list[int]) -> None:
    body = b"".join(part(name, content) for name, content in files) + b"--" + MARK + b"--\r\n"
    assert names(body, pieces) == [name for name, _ in files]


@given(st.binary(max_size=300), st.lists(st.integers(0, 50), max_size=20))
def test_whatever_comes_goes_by(body: bytes, pieces: list[int]) -> None:
    names(body, pieces)


def test_it_is_bounded() -> None:
    assert len(names(part("a", b"") * 5000, [])) == 1000
    long = b"--" + MARK + b"\r\nx: " + b"y" * 100_000
    sink = Sink()
    filtered = UploadNames(sink, MARK, lambda name: None)
    for at in range(0, len(long), 1000):
        filtered.body(long[at : at + 1000])
        assert len(filtered._held) <= 8192 + 1000


def test_what_has_parts() -> None:
    def head(kind: bytes) -> bytes:
        return boundary_of(parse_request(b"POST /files HTTP/1.1\r\nhost: x\r\ncontent-type: " + kind + b"\r\n\r\n"))

    assert head(b"multipart/form-data; boundary=abc") == b"abc"
    assert head(b'Multipart/Form-Data; charset=x; boundary="a b"') == b"a b"
    assert head(b"application/octet-stream") == head(b"multipart/mixed; boundary=x") == b""
