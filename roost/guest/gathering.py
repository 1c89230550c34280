"""Puts the code that every room runs into one place in memory.

A call writes to the code that it runs: the interpreter counts its references. After an import, code that rooms run lies
between code that they don't, about one function on a page, and each room would copy all these pages.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from types import CodeType, FrameType, FunctionType
from typing import Any

#: Never freed: what rooms make would lie in the holes, which are on as many pages.
_replaced: list[CodeType] = []


def gather(run: Callable[[], None]) -> None:
    """Give the functions that `run` calls copies of their code, one beside the other, in the order of their calls."""
    called = _called(run)
    gc.unfreeze()  # what is frozen is not found
    turn = {id(code): number for number, code in enumerate(called)}
    functions = [each for each in gc.get_objects() if type(each) is FunctionType and id(each.__code__) in turn]
    copies: dict[int, CodeType] = {}
    for function in sorted(functions, key=lambda function: turn[id(function.__code__)]):
        code = function.__code__
        if id(code) not in copies:
            copies[id(code)] = _copy(code)
            _replaced.append(code)
        function.__code__ = copies[id(code)]


def _called(run: Callable[[], None]) -> list[CodeType]:
    order: dict[int, CodeType] = {}

    def note(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            order.setdefault(id(frame.f_code), frame.f_code)

    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(None)
    return list(order.values())


def _copy(code: CodeType) -> CodeType:
    """With that of the functions in it."""
    return code.replace(co_consts=tuple(_copy(each) if isinstance(each, CodeType) else each for each in code.co_consts))
