"""Parts of the server that its settings or the machine choose, each by itself."""

from __future__ import annotations

import importlib
import logging
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from roost.config import Config, ConfigError
from roost.instances.volumes import Volumes
from roost.isolation.bundle import build_bundle
from roost.isolation.drivers import Drivers
from roost.isolation.egress.taint import taint_policy
from roost.isolation.egress.upstreams import Upstreams, read_upstreams
from roost.isolation.gvisor.driver import GvisorDriver
from roost.isolation.namespaces.driver import NamespacesDriver
from roost.isolation.unprivileged.driver import UnprivilegedDriver
from roost.model.errors import RoostError
from roost.model.function import GVISOR, Limits
from roost.model.taint import TaintRules, parse_taint

if TYPE_CHECKING:
    from roost.telemetry.tracing import Tracing

log = logging.getLogger("roost")


def drivers_of(config: Config) -> tuple[NamespacesDriver | UnprivilegedDriver, Drivers]:
    """The driver in whose rooms those of all others stand, and all of them. Root's is never another than root's."""
    data, run = config.data_dir, config.run_dir
    runsc = config.runsc if config.runsc != Path() else None
    if os.geteuid() != 0:
        if config.room_io_mb_per_s:
            raise ConfigError("'room_io_mb_per_s' takes root: rooms of this user have no cgroups.")
        own = UnprivilegedDriver(data, run, build_bundle(data))
        return own, Drivers(own, {}, lacking={GVISOR: "rooms on a kernel of their own take root: sudo roost serve."})
    usual = NamespacesDriver(data, build_bundle(data), io_mb_per_s=config.room_io_mb_per_s)
    return usual, Drivers(usual, {GVISOR: GvisorDriver(usual, runsc)})


def volumes_of(data: Path, driver: NamespacesDriver | UnprivilegedDriver) -> Volumes:
    """What rooms left in them, root can delete; a user by his driver."""
    if isinstance(driver, UnprivilegedDriver):
        return Volumes(data / "volumes", driver.remove_tree)
    return Volumes(data / "volumes")


def tracing_of(endpoint: str) -> Tracing | None:
    """Loaded where it is asked for alone: OpenTelemetry is slow to import. Raises TracingUnavailable."""
    if not endpoint:
        return None
    tracing: Tracing = importlib.import_module("roost.telemetry.tracing").Tracing(endpoint)
    return tracing


def package_indexes() -> Upstreams:
    """The host's own indexes. A setting of pip's or npm's that Roost can't follow must not keep it from starting."""
    try:
        return read_upstreams(os.environ)
    except RoostError as error:
        log.warning("the host's package indexes can't be used, rooms get the public ones: %s", error.message)
        return read_upstreams({}, root=Path("/nonexistent"), prefix=Path("/nonexistent"))


def sandbox_limits(config: Config) -> Limits:
    """Of one sandbox. Many processes of many files: somebody works in it."""
    return Limits(
        memory_mb=config.sandbox_memory_mb,
        cpu=config.sandbox_cpu,
        disk_mb=config.sandbox_disk_mb,
        pids=1024,
        open_files=65536,
        model_calls=config.sandbox_model_calls,
    )


def sandbox_taint(config: Config) -> TaintRules:
    """Raises InvalidArgument for what is no policy."""
    rules = parse_taint(asdict(config.sandbox_taint))
    taint_policy(rules)
    return rules
