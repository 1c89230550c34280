"""Cells as the lines that a bash context reads; see `programs/bash.sh`. Pure."""

from __future__ import annotations

from collections.abc import Mapping

_ESCAPES = {"\\": "\\\\", "'": "\\'", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def bash_cell(code: str, env: Mapping[str, str]) -> bytes:
    """What runs reads nothing, and has not the context's socket."""
    variables = "".join(f" {quote(f'{name}={value}')}" for name, value in env.items())
    lines = [f"__roost_begin{variables}", f"eval {quote(code)} </dev/null 3>&-", "__roost_finish", "__roost_finish", ""]
    return "\n".join(lines).encode()


def quote(text: str) -> str:
    """One word on one line, whatever is in it. What bash can't hold, a NUL, is left out."""
    return "$'" + "".join(_ESCAPES.get(each) or _escaped(each) for each in text) + "'"


def _escaped(character: str) -> str:
    if character == "\0":
        return ""
    return character if character >= " " and character != "\x7f" else f"\\x{ord(character):02x}"
