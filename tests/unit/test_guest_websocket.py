from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.guest.websocket import FrameReader, Message, Op, WebSocketError, accept_key, encode, encode_close

MASK = b"\x01\x02\x03\x04"


def frame(op: int, data: bytes = b"", *, final: bool = True, reserved: int = 0, masked: bool = True) -> bytes:
    head = bytes([(0x80 if final else 0) | reserved | op])
    size, bit = len(data), 0x80 if masked else 0
    if size < 126:
        head += bytes([bit | size])
    elif size < 1 << 16:
        head += bytes([bit | 126]) + struct.pack("!H", size)
    else:
        head += bytes([bit | 127]) + struct.pack("!Q", size)
    if not masked:
        return head + data
    return head + MASK + bytes(value ^ MASK[i % 4] for i, value in enumerate(data))


def test_the_accept_key_of_the_specification() -> None:
    assert accept_key("dGhlIHNhbXBsZSBub25jZQ==") == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


@pytest.mark.parametrize("key", ["", "short", "AAAA", "*" * 24])
def test_a_bad_key_is_refused(key: str) -> None:
    with pytest.raises(ValueError):
        accept_key(key)


@given(st.binary(max_size=70000), st.integers(1, 1000))
def test_messages_survive_any_cut(data: bytes, step: int) -> None:
    wire = frame(Op.BINARY, data) + frame(Op.PING, b"p")
    reader = FrameReader()
    got = [m for i in range(0, len(wire), step) for m in reader.feed(wire[i : i + step])]
    assert got == [Message(Op.BINARY, data), Message(Op.PING, b"p")]


def test_fragments_are_joined_and_control_frames_may_come_between() -> None:
    wire = frame(1, b"\xe2", final=False) + frame(9) + frame(0, b"\x9c", final=False) + frame(0, b"\x93")
    assert list(FrameReader().feed(wire)) == [Message(Op.PING), Message(Op.TEXT, b"\xe2\x9c\x93")]


@pytest.mark.parametrize(
    ("wire", "code"),
    [
        (frame(1, masked=False), 1002),
        (frame(1, reserved=0x40), 1002),
        (frame(3), 1002),
        (frame(0), 1002),
        (frame(1, b"a", final=False) + frame(1, b"b"), 1002),
        (frame(9, final=False), 1002),
        (frame(9, b"x" * 126), 1002),
        (frame(8, b"\x03"), 1002),
        (frame(8, struct.pack("!H", 1005)), 1002),
        (frame(8, struct.pack("!H", 2999)), 1002),
        (frame(8, struct.pack("!H", 1000) + b"\xff"), 1007),
        (frame(1, b"\xff"), 1007),
        (frame(2, b"x" * 101), 1009),
        (frame(2, b"x" * 60, final=False) + frame(0, b"x" * 60), 1009),
        (b"\x82\xff" + b"\xff" * 8, 1009),
    ],
)
def test_violations_close_with_the_right_code(wire: bytes, code: int) -> None:
    with pytest.raises(WebSocketError) as error:
        list(FrameReader(limit=100).feed(wire))
    assert error.value.code == code


def test_close_frames() -> None:
    (message,) = FrameReader().feed(frame(8, struct.pack("!H", 3001) + b"bye"))
    assert (message.code, message.reason) == (3001, "bye")
    (empty,) = FrameReader().feed(frame(8))
    assert (empty.code, empty.reason) == (1005, "")
    assert encode_close(1005) == b"\x88\x00"
    assert len(encode_close(1000, "\u2713" * 100)) <= 127


@pytest.mark.parametrize(("size", "head"), [(125, 2), (126, 4), (65535, 4), (65536, 10)])
def test_frames_of_a_server(size: int, head: int) -> None:
    assert len(encode(Op.BINARY, bytes(size))) == head + size
