"""What the interpreter says of one run of code, collected within bounds. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from roost.api.mcp.text import MOST_IMAGE, Output, Reply, image

MOST_IMAGES = 8
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class CodeRun:
    """What a cell says, collected within bounds."""

    def __init__(self) -> None:
        self._out, self._err, self._results = Output(), Output(), Output()
        self._images: list[dict[str, Any]] = []
        self._left_out = 0
        self._error = ""

    def take(self, message: Mapping[str, Any]) -> None:
        match message.get("type"):
            case "stdout":
                self._out.add(_utf8(message.get("text")))
            case "stderr":
                self._err.add(_utf8(message.get("text")))
            case "result":
                self._take_result(message)
            case "error":
                told = str(message.get("traceback") or f"{message.get('name')}: {message.get('value')}")
                self._error = self._error or _COLOUR.sub("", told)

    def stopped(self, after_s: float) -> None:
        self._error = f"[stopped after {after_s:g} s]"

    def _take_result(self, message: Mapping[str, Any]) -> None:
        for name, kind in (("png", "image/png"), ("jpeg", "image/jpeg")):
            data = message.get(name)
            if isinstance(data, str):
                if len(self._images) < MOST_IMAGES and len(data) <= MOST_IMAGE * 4 // 3:
                    self._images.append(image(data.replace("\n", ""), kind))
                else:
                    self._left_out += 1
                return
        text = message.get("text") or message.get("markdown") or message.get("html")
        if text:
            self._results.add(_utf8(text) + b"\n")

    def reply(self) -> Reply:
        error = Output()
        error.add(_utf8(self._error))
        parts = [
            self._out.text(),
            f"[stderr]\n{self._err.text()}" if self._err.size else "",
            self._results.text(),
            error.text(),
            f"[{self._left_out} images were left out: too many, or too large]" if self._left_out else "",
        ]
        reply = Reply.of(*parts, error=bool(self._error))
        if self._images and not any(parts):
            reply.content.clear()
        reply.content += self._images
        return reply


def _utf8(value: object) -> bytes:
    return str(value or "").encode("utf-8", "replace")
