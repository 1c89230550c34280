"""A function's definition: the fields of Function Compute 3.0's CreateFunction and UpdateFunction, typed and bounded.

Unknown fields and wrong types are refused. Fields that only have a meaning in the cloud (`vpcConfig`, `role`,
`logConfig`, `tracingConfig`, `customDNS`, `resourceGroupId`, credentials) are kept and shown again, without effect.
Fields whose meaning can't be honoured (`gpuConfig`, `polarFsConfig`, `juiceFsConfig`, `microSandboxConfig`) are refused
with a reason by `rules`. `roost` is this server's own extension.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

Seconds = Annotated[int, Field(ge=1, le=86400)]
Port = Annotated[int, Field(ge=1, le=65535)]
Text = Annotated[str, Field(max_length=4096)]
Command = Annotated[list[Annotated[str, Field(max_length=4096)]], Field(max_length=256)]


class Shape(BaseModel):
    """JSON of the API: camelCase, exact types, nothing unknown, immutable."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        alias_generator=to_camel,
        validate_by_alias=True,
        allow_inf_nan=False,
        defer_build=True,  # each shape costs a start milliseconds, and few are ever used
    )

    def to_json(self) -> dict[str, Any]:
        """What was given, with the names of the API."""
        return self.model_dump(by_alias=True, exclude_none=True)


class Tag(Shape):
    key: Annotated[str, Field(alias="Key", min_length=1, max_length=128)]
    value: Annotated[str, Field(alias="Value", max_length=256)] = ""


class InputCode(Shape):
    """Where a package comes from. `checksum`: CRC-64 of the archive, decimal."""

    zip_file: str | None = None
    checksum: Text | None = None
    oss_bucket_name: Text | None = None
    oss_object_name: Text | None = None


class HealthCheck(Shape):
    failure_threshold: Annotated[int, Field(ge=1, le=120)] | None = None
    http_get_url: Annotated[str, Field(max_length=2048)] | None = None
    initial_delay_seconds: Annotated[int, Field(ge=0, le=120)] | None = None
    period_seconds: Annotated[int, Field(ge=1, le=120)] | None = None
    success_threshold: Annotated[int, Field(ge=1, le=120)] | None = None
    timeout_seconds: Annotated[int, Field(ge=1, le=3)] | None = None


class CustomRuntime(Shape):
    command: Command | None = None
    args: Command | None = None
    port: Port | None = None
    health_check_config: HealthCheck | None = None


class CustomContainer(Shape):
    """`image` names a template of Roost."""

    image: Text | None = None
    entrypoint: Command | None = None
    command: Command | None = None
    port: Port | None = None
    health_check_config: HealthCheck | None = None
    acceleration_info: dict[str, Any] | None = None
    acceleration_type: Text | None = None
    acr_instance_id: Text | None = None
    registry_config: dict[str, Any] | None = None
    resolved_image_uri: Text | None = None


class LifecycleHook(Shape):
    handler: Text | None = None
    command: Command | None = None
    timeout: Annotated[int, Field(ge=1, le=600)] | None = None


class InstanceLifecycle(Shape):
    initializer: LifecycleHook | None = None
    pre_stop: LifecycleHook | None = None


class NasMountPoint(Shape):
    """`serverAddr`: `<volume>:/path`; a file server's address is a volume's name here."""

    server_addr: Text
    mount_dir: Text
    enable_tls: Annotated[bool | None, Field(alias="enableTLS")] = None


class NasConfig(Shape):
    """`userId` and `groupId` are kept; files of a volume belong to the room's own users."""

    user_id: int | None = None
    group_id: int | None = None
    mount_points: Annotated[list[NasMountPoint], Field(max_length=16)] | None = None


class OssMountPoint(Shape):
    """`bucketName` names a volume, `bucketPath` a folder in it."""

    bucket_name: Text
    mount_dir: Text
    bucket_path: Text | None = None
    endpoint: Text | None = None
    read_only: bool | None = None


class OssMountConfig(Shape):
    mount_points: Annotated[list[OssMountPoint], Field(max_length=16)] | None = None


class VpcConfig(Shape):
    role: Text | None = None
    security_group_id: Text | None = None
    v_switch_ids: list[Text] | None = None
    vpc_id: Text | None = None


class LogConfig(Shape):
    enable_instance_metrics: bool | None = None
    enable_llm_metrics: bool | None = None
    enable_request_metrics: bool | None = None
    log_begin_rule: Text | None = None
    logstore: Text | None = None
    project: Text | None = None


class TracingConfig(Shape):
    params: dict[str, str] | None = None
    type: Text | None = None


class DnsOption(Shape):
    name: Text | None = None
    value: Text | None = None


class CustomDns(Shape):
    dns_options: list[DnsOption] | None = None
    name_servers: list[Text] | None = None
    searches: list[Text] | None = None


class Taint(Shape):
    """What is asked of a room by what it has read."""

    mode: Literal["off", "audit", "block"] = "off"
    trusted: Annotated[list[Text], Field(max_length=1000)] = []
    private: Annotated[list[Text], Field(max_length=1000)] = []
    volumes: Annotated[list[Text], Field(max_length=100)] = []
    start: list[Literal["private", "untrusted"]] = []


class RoostExtension(Shape):
    """What Roost offers beyond Function Compute.

    `template`: root file system; `packages`: indexes the room may reach (`pypi`, `npm`); `allowOut`, `denyOut`: rules
    of what else it may reach; `egress`: how, `proxy` or `transparent`; `egressMB`, `egressConnections`: how much of it,
    in the life of a room and at once; `taint`: what is asked of it by what it has
    read; `isolation`: `namespaces`, `strict` or `gvisor`; `live`: its instances can be copied while they run;
    `freezeAfter`, `idleTimeout`: seconds without requests until an instance is frozen, and stopped; `maxInstances`;
    `pids`, `openFiles`, `modelCalls`: limits of an instance; `volumeQuotaMB`: of each mounted volume path.
    """

    template: Text | None = None
    packages: Annotated[list[Literal["pypi", "npm"]], Field(max_length=2)] | None = None
    allow_out: Annotated[list[Text], Field(max_length=1000)] | None = None
    deny_out: Annotated[list[Text], Field(max_length=1000)] | None = None
    egress: Literal["proxy", "transparent"] | None = None
    egress_mb: Annotated[int | None, Field(alias="egressMB", ge=1, le=1 << 24)] = None
    egress_connections: Annotated[int, Field(ge=1, le=128)] | None = None
    taint: Taint | None = None
    isolation: Text | None = None
    live: bool | None = None
    freeze_after: Annotated[float, Field(ge=0, le=86400)] | None = None
    idle_timeout: Annotated[float, Field(ge=0, le=86400)] | None = None
    max_instances: Annotated[int, Field(ge=1, le=10000)] | None = None
    pids: Annotated[int, Field(ge=16, le=32768)] | None = None
    open_files: Annotated[int, Field(ge=64, le=1048576)] | None = None
    model_calls: Annotated[int, Field(ge=1, le=1 << 40)] | None = None
    volume_quota_mb: Annotated[int | None, Field(alias="volumeQuotaMB", ge=1)] = None


class FunctionConfig(Shape):
    """All of a function's definition but its name, package and tags. None: not given."""

    runtime: Text
    handler: Annotated[str, Field(max_length=128)] = ""
    description: Annotated[str, Field(max_length=256)] | None = None
    cpu: Annotated[float, Field(ge=0.05, le=16)] | None = None
    memory_size: Annotated[int, Field(ge=128, le=32768)] | None = None
    disk_size: Literal[512, 10240] | None = None
    timeout: Seconds | None = None
    instance_concurrency: Annotated[int, Field(ge=1, le=200)] | None = None
    instance_isolation_mode: Text | None = None
    instance_lifecycle_config: InstanceLifecycle | None = None
    environment_variables: dict[str, str] | None = None
    layers: Annotated[list[Text], Field(max_length=5)] | None = None
    custom_runtime_config: CustomRuntime | None = None
    custom_container_config: CustomContainer | None = None
    session_affinity: Text | None = None
    session_affinity_config: Text | None = None
    idle_timeout: Annotated[int, Field(ge=0, le=86400)] | None = None
    disable_ondemand: bool | None = None
    nas_config: NasConfig | None = None
    oss_mount_config: OssMountConfig | None = None
    roost: RoostExtension | None = None
    # Kept and shown, without effect on a machine of one's own.
    custom_dns: Annotated[CustomDns | None, Field(alias="customDNS")] = None
    disable_inject_credentials: Literal["None", "Env", "Request", "All"] | None = None
    enable_long_living: bool | None = None
    internet_access: bool | None = None
    log_config: LogConfig | None = None
    resource_group_id: Text | None = None
    role: Text | None = None
    tracing_config: TracingConfig | None = None
    vpc_config: VpcConfig | None = None
    # Known, and refused by `rules` with a reason.
    gpu_config: dict[str, Any] | None = None
    juice_fs_config: dict[str, Any] | None = None
    micro_sandbox_config: dict[str, Any] | None = None
    polar_fs_config: dict[str, Any] | None = None
