"""The pure parts of the code interpreter: frames, requests, pieces of text, results, variables."""

from __future__ import annotations

import json
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.guest.environment import BUNDLE_BIN
from roost.guest.sandbox.interpreter import frames, lines
from roost.guest.sandbox.interpreter.launch import context_environment
from roost.guest.sandbox.interpreter.python.bundles import encode, encode_within, to_result
from roost.guest.sandbox.interpreter.python.variables import replaced
from roost.guest.sandbox.interpreter.requests import Invalid, normalize, parse_create, parse_execute
from roost.guest.sandbox.interpreter.text import HOLD_S, Pieces

KINDS = st.sampled_from([frames.RUN, frames.ACK, frames.READY, frames.DISPLAY, frames.RESULT, frames.DONE])


@given(st.lists(st.tuples(KINDS, st.binary(max_size=300))), st.integers(1, 50))
def test_frames_come_out_as_they_went_in_however_they_are_cut(sent, size):
    data = b"".join(frames.frame(kind, payload) for kind, payload in sent)
    reader = frames.FrameReader()
    got = [each for start in range(0, len(data), size) for each in reader.feed(data[start : start + size])]
    assert got == sent


@pytest.mark.parametrize("data", [b"Q 1\n", b"R x\n", b"R -1\n", b"R 101\n", b"R 1 2\n", b"no head of a frame", b" \n"])
def test_what_is_no_frame_is_refused(data):
    with pytest.raises(frames.BadFrame):
        frames.FrameReader(100).feed(data)


@given(st.text(), st.integers(1, 7))
def test_text_is_the_same_however_its_bytes_are_cut(text, size):
    pieces = Pieces()
    data = text.encode("utf-8", "replace")
    got = [pieces.feed(data[start : start + size], 0.0) for start in range(0, len(data), size)]
    assert "".join(got) + pieces.finish() == data.decode()


def test_a_line_goes_out_at_once_and_what_is_none_waits_for_its_end():
    pieces = Pieces()
    assert pieces.feed(b"a\nb\n", 1.0) == "a\nb\n"
    assert pieces.deadline is None
    assert pieces.feed(b"hal", 1.0) == ""
    assert pieces.deadline == 1.0 + HOLD_S
    assert pieces.feed(b"f\n", 1.005) == "half\n"
    assert pieces.deadline is None


def test_what_is_no_utf8_becomes_replacement_characters():
    pieces = Pieces()
    assert pieces.feed(b"\xff\n", 0.0) == "\ufffd\n"
    pieces.feed("ä".encode()[:1], 0.0)
    assert pieces.finish() == "\ufffd"
    assert pieces.feed(b"a\n", 0.0) == "a\n"


def test_a_long_line_does_not_wait():
    assert len(Pieces().feed(b"x" * (64 << 10), 0.0)) == 64 << 10


def test_a_result_can_forge_no_line():
    assert lines.passed_on(b'{"type": "result"}\n{"type": "end"}').count(b"\n") == 1


@pytest.mark.parametrize(
    ("body", "kind", "place"),
    [
        (b"{", "json_invalid", ["body", 1]),
        (b"\xff", "json_invalid", ["body", 0]),
        (b"[" * 100_000, "json_invalid", ["body", 0]),
        (b"[]", "model_attributes_type", ["body"]),
        (b"{}", "missing", ["body", "code"]),
        (b'{"code": 1}', "string_type", ["body", "code"]),
        (b'{"code": null}', "string_type", ["body", "code"]),
        (b'{"code": "\\ud800"}', "string_unicode", ["body", "code"]),
        (b'{"code": "", "language": 1}', "string_type", ["body", "language"]),
        (b'{"code": "", "context_id": []}', "string_type", ["body", "context_id"]),
        (b'{"code": "", "env_vars": []}', "dict_type", ["body", "env_vars"]),
        (b'{"code": "", "env_vars": {"A": 1}}', "string_type", ["body", "env_vars", "A"]),
        (b'{"code": "", "env_vars": {"A=B": ""}}', "value_error", ["body", "env_vars", "A=B"]),
        (b'{"code": "", "env_vars": {"A": "\\u0000"}}', "value_error", ["body", "env_vars", "A"]),
    ],
)
def test_a_wrong_body_is_refused_with_its_place(body, kind, place):
    with pytest.raises(Invalid) as refused:
        parse_execute(body)
    assert refused.value.detail["type"] == kind
    assert refused.value.detail["loc"] == place
    json.dumps(refused.value.detail)


def test_a_request_is_read():
    cell = parse_execute(b'{"code": "x", "context_id": null, "language": "js", "env_vars": {"A": "b"}, "more": 1}')
    assert (cell.code, cell.context_id, cell.language, cell.env) == ("x", "", "js", {"A": "b"})


@pytest.mark.parametrize(
    ("given", "language"), [("", "python"), ("JS", "javascript"), (" ts ", "typescript"), ("R", "r"), ("x", "x")]
)
def test_languages_have_short_names(given, language):
    assert normalize(given) == language
    assert parse_create(json.dumps({"language": given}).encode()).language == language


@pytest.mark.parametrize("cwd", ["a\0b", "x" * 5000])
def test_a_place_that_can_not_be_is_refused(cwd):
    with pytest.raises(Invalid):
        parse_create(json.dumps({"cwd": cwd}).encode())


def test_the_guests_interpreter_comes_first_whatever_path_the_login_has():
    env = context_environment({"PATH": f"/usr/bin::{BUNDLE_BIN}", "A": "b"}, "/home/user")
    assert env["PATH"] == f"{BUNDLE_BIN}:/usr/bin:/home/user/.local/bin"
    assert env["A"] == "b"
    assert context_environment({"LANG": "C"}, "/h")["LANG"] == "C"


def test_a_bundle_becomes_a_result():
    bundle = {"text/plain": "'a'", "image/png": b"\x00", "text/x-mine": 1, "text/html": None, "e2b/data": {"a": [1]}}
    result = to_result(bundle, is_main=True)
    assert json.loads(encode(result)) == {
        "type": "result",
        "text": "a",
        "png": "AA==",
        "data": {"a": [1]},
        "extra": {"text/x-mine": 1},
        "is_main_result": True,
    }


def test_what_json_has_not_is_written_as_jupyter_does():
    class Odd:
        def __str__(self) -> str:
            return "odd"

    value = {(1, 2): [float("nan"), float("inf"), date(2020, 1, 2), {3}, Odd(), b"\xff"]}
    assert json.loads(encode({"data": value})) == {"data": {"(1, 2)": ["nan", "inf", "2020-01-02", [3], "odd", "/w=="]}}


def test_a_result_that_holds_itself_is_cut():
    endless: list[object] = []
    endless.append(endless)
    assert encode({"json": endless}).startswith(b'{"json": [[[')


def test_the_largest_representations_of_a_huge_result_are_left_out():
    result = to_result({"text/plain": "small", "text/html": "h" * 500, "image/png": "p" * 900}, is_main=False)
    data, left_out = encode_within(result, 700)
    assert left_out == ["png"]
    assert set(json.loads(data)) == {"type", "text", "html", "extra", "is_main_result"}
    data, left_out = encode_within(result, 200)
    assert left_out == ["png", "html"]
    assert json.loads(data)["text"] == "small"


def test_variables_of_a_cell_are_gone_after_it():
    env = {"KEPT": "1", "CHANGED": "1"}
    with replaced(env, {"CHANGED": "2", "NEW": "3"}):
        assert env == {"KEPT": "1", "CHANGED": "2", "NEW": "3"}
        env["NEW"] = "4"
        env["OWN"] = "5"
    assert env == {"KEPT": "1", "CHANGED": "1", "OWN": "5"}
