"""Where a room's proxies ask whether its labels let it speak, and tell what it is about to hear.

A label is there before the bytes that it is for: who asks next is judged by it, whatever is still on its way.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from roost.isolation.egress.refusal import Refused
from roost.isolation.egress.rules import Target
from roost.isolation.egress.taint import TaintPolicy
from roost.model.errors import RoostError
from roost.model.taint import LABELS, NONE, PRIVATE, Labels

_INDEXES = "the package indexes"


class Guard:
    """One room's. `labels` are those it has now; `add` gives it more, at once, and returns when they are kept (raises
    RoostError when they can't be); `on_refused` is told of each place that was asked for in vain, or (False) would have
    been if the policy were to block."""

    def __init__(
        self,
        policy: TaintPolicy,
        *,
        labels: Callable[[], Labels],
        add: Callable[[Labels, str], Awaitable[None]],
        on_refused: Callable[[str, bool], None] = lambda place, refused: None,
    ) -> None:
        self._policy = policy
        self._labels = labels
        self._add = add
        self._on_refused = on_refused

    # --- what is about to be sent --------------------------------------------------------------------------------

    def admit_name(self, name: str, port: int) -> None:
        """Before it is resolved. Raises Refused."""
        self._judge(self._policy.may_resolve(self._labels(), name, port), f"{name}:{port}")

    def admit(self, target: Target, *, tunnel: bool) -> None:
        """Before it is dialled; `tunnel`: what goes through will not be looked into. Raises Refused."""
        may = self._policy.may_tunnel if tunnel else self._policy.may_send
        self._judge(may(self._labels(), target), _place(target))

    def keeps(self, target: Target) -> bool:
        """Whether a tunnel that was admitted may go on."""
        try:
            self.admit(target, tunnel=True)
        except Refused:
            return False
        return True

    def go_on(self, target: Target, *, tunnel: bool = False) -> None:
        """Before each part that is sent. Raises Refused."""
        may = self._policy.may_tunnel if tunnel else self._policy.may_send
        if self._policy.block and not may(self._labels(), target):
            raise self._refusal(_place(target))

    # --- what is about to be heard -------------------------------------------------------------------------------

    async def heard(self, target: Target) -> None:
        """Before each part of a reply is given to the room. Raises Refused when its label can't be kept."""
        await self._grow(self._policy.heard(target), _place(target))

    async def packages(self) -> None:
        """Before an index is asked, and its reply heard. Raises Refused."""
        self._judge(self._policy.may_fetch_packages(self._labels()), _INDEXES)
        await self._grow(self._policy.heard_packages(), _INDEXES)
        if self._policy.block and not self._policy.may_fetch_packages(self._labels()):  # of what came meanwhile
            raise self._refusal(_INDEXES)

    async def secret(self, target: Target) -> None:
        """Before a request with a secret in it is sent: what it brings is the secret's owner's. Raises Refused."""
        await self._grow(frozenset({PRIVATE}), f"a secret for {_place(target)}")
        self.admit(target, tunnel=False)

    async def _grow(self, labels: Labels, why: str) -> None:
        if labels == NONE:
            return
        try:
            await self._add(labels, why)
        except RoostError as error:
            raise Refused(503, f"What this room is about to read can't be noted: {error.message}") from error

    def _judge(self, may: bool, place: str) -> None:
        if may:
            return
        self._on_refused(place, self._policy.block)
        if self._policy.block:
            raise self._refusal(place)

    def _refusal(self, place: str) -> Refused:
        if self._labels() == LABELS:
            why = "private data and content that is not trusted, so it may send nothing"
        else:
            why = "private data, so it opens nothing that can't be looked into"
        return Refused(403, f"This room has {why} to {place}, which is neither trusted nor private.")


async def _unnoted(labels: Labels, why: str) -> None: ...


#: Of a room that no labels are kept of.
UNGUARDED = Guard(TaintPolicy(), labels=lambda: NONE, add=_unnoted)


def _place(target: Target) -> str:
    return f"{target.name or target.address}:{target.port}"
