"""Who calls: one place decides it, for every protocol and both planes. From memory, with no await.

Credentials are an ACS3 signature, or a key's secret as a bearer or an API key. The audit is told of wrong ones, and of
the first request of a key from each source. Wrong ones are counted for each source: who tries too many is refused for a
while, whatever is tried, but for keys that the server made: nobody guesses these, and a stranger behind the same proxy
must not lock them out.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable

from roost.model.audit import Audit, AuditEvent
from roost.model.errors import AccessDenied, Throttled, Unauthenticated
from roost.model.role import ANONYMOUS, Caller, Role, covers
from roost.model.signature import AccessKey, Keys, verify

#: Wrong credentials that a source may show at once, and how many a second it gets back.
FAILURES = 50
FAILURES_PER_S = 1.0
_SOURCES = 4096


class Failures:
    """A bucket for each source of wrong credentials; the source that failed longest ago is forgotten first."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._known: OrderedDict[str, tuple[float, float]] = OrderedDict()  # source -> (failures, when)

    @property
    def any(self) -> bool:
        return bool(self._known)

    def check(self, source: str) -> None:
        """Raises Throttled when the source has shown too many."""
        if self._known and source in self._known and (count := self._count(source)) >= FAILURES:
            raise Throttled(
                "Too many wrong credentials came from this address; try again later.",
                code="TooManyFailedLogins",
                retry_after=(count - FAILURES + 1) / FAILURES_PER_S,
            )

    def note(self, source: str) -> None:
        self._known[source] = (self._count(source) + 1, self._clock())
        self._known.move_to_end(source)
        if len(self._known) > _SOURCES:
            self._known.popitem(last=False)

    def _count(self, source: str) -> float:
        count, at = self._known.get(source, (0.0, 0.0))
        return max(0.0, count - max(0.0, self._clock() - at) * FAILURES_PER_S)


class Identity:
    """Without keys everyone is the default account's admin. `used` is told each key that opened something; `meter` is
    told the account of each request that was let in, and may raise Throttled."""

    def __init__(
        self,
        keys: Keys,
        *,
        clock: Callable[[], float],
        audit: Audit | None = None,
        used: Callable[[str], None] | None = None,
        meter: Callable[[str], None] | None = None,
    ) -> None:
        self.keys = keys
        self._clock = clock
        self._audit = audit
        self._used = used
        self._meter = meter
        self._failures = Failures(clock)
        self._seen: set[tuple[str, str]] = set()  # (key, source) whose first request was told

    @property
    def asked(self) -> bool:
        """Whether callers have to show a key."""
        return bool(self.keys)

    def default(self) -> Caller:
        """Who calls where no keys are asked for."""
        return Caller(account=self.keys.default_account, key=ANONYMOUS, role=Role.ADMIN, operator=True)

    def signed(
        self,
        *,
        method: str,
        path: str,
        query: str,
        headers: Iterable[tuple[str, str]],
        body_sha256: str | None,
        source: str,
        least: Role,
        thing: str = "",
    ) -> Caller:
        """Of a signed request (see `signature.verify`) for `thing`, a grant, if keys may be for it alone. Raises
        Unauthenticated, AccessDenied, Throttled."""
        if not self.keys:
            return self._let_in(self.default(), least, source, thing)
        try:
            key = verify(
                method=method, path=path, query=query, headers=headers, body_sha256=body_sha256,
                lookup=self.keys.lookup, now=self._clock(),
            )  # fmt: skip
        except Unauthenticated as error:
            self._failures.check(source)
            if error.code != "MissingAuthorization":
                self.failed(source, "signature")
            raise
        return self._let_in(self._caller(key, source), least, source, thing)

    def shown(self, secret: str, *, source: str, least: Role, thing: str = "") -> Caller:
        """Of a key's secret, as `signed`. Raises Unauthenticated, AccessDenied, Throttled."""
        if not self.keys:
            return self._let_in(self.default(), least, source, thing)
        key = self.keys.of_secret(secret) if secret else None
        if key is None:
            self._failures.check(source)
            if secret:
                self.failed(source, "secret")
            raise Unauthenticated("This key is not known here.")
        return self._let_in(self._caller(key, source), least, source, thing)

    def account_of(self, secret: str) -> str | None:
        """Whose secret this is, for answers that tell an owner more than others. Nothing is counted."""
        key = self.keys.of_secret(secret) if secret else None
        return None if key is None else key.account

    def withheld(self, secret: str, source: str) -> None:
        """Tell the audit that a right key was shown where it opens nothing."""
        key = self.keys.of_secret(secret)
        if key is not None:
            self._tell(key.id, key.account, "grant" if key.grants else "role", "denied", source)

    @property
    def watching(self) -> bool:
        """Somebody has shown a wrong credential; only then is a source worth a look."""
        return self._failures.any

    def check_source(self, source: str) -> None:
        """Raises Throttled when the source has shown too many wrong credentials."""
        self._failures.check(source)

    def failed(self, source: str, how: str) -> None:
        """Somebody showed a wrong credential, here or to what checks by itself."""
        self._failures.note(source)
        self._tell(ANONYMOUS, "", how, "denied", source)

    def changed(self, caller: Caller, target: str, what: str) -> None:
        """Tell the audit that a key or a quota was made, changed or taken away."""
        if self._audit is not None:
            event = AuditEvent(
                action="policy.change", account=caller.account, actor=caller.key, target=target, outcome="allowed",
                detail={"what": what},
            )  # fmt: skip
            self._audit(event)

    def _caller(self, key: AccessKey, source: str) -> Caller:
        if not key.strong:
            # As long as the source has to wait, nobody is told whether what it guessed is right.
            self._failures.check(source)
        if self._used is not None:
            self._used(key.id)
        operator = key.account == self.keys.default_account
        return Caller(account=key.account, key=key.id, role=key.role, operator=operator, grants=key.grants)

    def _let_in(self, caller: Caller, least: Role, source: str, thing: str) -> Caller:
        if caller.role < least:
            self._tell(caller.key, caller.account, "role", "denied", source)
            raise AccessDenied(f"This key's role is {caller.role.name.lower()}; {least.name.lower()} is needed.")
        if not covers(caller.grants, thing):
            self._tell(caller.key, caller.account, "grant", "denied", source)
            raise AccessDenied(f"This key is for {', '.join(sorted(caller.grants))[:500]} alone.")
        if self._meter is not None:
            self._meter(caller.account)
        if self._audit is not None and (caller.key, source) not in self._seen:
            if len(self._seen) >= _SOURCES:
                self._seen.clear()
            self._seen.add((caller.key, source))
            self._tell(caller.key, caller.account, "key", "allowed", source)
        return caller

    def _tell(self, actor: str, account: str, how: str, outcome: str, source: str) -> None:
        if self._audit is not None:
            event = AuditEvent(
                action="login", account=account, actor=actor, target="server", outcome=outcome,
                detail={"by": how, "source": source[:64]},
            )  # fmt: skip
            self._audit(event)
