"""From a definition to the spec of an instance."""

from __future__ import annotations

import ast
import copy
import inspect
import json
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.functions.access import HttpAccess, HttpAuth, hash_key
from roost.functions.definition import FunctionConfig
from roost.functions.mapping import revision, to_spec
from roost.functions.parse import parse
from roost.model.errors import InvalidArgument
from roost.model.function import Affinity, FunctionSpec, Idle, IsolationMode, Limits, Runtime, Scaling, SessionPolicy
from roost.model.taint import TaintRules


def spec(**given: Any) -> FunctionSpec:
    config = parse(FunctionConfig, {"runtime": "python3", "handler": "index.handler"} | given)
    return to_spec(account="a", name="f", version="LATEST", config=config, code="digest", layers="", scaling=Scaling())


def test_the_defaults() -> None:
    made = spec()
    assert made.runtime is Runtime.PYTHON
    assert (made.limits, made.idle, made.sessions) == (Limits(), Idle(), SessionPolicy(sessions_per_instance=1))
    assert (made.timeout_s, made.concurrency, made.template, made.isolation) == (3.0, 1, "host", "namespaces")
    assert (made.command, made.mounts, made.packages, made.initializer) == ((), (), (), None)


@pytest.mark.parametrize("runtime", ["python3", "python3.6", "python3.9", "python3.14"])
def test_every_python_is_the_guests(runtime: str) -> None:
    assert spec(runtime=runtime).runtime is Runtime.PYTHON


@pytest.mark.parametrize(
    ("given", "command", "port"),
    [
        ({"runtime": "custom"}, ("/code/bootstrap",), 9000),
        ({"runtime": "custom.debian12", "customRuntimeConfig": {"port": 80}}, ("/code/bootstrap",), 80),
        ({"runtime": "custom", "customRuntimeConfig": {"command": ["a"], "args": ["b", "c"]}}, ("a", "b", "c"), 9000),
        ({"runtime": "custom", "customRuntimeConfig": {"args": ["-x"]}}, ("/code/bootstrap", "-x"), 9000),
        (
            {
                "runtime": "custom-container",
                "customContainerConfig": {"image": "debian", "entrypoint": ["e"], "command": ["c"], "port": 1},
            },
            ("e", "c"),
            1,
        ),
    ],
)
def test_custom_runtimes(given: dict[str, Any], command: tuple[str, ...], port: int) -> None:
    made = spec(**given, handler="")
    assert (made.runtime, made.command, made.port) == (Runtime.CUSTOM, command, port)


def test_a_container_runs_in_the_template_its_image_names() -> None:
    made = spec(runtime="custom-container", customContainerConfig={"image": "debian-12.node"})
    assert made.template == "debian-12.node"
    assert made.command == ()  # what the image starts


def test_the_extension() -> None:
    made = spec(
        roost={
            "template": "t", "packages": ["pypi", "npm"], "isolation": "process", "egress": "transparent",
            "freezeAfter": 0.25, "idleTimeout": 7, "pids": 64, "openFiles": 128, "volumeQuotaMB": 5,
            "modelCalls": 9, "egressMB": 7, "egressConnections": 3,
            "taint": {"mode": "audit", "trusted": ["a.test"], "start": ["private"]},
        },
        nasConfig={"mountPoints": [{"serverAddr": "v:", "mountDir": "/mnt/v/"}]},
    )  # fmt: skip
    assert (made.template, made.packages, made.isolation) == ("t", ("npm", "pypi"), "process")
    assert made.egress.transparent
    assert made.idle == Idle(freeze_after_s=0.25, stop_after_s=7.0)
    assert (made.limits.pids, made.limits.open_files, made.limits.model_calls) == (64, 128, 9)
    assert (made.egress.megabytes, made.egress.connections) == (7, 3)
    assert made.egress.taint == TaintRules(mode="audit", trusted=("a.test",), start=("private",))
    assert [(m.volume, m.path, m.target, m.quota_mb) for m in made.mounts] == [("v", "/", "/mnt/v", 5)]


HEADER = json.dumps({"affinityHeaderFieldName": "X-Session"})


@pytest.mark.parametrize(
    ("given", "concurrency", "sessions"),
    [
        ({"runtime": "custom"}, 200, 20),
        ({"runtime": "python3"}, 1, 1),
        ({"runtime": "python3", "instanceConcurrency": 5}, 5, 5),
        ({"runtime": "custom", "instanceIsolationMode": "SESSION_EXCLUSIVE"}, 200, 1),
    ],
)
def test_how_sessions_share_instances(given: dict[str, Any], concurrency: int, sessions: int) -> None:
    made = spec(**given, sessionAffinity="HEADER_FIELD", sessionAffinityConfig=HEADER)
    assert (made.concurrency, made.sessions.sessions_per_instance) == (concurrency, sessions)
    assert made.sessions.header == "x-session"


@pytest.mark.parametrize("affinity", ["MCP_SSE", "MCP_STREAMABLE_HTTP"])
def test_an_mcp_servers_event_stream_needs_a_slot_beside_the_calls(affinity: str) -> None:
    made = spec(sessionAffinity=affinity)
    assert (made.concurrency, made.sessions.sessions_per_instance) == (200, 20)
    assert spec(sessionAffinity=affinity, instanceConcurrency=2).concurrency == 2
    with pytest.raises(InvalidArgument, match="instanceConcurrency"):
        spec(sessionAffinity=affinity, instanceConcurrency=1)


def test_a_request_of_its_own_takes_one_at_a_time_and_knows_no_session() -> None:
    made = spec(runtime="custom", instanceIsolationMode="REQUEST_EXCLUSIVE")
    assert (made.concurrency, made.isolation_mode) == (1, IsolationMode.REQUEST_EXCLUSIVE)
    with pytest.raises(InvalidArgument, match="sessionAffinity"):
        spec(
            runtime="custom",
            instanceIsolationMode="REQUEST_EXCLUSIVE",
            sessionAffinity="HEADER_FIELD",
            sessionAffinityConfig=HEADER,
        )


@pytest.mark.parametrize(
    ("affinity", "config", "expected"),
    [
        (
            "GENERATED_COOKIE",
            {"sessionTTLInSeconds": 100, "sessionConcurrencyPerInstance": 3},
            SessionPolicy(affinity=Affinity.GENERATED_COOKIE, ttl_s=100, idle_timeout_s=100, sessions_per_instance=3),
        ),
        (
            "MCP_SSE",
            {"sseEndpointPath": "/events"},
            SessionPolicy(affinity=Affinity.MCP_SSE, sse_path="/events", ttl_s=77, idle_timeout_s=0),
        ),
        (
            "MCP_STREAMABLE",
            {"sessionIdleTimeoutInSeconds": 0},
            SessionPolicy(affinity=Affinity.MCP_STREAMABLE_HTTP, ttl_s=21600, idle_timeout_s=0),
        ),
        ("MCP_STREAMABLE_HTTP", {}, SessionPolicy(affinity=Affinity.MCP_STREAMABLE_HTTP)),
    ],
)
def test_session_policies(affinity: str, config: dict[str, Any], expected: SessionPolicy) -> None:
    made = spec(runtime="custom", timeout=77, sessionAffinity=affinity, sessionAffinityConfig=json.dumps(config))
    assert made.sessions == expected


@pytest.mark.parametrize(
    ("affinity", "config", "field"),
    [
        ("HEADER_FIELD", {"affinityHeaderFieldName": "x-fc-session"}, "affinityHeaderFieldName"),
        ("HEADER_FIELD", {"affinityHeaderFieldName": "abcd"}, "affinityHeaderFieldName"),
        ("HEADER_FIELD", {"affinityHeaderFieldName": "1session"}, "affinityHeaderFieldName"),
        ("HEADER_FIELD", {"affinityHeaderFieldName": "x" * 41}, "affinityHeaderFieldName"),
        ("GENERATED_COOKIE", {"affinityHeaderFieldName": "X-Session"}, "affinityHeaderFieldName"),
        ("GENERATED_COOKIE", {"sessionTTLInSeconds": 0}, "sessionTTLInSeconds"),
        ("GENERATED_COOKIE", {"sessionTTLInSeconds": "60"}, "sessionTTLInSeconds"),
        ("GENERATED_COOKIE", {"sessionTTLInSeconds": 60, "sessionIdleTimeoutInSeconds": 61}, "IdleTimeout"),
        ("GENERATED_COOKIE", {"sessionConcurrencyPerInstance": 201}, "sessionConcurrencyPerInstance"),
        ("MCP_SSE", {"sseEndpointPath": "sse"}, "sseEndpointPath"),
        ("MCP_SSE", {"sessionTTLInSeconds": 60}, "sessionTTLInSeconds"),
        ("NONE", {"sessionTTLInSeconds": 60}, "sessionAffinity"),
    ],
)
def test_session_policies_that_can_not_be(affinity: str, config: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgument, match=field):
        spec(runtime="custom", sessionAffinity=affinity, sessionAffinityConfig=json.dumps(config))


@pytest.mark.parametrize(
    "points",
    [
        [("v:/a/../b", "/mnt")],
        [("v:a", "/mnt")],
        [(":/a", "/mnt")],
        [("v/w:/a", "/mnt")],
        [("..:/a", "/mnt")],
        [("v:/a", "mnt")],
        [("v:/a", "/")],
        [("v:/a", "/mnt/../code")],
        [("v:/a", "/proc/x")],
        [("v:/a", "/.roost")],
        [("v:/a", "/mnt/session/x")],
        [("v:/a", "/mnt"), ("w:/a", "/mnt/b")],
        [("v:/a", "/mnt"), ("w:/a", "/mnt/")],
    ],
)
def test_mounts_that_can_not_be(points: list[tuple[str, str]]) -> None:
    mounts = [{"serverAddr": source, "mountDir": target} for source, target in points]
    with pytest.raises(InvalidArgument, match=r"serverAddr|mountDir"):
        spec(nasConfig={"mountPoints": mounts})


def test_the_revision_tells_what_a_running_instance_would_notice() -> None:
    base = spec()
    assert base.revision == revision(base)
    same = [
        spec(description="d"),
        spec(idleTimeout=5),
        spec(logConfig={"project": "p"}),
        spec(roost={"freezeAfter": 9}),
    ]
    assert {made.revision for made in same} == {base.revision}
    assert revision(replace(base, scaling=Scaling(min_instances=4))) == base.revision
    others = [
        replace(base, handler="x.y"), replace(base, code="other"), replace(base, layers="l"),
        replace(base, environment={"A": "1"}), replace(base, limits=Limits(memory_mb=1024)), replace(base, timeout_s=4),
        replace(base, concurrency=2), replace(base, template="t"), replace(base, packages=("pypi",)),
        replace(base, isolation_mode=IsolationMode.REQUEST_EXCLUSIVE), replace(base, version="1"),
        replace(base, name="g"), replace(base, account="b"), replace(base, command=("x",)), replace(base, port=1),
    ]  # fmt: skip
    assert len({revision(other) for other in [base, *others]}) == len(others) + 1


def test_the_revision_does_not_depend_on_the_order_of_variables() -> None:
    one = spec(environmentVariables={"A": "1", "B": "2"})
    assert one.revision == spec(environmentVariables={"B": "2", "A": "1"}).revision


def test_every_field_of_a_spec_is_set_by_the_mapping() -> None:
    """A field that is added to FunctionSpec has to be thought of here."""
    calls = [node for node in ast.walk(ast.parse(inspect.getsource(to_spec))) if isinstance(node, ast.Call)]
    made = next(call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "FunctionSpec")
    assert {keyword.arg for keyword in made.keywords} == {field.name for field in fields(FunctionSpec)}


def test_nulls_are_the_same_as_nothing() -> None:
    assert spec(memorySize=None, nasConfig={"mountPoints": None, "userId": None}) == spec()


def test_http_access() -> None:
    keyed = HttpAccess(auth=HttpAuth.BEARER, key_hashes=frozenset({hash_key("k1"), hash_key("k2")}))
    assert [keyed.admits(key) for key in ("k1", "k2", "k3", "")] == [True, True, False, False]
    assert not HttpAccess(auth=HttpAuth.BEARER).admits("")
    assert HttpAccess(auth=HttpAuth.ANONYMOUS).admits("")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    below = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, item in below for found in _paths(item, (*path, key)))]


FULL: dict[str, Any] = {
    "runtime": "custom",
    "handler": "x.y",
    "cpu": 1,
    "memorySize": 1024,
    "environmentVariables": {"A": "b"},
    "customRuntimeConfig": {"command": ["a"], "args": ["b"], "port": 1, "healthCheckConfig": {"periodSeconds": 1}},
    "instanceLifecycleConfig": {"initializer": {"handler": "a.b", "timeout": 3}, "preStop": {"command": ["x"]}},
    "sessionAffinity": "HEADER_FIELD",
    "sessionAffinityConfig": HEADER,
    "instanceIsolationMode": "SESSION_EXCLUSIVE",
    "nasConfig": {"mountPoints": [{"serverAddr": "v:/a", "mountDir": "/mnt/a"}]},
    "ossMountConfig": {"mountPoints": [{"bucketName": "v", "mountDir": "/mnt/b"}]},
    "roost": {"template": "t", "packages": ["pypi"], "freezeAfter": 1.5},
    "gpuConfig": {},
}


@given(st.sampled_from(_paths(FULL)[1:]), JSON)
def test_any_value_in_any_place_is_taken_or_refused_by_name(path: tuple[Any, ...], value: Any) -> None:
    given_config = copy.deepcopy(FULL)
    place = given_config
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    try:
        made = spec(**given_config)
    except InvalidArgument as error:
        assert error.message
        return
    assert made.revision == revision(made)
    again = parse(FunctionConfig, json.loads(json.dumps(parse(FunctionConfig, given_config).to_json())))
    assert again == parse(FunctionConfig, given_config), "what is kept is what was given"
