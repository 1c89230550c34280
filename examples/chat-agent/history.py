"""The conversation, in a file of the session, so that it survives freezing, pausing and the instance's death."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Message = dict[str, Any]


class History:
    """Messages in OpenAI's shape, appended to `history.jsonl`.

    A line holds messages that belong together (tool calls with their results), so a line torn by a crash takes nothing
    half with it: it is skipped.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.messages: list[Message] = []
        if path.exists():
            for line in path.read_text(errors="replace").split("\n"):
                self.messages += parse(line)

    def append(self, *messages: Message) -> None:
        """Add messages that belong together, on the disk first."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a") as file:
            # The line break comes first: what follows a torn line is then a line of its own.
            file.write("\n" + json.dumps(messages))
        self.messages += messages

    def recent(self, characters: int) -> list[Message]:
        """The latest messages of at most that many characters, starting with one of the user's; at least one turn."""
        start, total = len(self.messages), 0
        for index in range(len(self.messages) - 1, -1, -1):
            total += len(json.dumps(self.messages[index]))
            if total > characters and start < len(self.messages):
                break
            if self.messages[index]["role"] == "user":
                start = index
        return self.messages[start:]


def parse(line: str) -> list[Message]:
    """The messages of one line; none if it is empty or torn."""
    try:
        messages: list[Message] = json.loads(line)
    except ValueError:
        return []
    return messages
