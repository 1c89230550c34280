"""Pages, and bodies that stall: the API's small parts by themselves."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import ClientDisconnect, Request

from roost.api.fc.body import Body
from roost.api.fc.paging import limit_of, page, page_numbers
from roost.model.errors import InvalidArgument, PayloadTooLarge

NAMES = st.lists(st.text("abAB_-19", min_size=1, max_size=4), unique=True, max_size=12)


@given(NAMES, st.integers(1, 5), st.sampled_from(["", "a", "aB"]))
def test_pages_together_are_the_whole_list_in_order(names: list[str], limit: int, prefix: str) -> None:
    seen: list[str] = []
    token = ""
    while True:
        found, token = page(names, str, limit=limit, token=token, prefix=prefix)
        assert len(found) <= limit
        seen += found
        if not token:
            break
        assert len(found) == limit
    assert seen == sorted(name for name in names if name.startswith(prefix))


@given(st.sets(st.integers(1, 30), max_size=12), st.integers(1, 5), st.booleans())
def test_pages_of_numbers_too(numbers: set[int], limit: int, descending: bool) -> None:
    seen: list[int] = []
    token = ""
    while True:
        found, token = page_numbers(numbers, int, limit=limit, token=token, descending=descending)
        seen += found
        if not token:
            break
    assert seen == sorted(numbers, reverse=descending)


def test_an_item_removed_between_two_pages_does_not_end_the_list() -> None:
    _, token = page(["a", "b", "c"], str, limit=1)
    assert page(["a", "c"], str, limit=5, token=token) == (["c"], "")


@pytest.mark.parametrize("text", ["0", "101", "-1", "x", "1.5", "٣", "9" * 20])
def test_a_limit_that_can_not_be_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="limit"):
        limit_of({"limit": text})


@pytest.mark.parametrize("token", ["x", "-1", "9" * 20])
def test_a_token_of_numbers_that_is_none_is_refused(token: str) -> None:
    with pytest.raises(InvalidArgument, match="nextToken"):
        page_numbers([1], int, limit=1, token=token)


def body(*messages: dict[str, Any], length: str = "") -> Body:
    """A body that comes in these pieces, and then nothing more."""
    left = list(messages)

    async def receive() -> Any:
        return left.pop(0) if left else await asyncio.Event().wait()

    headers = [(b"content-length", length.encode())] if length else []
    return Body(Request({"type": "http", "headers": headers}, receive), stall_s=0.01)


def piece(data: bytes, *, more: bool = True) -> dict[str, Any]:
    return {"type": "http.request", "body": data, "more_body": more}


async def test_a_body_is_put_together() -> None:
    assert await body(piece(b"a"), piece(b""), piece(b"b", more=False)).read(2) == b"ab"


async def test_a_body_over_the_limit_is_refused_before_it_is_read_where_it_says_so() -> None:
    with pytest.raises(PayloadTooLarge):
        await body(length="3").read(2)
    with pytest.raises(PayloadTooLarge):
        await body(piece(b"ab"), piece(b"c")).read(2)


async def test_a_body_that_stops_is_given_up() -> None:
    stalled = body(piece(b"a"))
    with pytest.raises(InvalidArgument, match="stopped") as caught:
        await stalled.read(10)
    assert caught.value.code == "RequestTimeout"
    await stalled.discard()


async def test_a_client_that_goes_is_noticed() -> None:
    with pytest.raises(ClientDisconnect):
        await body(piece(b"a"), {"type": "http.disconnect"}).read(10)
    await body({"type": "http.disconnect"}).discard()
