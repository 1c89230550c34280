"""What kind of handler an object is. Pure."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from enum import StrEnum
from types import FunctionType
from typing import Any

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class Kind(StrEnum):
    EVENT = "event"  # handler(event, context)
    STREAM = "stream"  # the same, a generator function
    ASYNC_EVENT = "async_event"
    ASYNC_STREAM = "async_stream"
    WSGI = "wsgi"
    ASGI = "asgi"

    @property
    def on_loop(self) -> bool:
        """Runs on an event loop, all requests on one thread."""
        return self in (Kind.ASYNC_EVENT, Kind.ASYNC_STREAM, Kind.ASGI)


def classify(handler: Callable[..., Any]) -> Kind:
    """Decide by signature, in this order:

    1. three positional parameters without defaults -> ASGI 3: (scope, receive, send);
    2. a second parameter called `start_response`, or an object with a `wsgi_app` (Flask) -> WSGI;
    3. otherwise an event handler, and its function says which of the four it is.

    A decorated function counts as what it wraps, if the decorator says so (functools.wraps); an object counts by its
    `__call__`.
    """
    plain = _plain(handler)
    if plain is not None:
        return plain
    names = _required(handler)
    if len(names) == 3:
        return Kind.ASGI
    if (len(names) == 2 and names[1] == "start_response") or hasattr(handler, "wsgi_app"):
        return Kind.WSGI
    function = _function(handler)
    if inspect.isasyncgenfunction(function):
        return Kind.ASYNC_STREAM
    if inspect.iscoroutinefunction(function):
        return Kind.ASYNC_EVENT
    if inspect.isgeneratorfunction(function):
        return Kind.STREAM
    return Kind.EVENT


def _plain(handler: Callable[..., Any]) -> Kind | None:
    """A plain `def handler(event, context)`, which most are, without all the questions that `inspect` asks."""
    if not isinstance(handler, FunctionType) or handler.__dict__ or handler.__defaults__:
        return None
    code = handler.__code__
    special = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR | inspect.CO_ITERABLE_COROUTINE
    if code.co_argcount != 2 or code.co_flags & special or code.co_varnames[1] == "start_response":
        return None
    return Kind.EVENT


def _required(handler: Callable[..., Any]) -> list[str]:
    try:
        parameters = inspect.signature(handler).parameters.values()
    except (TypeError, ValueError):  # written in C, without a signature
        return []
    return [p.name for p in parameters if p.kind in _POSITIONAL and p.default is inspect.Parameter.empty]


def _function(handler: Callable[..., Any]) -> Callable[..., Any]:
    """What runs when the handler is called. (A class makes an instance: a plain call.)"""
    if inspect.isroutine(handler) or inspect.isclass(handler) or hasattr(handler, "func"):
        return handler  # inspect's predicates look through functools.partial themselves
    return type(handler).__call__ if callable(handler) else handler
