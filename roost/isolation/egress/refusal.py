"""What a room is told when its proxy does not do what it asks for."""

from __future__ import annotations


class Refused(Exception):
    """The room may not, or can't. `status` is that of HTTP."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
