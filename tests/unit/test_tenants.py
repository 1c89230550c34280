"""Who calls and how much they may, without a server: failures of logins, buckets of requests, limits, roles."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.gateway.routes import Http, route
from roost.model.audit import AuditEvent
from roost.model.errors import AccessDenied, InvalidArgument, NotFound, Throttled, Unauthenticated
from roost.model.role import Role
from roost.model.signature import AccessKey, Keys
from roost.tenants.identity import FAILURES, Identity
from roost.tenants.quotas import OverQuota, Quota, Quotas
from roost.tenants.roles import TABLE, least_role, needed

DAY = 86400.0


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class NoStore:
    async def put(self, account: str, limits: object) -> None: ...

    async def delete(self, account: str) -> None: ...

    async def list_all(self) -> dict[str, dict[str, int]]:
        return {}


def quotas(usual: Quota, clock: Clock, held: tuple[int, int, int] = (0, 0, 0)) -> Quotas:
    return Quotas(usual, NoStore(), clock=clock, monotonic=clock, holdings=lambda account: held)


def key(name: str, role: Role = Role.ADMIN, account: str = "acme") -> AccessKey:
    return AccessKey(id=name, secret=f"secret-of-{name}", account=account, role=role)


def test_a_secret_tells_who_calls_until_it_is_revoked() -> None:
    used: list[str] = []
    keys = Keys([key("one", Role.INVOKER), key("two")])
    identity = Identity(keys, clock=Clock(), used=used.append)
    caller = identity.shown("secret-of-one", source="s", least=Role.VIEWER)
    assert (caller.account, caller.key, caller.role, caller.operator) == ("acme", "one", Role.INVOKER, False)
    with pytest.raises(AccessDenied, match="role is invoker; developer"):
        identity.shown("secret-of-one", source="s", least=Role.DEVELOPER)
    keys.remove("one")
    keys.remove("one")
    with pytest.raises(Unauthenticated):
        identity.shown("secret-of-one", source="s", least=Role.VIEWER)
    keys.remove("two")
    assert keys.asked and used == ["one", "one"]
    with pytest.raises(Unauthenticated):
        identity.shown("", source="s", least=Role.VIEWER)


def test_without_keys_everyone_is_the_servers_own_admin() -> None:
    caller = Identity(Keys(default_account="mine"), clock=Clock()).shown("any", source="s", least=Role.ADMIN)
    assert (caller.account, caller.key, caller.role, caller.operator) == ("mine", "anonymous", Role.ADMIN, True)


def test_two_keys_with_one_secret_stay_apart() -> None:
    keys = Keys([AccessKey(id="a", secret="same", account="x"), AccessKey(id="b", secret="same", account="y")])
    assert [keys.of_secret("same"), keys.lookup("b")] == [
        keys.lookup("a"),
        AccessKey(id="b", secret="same", account="y"),
    ]
    keys.remove("a")
    assert keys.of_secret("same") == keys.lookup("b")


def test_wrong_credentials_are_told_and_bounded_by_source() -> None:
    clock, told = Clock(), list[AuditEvent]()
    identity = Identity(Keys([key("one")]), clock=clock, audit=told.append)
    for _ in range(FAILURES):
        with pytest.raises(Unauthenticated):
            identity.shown("wrong", source="bad", least=Role.VIEWER)
    with pytest.raises(Throttled) as refused:
        identity.shown("secret-of-one", source="bad", least=Role.VIEWER)
    assert refused.value.retry_after == 1.0
    assert identity.shown("secret-of-one", source="good", least=Role.VIEWER).key == "one"
    wrong = [event for event in told if event.outcome == "denied"]
    assert {(event.action, event.detail["source"]) for event in wrong} == {("login", "bad")}
    assert len(wrong) == FAILURES and "secret-of" not in str(told)
    assert [(event.actor, event.detail["source"]) for event in told if event.outcome == "allowed"] == [("one", "good")]
    made = AccessKey(id="made", secret="256 bits", account="acme", strong=True)
    identity.keys.add(made)
    assert identity.shown("256 bits", source="bad", least=Role.VIEWER).key == "made"  # whoever shares its address
    clock.now += 1.0
    assert identity.shown("secret-of-one", source="bad", least=Role.VIEWER).key == "one"


def test_sources_take_bounded_memory() -> None:
    identity = Identity(Keys([key("one")]), clock=Clock())
    for number in range(5000):
        identity.failed(f"source-{number}", "test")
    assert len(identity._failures._known) == 4096


@given(pauses=st.lists(st.floats(0, 3), min_size=1, max_size=200), rate=st.integers(1, 5), burst=st.integers(0, 20))
def test_a_bucket_lets_through_no_more_than_its_rate(pauses: list[float], rate: int, burst: int) -> None:
    clock = Clock()
    found = quotas(Quota(requests_per_s=rate, request_burst=burst), clock)
    passed, began = 0, clock.now
    for pause in pauses:
        clock.now += pause
        try:
            found.request("acme")
            passed += 1
        except OverQuota as over:
            assert 0 < (over.retry_after or 0) <= 1 / rate + 1e-6
    assert 1 <= passed <= max(burst, rate) + (clock.now - began) * rate + 1e-6


def test_accounts_have_buckets_of_their_own() -> None:
    found = quotas(Quota(requests_per_s=1), Clock())
    found.request("a")
    found.request("b")
    with pytest.raises(OverQuota):
        found.request("a")


@pytest.mark.parametrize(
    ("limits", "held", "sandbox", "over"),
    [
        ({}, (9, 9999, 9), True, ""),
        ({"instances": 2}, (1, 0, 0), False, ""),
        ({"instances": 2}, (2, 0, 0), False, "2 instances"),
        ({"memory_mb": 1000}, (1, 500, 0), False, ""),
        ({"memory_mb": 1000}, (1, 501, 0), False, "1000 MB"),
        ({"sandboxes": 1}, (5, 0, 0), True, ""),
        ({"sandboxes": 1}, (5, 0, 1), True, "1 sandboxes"),
        ({"sandboxes": 1}, (5, 0, 1), False, ""),
    ],
)
def test_rooms(limits: dict[str, int], held: tuple[int, int, int], sandbox: bool, over: str) -> None:
    found = quotas(Quota(**limits), Clock(), held)
    if not over:
        found.instance("acme", 500, sandbox=sandbox)
    else:
        with pytest.raises(OverQuota, match=over):
            found.instance("acme", 500, sandbox=sandbox)


def test_egress_is_counted_by_the_day() -> None:
    clock = Clock()
    found = quotas(Quota(egress_mb_per_day=1), clock)
    found.egress("acme", (1 << 20) - 1)
    found.egress("acme", 2)
    with pytest.raises(OverQuota) as over:
        found.egress("acme", 1)
    assert over.value.retry_after == DAY - 1000.0
    assert found.egress_of("acme") == (1 << 20) + 1
    found.egress("other", 1)
    clock.now += DAY
    assert found.egress_of("acme") == 0
    found.egress("acme", 1)


def test_calls_of_models_are_counted_by_the_day() -> None:
    clock = Clock()
    found = quotas(Quota(model_calls_per_day=2), clock)
    found.model_call("acme")
    found.model_call("acme")
    with pytest.raises(OverQuota, match="2 times a day"):
        found.model_call("acme")
    assert found.model_calls_of("acme") == 2
    found.model_call("other")
    clock.now += DAY
    found.model_call("acme")


@pytest.mark.parametrize("limits", [{"rooms": 1}, {"instances": -1}, {"instances": True}, {"instances": "1"}])
async def test_bad_quotas_are_refused(limits: dict[str, object]) -> None:
    with pytest.raises(InvalidArgument):
        await quotas(Quota(), Clock()).put("acme", limits)


def test_a_route_without_a_role_can_not_be_made() -> None:
    with pytest.raises(LookupError, match="has no role"):
        least_role("GET", "/new")
    with pytest.raises(LookupError, match="open"):
        needed("GET", "/healthz")
    assert needed("DELETE", "/roost/keys/{id}") is Role.ADMIN
    # What anybody may without a key: each of these has a reason in the table's head.
    assert {path.split("/")[1] for (_, path), role in TABLE.items() if role is None} == {
        "healthz", "webhooks", "webhooks{rest:path}", "2023-03-30", "templates", "volumecontent",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("target", "account", "name", "qualifier", "prefix", "rest"),
    [
        (b"/~acme/f", "acme", "f", "LATEST", "/~acme/f", b"/"),
        (b"/~acme/f?x=1", "acme", "f", "LATEST", "/~acme/f", b"/?x=1"),
        (b"/~acme/f:prod/a/b?x", "acme", "f", "prod", "/~acme/f:prod", b"/a/b?x"),
        (b"/f/~acme/g", "", "f", "LATEST", "/f", b"/~acme/g"),
    ],
)
def test_addresses_of_accounts(
    target: bytes, account: str, name: str, qualifier: str, prefix: str, rest: bytes
) -> None:
    assert route("GET", target) == Http(name, qualifier, prefix, rest, account)


@pytest.mark.parametrize(
    "target", [b"/~", b"/~acme", b"/~acme/", b"/~acme?x", b"/~a.b/f", b"/~acme/2023-03-30/x", b"/~/f"]
)
def test_what_is_no_address(target: bytes) -> None:
    with pytest.raises(NotFound):
        route("GET", target)
