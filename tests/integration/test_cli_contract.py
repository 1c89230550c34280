"""What roost.toml becomes is what the functions layer takes, field for field."""

import tomllib
from pathlib import Path

from roost.functions.definition import FunctionConfig
from roost.functions.mapping import to_spec
from roost.functions.parse import parse
from roost.model.function import Affinity, FunctionSpec, IsolationMode, Scaling
from roost.sdk import manifest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def spec_of(text: str) -> FunctionSpec:
    parsed = tomllib.loads(text)
    manifest.validate(parsed)
    config = parse(FunctionConfig, manifest.to_function(parsed, {}))
    return to_spec(account="a", name="f", version="LATEST", config=config, code="", layers="", scaling=Scaling())


def test_every_setting_arrives() -> None:
    spec = spec_of(
        """
        handler = "agent.run"
        memory = 1024
        cpu = 1
        disk = 10240
        timeout = 60
        concurrency = 2
        packages = ["pypi", "npm"]
        pids = 32
        open_files = 99
        volume_quota = 7
        template = "trixie"
        layers = ["acs:fc:local:default:layers/base/versions/1"]
        [env]
        A = "b"
        [session]
        affinity = "header"
        header = "X-Chat-Id"
        exclusive = true
        ttl = 100
        idle_timeout = 50
        reuse_id = false
        [initializer]
        handler = "agent.begin"
        [pre_stop]
        command = ["sync"]
        timeout = 9
        [idle]
        freeze_after = 2
        stop_after = 30
        [[volumes]]
        name = "notes"
        path = "/{user}/{session}"
        target = "/mnt/notes"
        read_only = true
        """
    )
    assert (spec.handler, spec.timeout_s, spec.concurrency, spec.template) == ("agent.run", 60.0, 2, "trixie")
    assert (spec.limits.memory_mb, spec.limits.cpu, spec.limits.disk_mb) == (1024, 1.0, 10240)
    assert (spec.limits.pids, spec.limits.open_files) == (32, 99)
    assert set(spec.packages) == {"pypi", "npm"}
    assert spec.environment == {"A": "b"}
    assert (spec.isolation_mode, spec.sessions.affinity) == (IsolationMode.SESSION_EXCLUSIVE, Affinity.HEADER_FIELD)
    assert (spec.sessions.header, spec.sessions.ttl_s, spec.sessions.idle_timeout_s) == ("x-chat-id", 100, 50)
    assert spec.sessions.disable_id_reuse
    assert spec.initializer
    assert spec.initializer.handler == "agent.begin"
    assert spec.pre_stop
    assert (spec.pre_stop.command, spec.pre_stop.timeout_s) == (("sync",), 9.0)
    assert (spec.idle.freeze_after_s, spec.idle.stop_after_s) == (2.0, 30.0)
    (mount,) = spec.mounts
    assert (mount.volume, mount.path, mount.target) == ("notes", "/{user}/{session}", "/mnt/notes")
    assert (mount.read_only, mount.quota_mb) == (True, 7)


def test_a_custom_runtime_and_each_affinity() -> None:
    spec = spec_of('runtime = "custom"\ncommand = ["node", "a.js"]\nport = 3000')
    assert (spec.command, spec.port) == (("node", "a.js"), 3000)
    for name, value in manifest.AFFINITIES.items():
        assert spec_of(f'[session]\naffinity = "{name}"').sessions.affinity.value == value


def test_documented_defaults() -> None:
    spec = spec_of("")
    assert (spec.limits.memory_mb, spec.limits.cpu, spec.limits.disk_mb) == (512, 1.0, 512)
    assert (spec.limits.pids, spec.limits.open_files) == (256, 1024)
    assert (spec.handler, spec.timeout_s, spec.concurrency, spec.port) == ("index.handler", 3.0, 1, 9000)
    assert (spec.idle.freeze_after_s, spec.idle.stop_after_s, spec.scaling.max_instances) == (1.0, 300.0, 100)
    sessions = spec_of('[session]\naffinity = "cookie"').sessions
    assert (sessions.ttl_s, sessions.idle_timeout_s) == (21600, 1800)


def test_the_examples_are_taken() -> None:
    folders = [path.parent for path in EXAMPLES.glob("*/roost.toml")]
    assert folders
    for folder in folders:
        config = parse(FunctionConfig, manifest.to_function(manifest.load(folder), {}))
        to_spec(account="a", name="f", version="LATEST", config=config, code="", layers="", scaling=Scaling())
