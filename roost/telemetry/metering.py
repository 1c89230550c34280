"""What functions and sessions used, made of records alone.

The rules
- `busy_ms`: time an instance had at least one lease. `idle_ms`: time it was ready without one.
- `starting_ms`, `frozen_ms`, `paused_ms`: time in that state (resuming counts as starting).
- `invocation_ms`: the sum of invocations' own durations; more than `busy_ms` where they overlap on one instance.
- `gb_seconds`: memory limit in GiB x seconds in every state in which a room exists and may run: all but frozen, paused
  and stopped. `frozen_gb_seconds`: the same for the frozen state, at FROZEN_WEIGHT. A paused instance holds no memory.
- `cpu_ms`: CPU time used, in any state.
- `invocations` reached an instance; `rejected` never did (throttled, no instance could start).

A function's usage has everything of its instances and invocations. A session's has its invocations, and the instances
that were its own; an instance shared by sessions belongs to the function alone. A state's time is known when it ends,
so usage is up to each instance's last transition.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

from roost.model.instance import State
from roost.model.usage import InvocationRecord, Outcome, TransitionRecord

#: What a frozen instance's memory counts: it holds memory, no CPU (facts: Function Compute charges an idle one so).
FROZEN_WEIGHT = 0.1
#: Sessions and functions with a figure of their own; the least recently used goes into the larger total it is part of.
MAX_SESSIONS = 20_000
MAX_FUNCTIONS = 10_000

_OK = Outcome.OK  # for every request: Python 3.11 is slow to find, and to hash, a member of an enum
_SUCCESS = frozenset({Outcome.OK, Outcome.CANCELLED})
_FULL_WEIGHT = frozenset(State) - {State.FROZEN, State.PAUSED, State.STOPPED}


@dataclass(kw_only=True, slots=True)
class Usage:
    """Totals; see the rules above. Times in milliseconds."""

    busy_ms: float = 0.0
    idle_ms: float = 0.0
    starting_ms: float = 0.0
    frozen_ms: float = 0.0
    paused_ms: float = 0.0
    cpu_ms: float = 0.0
    gb_seconds: float = 0.0
    frozen_gb_seconds: float = 0.0
    invocation_ms: float = 0.0
    invocations: int = 0
    rejected: int = 0
    failed: int = 0
    cold_starts: int = 0

    def add(self, other: Usage) -> None:
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))

    def to_json(self) -> dict[str, float]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Usage:
        """The totals that `to_json` wrote; what is missing, not finite or negative counts as zero."""
        usage = cls()
        for field in fields(cls):
            value = values.get(field.name, 0)
            if isinstance(value, int | float) and math.isfinite(value) and value > 0:
                setattr(usage, field.name, type(getattr(usage, field.name))(value))
        return usage


def add_transition(usage: Usage, record: TransitionRecord) -> None:
    """Add what the instance used in the state it has left."""
    held = _seconds(record.held_s)
    leased = min(_seconds(record.leased_s), held)
    gib_seconds = max(record.memory_mb, 0) / 1024 * held
    state = record.before
    usage.busy_ms += leased * 1000
    usage.cpu_ms += max(record.cpu_us, 0) / 1000
    if state is State.READY:
        usage.idle_ms += (held - leased) * 1000
    elif state in (State.STARTING, State.RESUMING):
        usage.starting_ms += held * 1000
    elif state is State.FROZEN:
        usage.frozen_ms += held * 1000
        usage.frozen_gb_seconds += gib_seconds * FROZEN_WEIGHT
    elif state is State.PAUSED:
        usage.paused_ms += held * 1000
    if state in _FULL_WEIGHT:
        usage.gb_seconds += gib_seconds


def add_invocation(totals: Iterable[Usage], record: InvocationRecord) -> None:
    """Add one invocation. Its memory is metered by the instance's transitions, once, whatever ran at a time."""
    if not record.instance_id:
        for usage in totals:
            usage.rejected += 1
        return
    milliseconds = _seconds(record.duration_s) * 1000
    failed = record.outcome is not _OK and record.outcome not in _SUCCESS
    for usage in totals:
        usage.invocation_ms += milliseconds
        usage.invocations += 1
        usage.failed += failed
        usage.cold_starts += record.cold


def gb_seconds_of_invocation(record: InvocationRecord) -> float:
    """The memory-time of one invocation on its own (for its log line or trace); shared time is counted in each."""
    return max(record.memory_mb, 0) / 1024 * _seconds(record.duration_s) if record.instance_id else 0.0


class Meter:
    """Adds records up, per account, function and session. A sink of the Observer."""

    def __init__(self, *, max_sessions: int = MAX_SESSIONS, max_functions: int = MAX_FUNCTIONS) -> None:
        self._accounts: dict[str, Usage] = {}
        self._functions: OrderedDict[tuple[str, str], Usage] = OrderedDict()
        self._sessions: OrderedDict[tuple[str, str, str], Usage] = OrderedDict()
        self._max_sessions = max_sessions
        self._max_functions = max_functions
        #: Grows with every record; tells whether there is something new to persist.
        self.revision = 0

    def invocation(self, record: InvocationRecord) -> None:
        """Count a record, once."""
        add_invocation(self._totals(record.account, record.function, record.session_id), record)

    def transition(self, record: TransitionRecord) -> None:
        """Count a record, once."""
        for usage in self._totals(record.account, record.function, record.session_id):
            add_transition(usage, record)

    def _totals(self, account: str, function: str, session: str) -> list[Usage]:
        """Every total that a record belongs to."""
        self.revision += 1
        whole = self._accounts.get(account)
        if whole is None:
            whole = self._accounts[account] = Usage()
        totals = [whole, _entry(self._functions, (account, function), self._max_functions)]
        if session:
            totals.append(_entry(self._sessions, (account, function, session), self._max_sessions))
        return totals

    def usage(self, account: str, function: str | None = None, session: str | None = None) -> Usage:
        """A copy of the totals of an account, of one function, or of one of its sessions; zeros where nothing is known.

        A function's totals include its sessions', an account's its functions', also those of entries long evicted.
        """
        found: Usage | None
        if function is None:
            found = self._accounts.get(account)
        elif session is None:
            found = self._functions.get((account, function))
        else:
            found = self._sessions.get((account, function, session))
        copy = Usage()
        if found is not None:
            copy.add(found)
        return copy

    def snapshot(self) -> dict[str, Any]:
        """Everything, JSON-serialisable; `restore` takes it."""
        return {
            "accounts": [[account, usage.to_json()] for account, usage in self._accounts.items()],
            "functions": [[*key, usage.to_json()] for key, usage in self._functions.items()],
            "sessions": [[*key, usage.to_json()] for key, usage in self._sessions.items()],
        }

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Replace the totals by those of a snapshot; an empty one is that of a new meter. Raises ValueError when it is
        none."""
        if not snapshot:
            snapshot = Meter().snapshot()
        try:
            accounts = {str(account): Usage.from_json(usage) for account, usage in snapshot["accounts"]}
            functions = OrderedDict(
                ((str(account), str(function)), Usage.from_json(usage))
                for account, function, usage in snapshot["functions"]
            )
            sessions = OrderedDict(
                ((str(account), str(function), str(session)), Usage.from_json(usage))
                for account, function, session, usage in snapshot["sessions"]
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError("This is no snapshot of a meter.") from error
        self._accounts, self._functions, self._sessions = accounts, functions, sessions


def _seconds(value: float) -> float:
    """A duration as measured; clocks that were set meanwhile must not make it negative or endless."""
    return value if math.isfinite(value) and value > 0 else 0.0


_K = TypeVar("_K")


def _entry(totals: OrderedDict[_K, Usage], key: _K, limit: int) -> Usage:
    entry = totals.get(key)
    if entry is None:
        entry = totals[key] = Usage()
        if len(totals) > limit:
            totals.popitem(last=False)
    else:
        totals.move_to_end(key)
    return entry
