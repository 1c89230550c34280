"""Bodies of requests about sandboxes, typed and bounded."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from roost.api.e2b.call import Shape
from roost.isolation.egress.injection import parse_headers
from roost.isolation.egress.rules import parse_rules
from roost.isolation.egress.taint import taint_policy
from roost.model.taint import parse_taint

_VARIABLE = re.compile(r"[^=\0]{1,256}")
_TARGET = re.compile(r"(/(?!\.{1,2}(/|$))[^/\0]+)+")


def _check_variables(given: dict[str, str]) -> dict[str, str]:
    for name, value in given.items():
        if not _VARIABLE.fullmatch(name) or "\0" in value:
            raise ValueError(f"{name[:80]!r} is no name of a variable, or its value has a NUL")
    return given


def _check_target(path: str) -> str:
    if not _TARGET.fullmatch(path):
        raise ValueError("an absolute path without '.' and '..' is expected")
    return path


Text = Annotated[str, Field(max_length=4096)]
Name = Annotated[str, Field(min_length=1, max_length=256)]
Seconds = Annotated[int, Field(ge=0)]  # the most is a setting, checked by the handler
Metadata = Annotated[dict[Name, Text], Field(max_length=100)]
Variables = Annotated[dict[str, Annotated[str, Field(max_length=128 << 10)]], Field(max_length=1000),
                      AfterValidator(_check_variables)]  # fmt: skip
Hosts = Annotated[list[Text], Field(max_length=1000)]
Port = Annotated[int, Field(ge=1, le=65535)]


class AutoResume(Shape):
    enabled: bool = False


class VolumeMount(Shape):
    name: Name
    path: Annotated[str, Field(max_length=1024), AfterValidator(_check_target)]


class Transform(Shape):
    headers: dict[str, str] = {}


class NetworkRule(Shape):
    transform: Transform | None = None


class NetworkRules(Shape):
    """What a sandbox may reach, and how."""

    allow_out: Hosts | None = None
    deny_out: Hosts | None = None
    dns_servers: Hosts | None = None
    egress_proxy: dict[str, Any] | None = None
    rules: dict[Text, Annotated[list[NetworkRule], Field(max_length=20)]] | None = None
    egress_mb: Annotated[int | None, Field(alias="egressMB", ge=1, le=1 << 24)] = None  # these two are none of E2B's
    egress_connections: Annotated[int, Field(ge=1, le=128)] | None = None

    def without_effect(self) -> list[str]:
        """Names of what is asked for and kept, and changes nothing."""
        given = (("dnsServers", self.dns_servers), ("egressProxy", self.egress_proxy))
        return [f"network.{name}" for name, value in given if value]

    def check(self) -> None:
        """Raises InvalidArgument."""
        parse_rules([*(self.allow_out or ()), *(self.deny_out or ())])
        parse_headers({host: [rule.model_dump() for rule in listed] for host, listed in (self.rules or {}).items()})


class Taint(Shape, extra="forbid"):
    """What is asked of a sandbox by what it has read; none of E2B's, so a field that is not known is a mistake."""

    mode: Literal["off", "audit", "block"] = "off"
    trusted: Hosts = []
    private: Hosts = []
    volumes: Annotated[list[Name], Field(max_length=100)] = []
    start: list[Literal["private", "untrusted"]] = []


class Network(NetworkRules):
    allow_public_traffic: bool | None = None
    mask_request_host: Text | None = None
    https_ports: Annotated[list[Port], Field(max_length=100)] | None = None
    egress: Literal["proxy", "transparent"] | None = None  # how it is reached; none of E2B's
    taint: Taint | None = None

    def check(self) -> None:
        super().check()
        if self.taint is not None:
            taint_policy(parse_taint(self.taint.model_dump()))

    def stored(self) -> dict[str, Any]:
        """What was given, with the names of the API."""
        return self.model_dump(by_alias=True, exclude_none=True)


class NewSandbox(Shape):
    template_id: Annotated[str, Field(alias="templateID", min_length=1, max_length=256)]
    timeout: Seconds | None = None
    auto_pause: bool = False
    auto_pause_memory: bool = True
    auto_resume: AutoResume = AutoResume()
    secure: bool | None = None  # it always is
    allow_internet_access: Annotated[bool | None, Field(alias="allow_internet_access")] = None
    network: Network = Network()
    metadata: Metadata = {}
    env_vars: Variables = {}
    mcp: dict[str, Any] | None = None  # the client starts what it asks for by itself
    iam: dict[str, Any] | None = None
    volume_mounts: Annotated[list[VolumeMount], Field(max_length=50)] = []


class Connect(Shape):
    timeout: Seconds | None = None
    memory: bool = True


class Resume(Shape):
    timeout: Seconds | None = None
    auto_pause: bool | None = None
    memory: bool = True


class Pause(Shape):
    memory: bool = True
    require_healthy_guest: bool = False


class Timeout(Shape):
    timeout: Seconds


class Refresh(Shape):
    duration: Seconds | None = None


class NetworkUpdate(NetworkRules):
    allow_internet_access: Annotated[bool | None, Field(alias="allow_internet_access")] = None

    def stored(self) -> dict[str, Any]:
        """What was given, with the names of the API."""
        return self.model_dump(by_alias=True, exclude_none=True, exclude={"allow_internet_access"})
