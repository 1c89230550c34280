"""Our signature is the one that the official SDK makes of the same request."""

from alibabacloud_tea_openapi.utils import Utils
from darabonba.request import DaraRequest
from hypothesis import given
from hypothesis import strategies as st

from roost.sdk.acs3 import ALGORITHM, Keys, sign

_TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), max_size=20)


@given(
    path=st.sampled_from(["/", "/2023-03-30/functions", "/2023-03-30/functions/a%20b/invocations"]),
    query=st.dictionaries(st.from_regex(r"[A-Za-z0-9_.-]{1,12}", fullmatch=True), _TEXT, max_size=4),
    body=st.binary(max_size=100),
)
def test_same_authorization_as_the_official_signer(path: str, query: dict[str, str], body: bytes) -> None:
    keys = Keys(id="key-1", secret="secret-1")
    ours = sign(
        keys,
        method="POST",
        path=path,
        query=query,
        host="127.0.0.1:8700",
        body=body,
        timestamp="2026-01-02T03:04:05Z",
        nonce="n-1",
    )
    request = DaraRequest()
    request.method, request.pathname, request.query = "POST", path, query
    request.headers = {"host": "127.0.0.1:8700"} | {k: v for k, v in ours.items() if k != "authorization"}
    payload = Utils.hash(body, ALGORITHM).hex()
    theirs = Utils.get_authorization(request, ALGORITHM, payload, "key-1", "secret-1")

    assert ours["x-acs-content-sha256"] == payload
    assert ours["authorization"] == theirs


def test_secret_is_not_in_the_repr() -> None:
    assert "hidden" not in repr(Keys(id="k", secret="hidden"))
