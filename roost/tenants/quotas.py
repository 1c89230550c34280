"""What each account may use: running instances and their memory, sandboxes, waiting tasks, egress, requests.

A limit of 0 is none. Where no account has one nothing is asked on the path of a request (`metered` is False).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Protocol

from roost.model.errors import InvalidArgument, Throttled

_MOST = 1 << 40
_DAY_S = 86400


@dataclass(frozen=True, kw_only=True)
class Quota:
    """Counts, of one account; 0: no limit."""

    instances: int = 0  # of functions and sandboxes, with a room
    memory_mb: int = 0  # that these may take together
    sandboxes: int = 0  # that run or are paused with their memory
    queued_tasks: int = 0
    egress_mb_per_day: int = 0  # between rooms and what the server fetches for them; a day is UTC's
    model_calls_per_day: int = 0  # that rooms make; an agent that goes round in circles ends there
    requests_per_s: int = 0
    request_burst: int = 0  # at once; 0: those of one second


#: As settings, records and the API name them.
NAMES = tuple(field.name for field in fields(Quota))


class QuotaStore(Protocol):
    async def put(self, account: str, limits: Mapping[str, int]) -> None: ...

    async def delete(self, account: str) -> None: ...

    async def list_all(self) -> dict[str, dict[str, int]]: ...


class OverQuota(Throttled):
    """An account's own limit, not the server's."""

    code = "QuotaExceeded"


class _Bucket:
    __slots__ = ("at", "burst", "rate", "tokens")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self.rate = rate
        self.burst = self.tokens = burst
        self.at = now


class Quotas:
    """`await load()` before use. `usual` is every account's that has none of its own; `monotonic` counts requests,
    `clock` days; `holdings(account)` tells (instances, their memory in MB, sandboxes) of now."""

    def __init__(
        self,
        usual: Quota,
        store: QuotaStore,
        *,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
        holdings: Callable[[str], tuple[int, int, int]],
    ) -> None:
        self.usual = usual
        self._store = store
        self._clock = clock
        self._monotonic = monotonic
        self._holdings = holdings
        self._own: dict[str, Quota] = {}
        self._buckets: dict[str, _Bucket | None] = {}
        self._egress: dict[str, int] = {}
        self._model_calls: dict[str, int] = {}
        self._day = 0
        #: Some account has a limit on requests.
        self.metered = bool(usual.requests_per_s)

    async def load(self) -> None:
        for account, limits in (await self._store.list_all()).items():
            self._own[account] = Quota(**{name: limits[name] for name in NAMES if name in limits})
        self._changed()

    def of(self, account: str) -> Quota:
        return self._own.get(account, self.usual)

    def own(self) -> Mapping[str, Quota]:
        """Of the accounts that have one of their own."""
        return self._own

    async def put(self, account: str, limits: Mapping[str, object]) -> Quota:
        """Replace the account's; what is left out is as usual. Raises InvalidArgument."""
        quota = replace(self.usual, **parse(limits))
        await self._store.put(account, {name: getattr(quota, name) for name in NAMES})
        self._own[account] = quota
        self._changed()
        return quota

    async def delete(self, account: str) -> None:
        """The account has what is usual again."""
        await self._store.delete(account)
        self._own.pop(account, None)
        self._changed()

    def _changed(self) -> None:
        self._buckets.clear()
        self.metered = any(quota.requests_per_s for quota in (self.usual, *self._own.values()))

    # --- asked by others; each raises OverQuota ------------------------------------------------------------------

    def request(self, account: str) -> None:
        """One more request. On the path of every request, so it makes nothing and calls little."""
        if not self.metered:
            return
        try:
            bucket = self._buckets[account]
        except KeyError:
            bucket = self._bucket(account)
        if bucket is None:
            return
        now = self._monotonic()
        tokens = bucket.tokens + (now - bucket.at) * bucket.rate
        bucket.at = now
        if tokens < 1.0:
            bucket.tokens = tokens
            raise OverQuota(
                f"This account may send {bucket.rate:g} requests a second.", retry_after=(1.0 - tokens) / bucket.rate
            )
        bucket.tokens = (tokens if tokens < bucket.burst else bucket.burst) - 1.0

    def _bucket(self, account: str) -> _Bucket | None:
        quota = self.of(account)
        if len(self._buckets) > 10_000:  # accounts are the operator's to make, yet nothing grows without end
            self._buckets.clear()
        rate = quota.requests_per_s
        made = _Bucket(rate, max(quota.request_burst, rate, 1), self._monotonic()) if rate else None
        self._buckets[account] = made
        return made

    def instance(self, account: str, memory_mb: int, *, sandbox: bool = False) -> None:
        """One more room, with so much memory."""
        quota = self.of(account)
        if not (quota.instances or quota.memory_mb or (sandbox and quota.sandboxes)):
            return
        instances, memory, sandboxes = self._holdings(account)
        if sandbox and quota.sandboxes and sandboxes >= quota.sandboxes:
            raise OverQuota(f"This account may have {quota.sandboxes} sandboxes at once.", retry_after=1)
        if quota.instances and instances >= quota.instances:
            raise OverQuota(f"This account may have {quota.instances} instances at once.", retry_after=1)
        if quota.memory_mb and memory + memory_mb > quota.memory_mb:
            raise OverQuota(f"The instances of this account may have {quota.memory_mb} MB.", retry_after=1)

    def memory_over(self, account: str) -> int:
        """By how many MB it is above its memory now."""
        quota = self.of(account)
        return max(0, self._holdings(account)[1] - quota.memory_mb) if quota.memory_mb else 0

    def task(self, account: str, waiting: int) -> None:
        """One more task beside those that wait."""
        quota = self.of(account)
        if quota.queued_tasks and waiting >= quota.queued_tasks:
            raise OverQuota(f"This account may have {quota.queued_tasks} tasks that wait.", retry_after=5)

    def egress(self, account: str, count: int) -> None:
        """So many bytes are about to go to a room. The last ones of a day may be more than what is left of it."""
        left = _DAY_S - self._today()
        used, most = self._egress.get(account, 0), self.of(account).egress_mb_per_day
        if most and used >= most << 20:
            raise OverQuota(f"This account may move {most} MB a day.", retry_after=left)
        self._egress[account] = used + count

    def model_call(self, account: str) -> None:
        """One more request of a room to its model."""
        left = _DAY_S - self._today()
        made, most = self._model_calls.get(account, 0), self.of(account).model_calls_per_day
        if most and made >= most:
            raise OverQuota(f"This account may call its models {most} times a day.", retry_after=left)
        self._model_calls[account] = made + 1

    def model_calls_of(self, account: str) -> int:
        """Of today, as `egress_of`."""
        self._today()
        return self._model_calls.get(account, 0)

    def egress_of(self, account: str) -> int:
        """Bytes of today. They are counted from zero when the server starts."""
        self._today()
        return self._egress.get(account, 0)

    def _today(self) -> float:
        """Seconds since its begin."""
        day, second = divmod(self._clock(), _DAY_S)
        if day != self._day:
            self._day = int(day)
            self._egress.clear()
            self._model_calls.clear()
        return second


def parse(limits: Mapping[str, object]) -> dict[str, int]:
    """Limits that came from outside. Raises InvalidArgument that names the first bad one."""
    checked: dict[str, int] = {}
    for name, value in limits.items():
        if name not in NAMES:
            raise InvalidArgument(f"{name[:64]}: there is no such quota; there are {', '.join(NAMES)}.")
        if type(value) is not int or not 0 <= value <= _MOST:
            raise InvalidArgument(f"{name}: a whole number is expected, 0 for no limit.")
        checked[name] = value
    return checked
