from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
from starlette.applications import Starlette

from roost.guest.kinds import Kind, classify


def event(event: bytes, context: Any) -> None: ...


def event_with_default(event: bytes, context: Any, extra: int = 3) -> None: ...


def generator(event: bytes, context: Any) -> Any:
    yield event


async def async_event(event: bytes, context: Any) -> None: ...


async def async_generator(event: bytes, context: Any) -> Any:
    yield event


def wsgi(environ: Any, start_response: Any) -> None: ...


def asgi_factory(scope: Any, receive: Any, send: Any) -> Any: ...


async def asgi(scope: Any, receive: Any, send: Any) -> None: ...


class FlaskLike:
    def wsgi_app(self, environ: Any, start_response: Any) -> None: ...

    def __call__(self, *args: Any) -> None: ...


class DjangoLike:
    def __call__(self, environ: Any, start_response: Any) -> None: ...


class AsgiObject:
    async def __call__(self, scope: Any, receive: Any, send: Any) -> None: ...


class AsyncObject:
    async def __call__(self, event: bytes, context: Any) -> None: ...

    def generate(self, event: bytes, context: Any) -> Any:
        yield event


def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


def configured(mode: str, event: bytes, context: Any) -> Any:
    yield mode


@pytest.mark.parametrize(
    ("handler", "kind"),
    [
        (event, Kind.EVENT),
        (event_with_default, Kind.EVENT),
        (lambda e, c: None, Kind.EVENT),
        (max, Kind.EVENT),
        (generator, Kind.STREAM),
        (async_event, Kind.ASYNC_EVENT),
        (async_generator, Kind.ASYNC_STREAM),
        (wsgi, Kind.WSGI),
        (decorated(wsgi), Kind.WSGI),
        (asgi, Kind.ASGI),
        (asgi_factory, Kind.ASGI),
        (FlaskLike(), Kind.WSGI),
        (DjangoLike(), Kind.WSGI),
        (AsgiObject(), Kind.ASGI),
        (AsyncObject(), Kind.ASYNC_EVENT),
        (AsyncObject().generate, Kind.STREAM),
        (functools.partial(configured, "m"), Kind.STREAM),
        (Starlette(), Kind.ASGI),
    ],
)
def test_kinds(handler: Callable[..., Any], kind: Kind) -> None:
    assert classify(handler) is kind
