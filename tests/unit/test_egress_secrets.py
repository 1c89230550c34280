"""Placeholders, what they become, where; and values that are taken out of what comes back."""

from __future__ import annotations

import base64
import json
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.isolation.egress.injection import Injection, Place, bound_places, injection_of, parse_headers
from roost.isolation.egress.placeholders import fill, fill_header, fill_target, names, placeholder
from roost.isolation.egress.redaction import LEAST, Redactor, forms
from roost.isolation.egress.rules import Policy, parse_rules
from roost.model.errors import InvalidArgument

VALUES = {"github": "ghp_Zx/9+=", "two": "second-value"}
SECRET = b"sk-live-abcabcabcd"


def test_placeholders_are_found_and_filled() -> None:
    text = f"token {placeholder('github')} and {placeholder('none')} ${{E2B.SECRETS.Two}} $github"
    assert names([text]) == {"github", "none", "two"}
    assert fill(text, VALUES.get) == "token ghp_Zx/9+= and ${e2b.secrets.none} second-value $github"
    assert names(["${e2b.secrets.}", "${e2b.secrets.a}b}", "e2b.secrets.x", "${e2b.secrets.-x}"]) == {"a"}


def test_a_value_is_not_filled_again() -> None:
    assert fill(placeholder("a"), {"a": placeholder("b"), "b": "never"}.get) == placeholder("b")


def test_headers_are_filled_also_within_basic() -> None:
    assert fill_header(b"Bearer ${e2b.secrets.github}", VALUES.get) == b"Bearer ghp_Zx/9+="
    inside = base64.b64encode(b"user:${e2b.secrets.two}")
    assert fill_header(b"Basic " + inside, VALUES.get) == b"Basic " + base64.b64encode(b"user:second-value")
    other = b"Basic " + base64.b64encode(b"user:password")
    assert fill_header(other, VALUES.get) == other
    assert fill_header(b"Basic !!", VALUES.get) == b"Basic !!"
    assert fill_header(b"\xff\xfe ${e2b.secrets.two}", VALUES.get) == b"\xff\xfe second-value"


def test_targets_are_filled_in_either_form_and_encoded() -> None:
    for written in ("${e2b.secrets.github}", quote("${e2b.secrets.github}", safe=""), "%24{e2b.secrets.github%7D"):
        assert fill_target(f"/a?key={written}&b=1", VALUES.get) == "/a?key=ghp_Zx%2F9%2B%3D&b=1"
    assert fill_target("/a?key=%24%7Be2b.secrets.none%7D", VALUES.get) == "/a?key=%24%7Be2b.secrets.none%7D"


@given(st.binary(max_size=300))
def test_any_header_survives(value: bytes) -> None:
    assert fill_header(value, {}.get) == value


@given(st.lists(st.sampled_from([SECRET, b"x", b"sk-", SECRET[:7], SECRET[5:], b"abc", b"\n"]), max_size=12), st.data())
def test_no_value_gets_through_however_the_stream_is_cut(parts: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(parts)
    redactor, out, at = Redactor([SECRET, b"abcabc"]), b"", 0
    while at < len(whole):
        size = data.draw(st.integers(1, 9))
        out += redactor.feed(whole[at : at + size])
        at += size
    out += redactor.end()
    assert SECRET not in out
    assert b"abcabc" not in out
    assert len(out) == len(whole)
    if SECRET not in whole and b"abcabc" not in whole:
        assert out == whole


def test_what_can_not_be_a_secret_goes_on_at_once() -> None:
    redactor = Redactor([SECRET])
    assert redactor.feed(b"data: 1\n\n") == b"data: 1\n\n"
    assert redactor.feed(b"data: s") == b"data: "
    assert redactor.feed(b"o\n") == b"so\n"
    assert redactor.feed(SECRET) == b"*" * len(SECRET)
    assert redactor.end() == b""


def test_values_are_known_in_the_forms_that_servers_give_them() -> None:
    value = 'p"ä/ +secret'
    found = Redactor(forms(value))
    for form in (value.encode(), json.dumps(value).encode(), quote(value).encode(), quote(value, safe="").encode()):
        assert value.encode() not in found.whole(form)
    assert b"secret" not in found.whole(json.dumps({"echo": value}).encode())
    assert b"secret" not in found.whole(f"/?q={quote(value, safe='')}".encode())
    assert found.whole(base64.b64encode(value.encode())).strip(b"*") == b""
    assert forms("x" * (LEAST - 1)) == frozenset()
    assert Redactor([]).feed(b"all of it") == b"all of it"


def test_a_secret_is_for_the_hosts_that_its_metadata_name() -> None:
    places = bound_places({"hosts": "api.example.com, *.example.org:8443 http://plain.test http://other.test:81"})
    assert places == (
        Place(name="api.example.com", port=443, tls=True),
        Place(name="*.example.org", port=8443, tls=True),
        Place(name="plain.test", port=80, tls=False),
        Place(name="other.test", port=81, tls=False),
    )
    assert places[0].fits("api.example.com", 443, tls=True)
    assert not places[0].fits("api.example.com", 443, tls=False)
    assert not places[0].fits("api.example.com.evil.test", 443, tls=True)
    assert not places[0].fits("xapi.example.com", 443, tls=True)
    assert places[1].fits("a.example.org", 8443, tls=True)
    assert not places[1].fits("example.org", 8443, tls=True)
    assert bound_places({}) == ()


@pytest.mark.parametrize(
    "hosts", ["a b:", "127.0.0.1", "*", "a.b:0", "a.b:x", "a/b", "http://", "*.", "a," * 101 + "a"]
)
def test_hosts_that_are_none_are_refused(hosts: str) -> None:
    with pytest.raises(InvalidArgument):
        bound_places({"hosts": hosts})


def rule(**headers: str) -> list[dict[str, dict[str, dict[str, str]]]]:
    return [{"transform": {"headers": headers}}]


def test_rules_add_headers_by_host() -> None:
    rules = {"api.test": [*rule(X="1"), *rule(x="2", Auth=placeholder("k"))], "*.w.test:81": rule(a="b"), "n.test": []}
    injection = injection_of(rules, [placeholder("own"), "plain"])
    assert injection.granted == {"own"}
    assert injection.fields("api.test", 443, tls=True) == {"x": "2", "auth": placeholder("k")}
    assert injection.fields("a.w.test", 81, tls=True) == {"a": "b"}
    assert injection.fields("a.w.test", 81, tls=False) == {}
    assert injection.fields("other.test", 443, tls=True) == {}
    assert not Injection()


def test_a_secret_of_a_rule_goes_out_in_the_clear_only_if_the_rule_says_so() -> None:
    plain = injection_of({"api.test": rule(a="b")}, [])
    assert plain.fields("api.test", 80, tls=False) == {"a": "b"}
    secret = injection_of({"api.test": rule(a=placeholder("k"))}, [])
    with pytest.raises(InvalidArgument, match="by https alone"):
        secret.fields("api.test", 80, tls=False)
    said = injection_of({"http://api.test": rule(a=placeholder("k"))}, [])
    assert said.fields("api.test", 80, tls=False) == {"a": placeholder("k")}
    assert said.fields("api.test", 443, tls=True) == {}


@pytest.mark.parametrize(
    ("host", "name", "value"),
    [
        ("10.0.0.0/8", "a", "b"),
        ("127.0.0.1", "a", "b"),
        ("a.test", "a b", "c"),
        ("a.test", "", "c"),
        ("a.test", "Host", "evil.test"),
        ("a.test", "Content-Length", "0"),
        ("a.test", "transfer-encoding", "chunked"),
        ("a.test", "a", "b\r\nc: d"),
        ("a.test", "a", "\0"),
        ("a.test", "a", "x" * 8193),
    ],
)
def test_rules_that_can_not_be_are_refused(host: str, name: str, value: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_headers({host: [{"transform": {"headers": {name: value}}}]})


def test_where_rules_are_about_requests_alone() -> None:
    policy = Policy(
        allow=parse_rules(["GET a.test/v1/*", "POST b.test", "b.test"]), otherwise=parse_rules(["*.c.test"])
    )
    assert policy.has_requests
    assert policy.is_of_requests("a.test", 443)
    assert not policy.is_of_requests("b.test", 443)
    assert not policy.is_of_requests("x.c.test", 443)
    assert not policy.is_of_requests("unknown.test", 443)
    assert not Policy(allow=parse_rules(["a.test"])).has_requests
