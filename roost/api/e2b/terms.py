"""What a sandbox gets when its creator does not say, and what it may get at most."""

from __future__ import annotations

from dataclasses import dataclass

from roost.model.errors import InvalidArgument


@dataclass(frozen=True, kw_only=True)
class Terms:
    """Settings of the server."""

    timeout_s: int
    max_timeout_s: int
    public: bool

    def timeout(self, asked: int | None) -> int:
        """Raises InvalidArgument for one that is too long."""
        timeout = self.timeout_s if asked is None else asked
        if timeout > self.max_timeout_s:
            raise InvalidArgument(
                f"timeout: {timeout} seconds are more than this server allows "
                f"({self.max_timeout_s}, its setting sandbox_max_timeout)."
            )
        return timeout
