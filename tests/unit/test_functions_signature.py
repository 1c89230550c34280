"""ACS3-HMAC-SHA256, against the official SDK's own signer."""

from __future__ import annotations

import hashlib
from types import SimpleNamespace
from typing import Any

import pytest
from alibabacloud_tea_openapi.utils import Utils
from hypothesis import given
from hypothesis import strategies as st

from roost.model.errors import Unauthenticated
from roost.model.signature import AccessKey, Keys, parse_authorization, verify

KEYS = Keys([AccessKey(id="id", secret="secret", account="acct")])
NOW = 1_700_000_000.0
EMPTY = hashlib.sha256(b"").hexdigest()


def signed(
    path: str = "/p", query: dict[str, str] | None = None, body: bytes = b"", **headers: str
) -> list[tuple[str, str]]:
    digest = hashlib.sha256(body).hexdigest()
    values = {"host": "h:1", "x-acs-date": "2023-11-14T22:13:20Z", "x-acs-content-sha256": digest} | headers
    request = SimpleNamespace(method="GET", pathname=path, query=query or {}, headers=values)
    authorization = Utils.get_authorization(request, "ACS3-HMAC-SHA256", digest, "id", "secret")
    return [*values.items(), ("Authorization", authorization)]


def check(headers: list[tuple[str, str]], **changes: Any) -> AccessKey:
    values: dict[str, Any] = {"method": "GET", "path": "/p", "query": "", "body_sha256": EMPTY, "now": NOW}
    return verify(headers=headers, lookup=KEYS.lookup, **(values | changes))


def test_what_the_sdk_signs_is_accepted() -> None:
    assert check(signed()).account == "acct"


@given(
    st.dictionaries(st.from_regex(r"[A-Za-z][A-Za-z0-9_.-]{0,10}", fullmatch=True), st.text(max_size=12), max_size=4),
    st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="?#%"), max_size=10),
)
def test_any_query_and_path_the_sdk_signs_is_accepted(query: dict[str, str], path: str) -> None:
    from urllib.parse import urlencode

    assert check(signed("/" + path, query), path="/" + path, query=urlencode(query)).id == "id"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"method": "POST"}, "SignatureNotMatch"),
        ({"path": "/q"}, "SignatureNotMatch"),
        ({"query": "a=b"}, "SignatureNotMatch"),
        ({"body_sha256": hashlib.sha256(b"x").hexdigest()}, "SignatureNotMatch"),
        ({"now": NOW + 901}, "RequestTimeTooSkewed"),
        ({"now": NOW - 901}, "RequestTimeTooSkewed"),
    ],
)
def test_a_request_that_differs_is_refused(changes: dict[str, Any], code: str) -> None:
    with pytest.raises(Unauthenticated) as caught:
        check(signed(), **changes)
    assert caught.value.code == code


def test_a_streamed_body_is_left_to_the_caller() -> None:
    assert check(signed(body=b"streamed"), body_sha256=None).id == "id"


@pytest.mark.parametrize("header", ["host", "x-acs-date", "x-acs-content-sha256"])
def test_a_signed_header_that_changed_or_went_is_refused(header: str) -> None:
    pairs = signed()
    with pytest.raises(Unauthenticated):
        check([(name, value + "0" if name == header else value) for name, value in pairs])
    with pytest.raises(Unauthenticated):
        check([pair for pair in pairs if pair[0] != header])


def test_the_headers_that_matter_have_to_be_signed() -> None:
    digest = hashlib.sha256(b"").hexdigest()
    for left_out in ("host", "x-acs-date", "x-acs-content-sha256"):
        values = {"host": "h:1", "x-acs-date": "2023-11-14T22:13:20Z", "x-acs-content-sha256": digest}
        kept = {name: value for name, value in values.items() if name != left_out}
        request = SimpleNamespace(method="GET", pathname="/p", query={}, headers=kept)
        authorization = Utils.get_authorization(request, "ACS3-HMAC-SHA256", digest, "id", "secret")
        with pytest.raises(Unauthenticated, match=left_out):
            check([*values.items(), ("authorization", authorization)])


@pytest.mark.parametrize(
    "value",
    [
        "",
        "Bearer x",
        "ACS3-HMAC-SHA256",
        "ACS3-HMAC-SHA256 Credential=,SignedHeaders=a,Signature=" + "0" * 64,
        "ACS3-HMAC-SHA256 Credential=a,SignedHeaders=b;a,Signature=" + "0" * 64,
        "ACS3-HMAC-SHA256 Credential=a,SignedHeaders=a;a,Signature=" + "0" * 64,
        "ACS3-HMAC-SHA256 Credential=a,SignedHeaders=a,Signature=" + "0" * 63,
        "ACS3-HMAC-SHA1 Credential=a,SignedHeaders=a,Signature=" + "0" * 64,
    ],
)
def test_a_malformed_authorization_is_refused(value: str) -> None:
    with pytest.raises(Unauthenticated):
        parse_authorization(value)


@given(st.text(max_size=200))
def test_no_authorization_breaks_the_parser(value: str) -> None:
    with pytest.raises(Unauthenticated):
        check([("authorization", value), ("host", "h")])


def test_keys() -> None:
    keys = Keys.of({"a": "1", "b": "2"}, "acct")
    assert bool(keys) and not Keys()
    assert keys.lookup("a") == AccessKey(id="a", secret="1", account="acct")
    assert keys.lookup("c") is None
    assert [key.id for key in keys.of_account("acct")] == ["a", "b"]
    assert keys.of_account("other") == []
    assert "1" not in repr(keys.lookup("a")).replace("account", "")
