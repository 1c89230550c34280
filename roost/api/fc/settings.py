"""Concurrency per function; provisioned instances, scaling and async invocation per qualifier."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field
from starlette.routing import Route

from roost.api.fc.call import Answer, Call, Endpoints
from roost.api.fc.paging import limit_of, page, with_token
from roost.api.fc.ports import Instances
from roost.api.fc.render import iso
from roost.functions.catalog import FunctionCatalog
from roost.functions.definition import Shape
from roost.functions.names import function_arn
from roost.functions.settings import QualifierSettings
from roost.functions.tasks.destinations import check_url, function_of, masked, scheme_of, unmasked
from roost.model.errors import InvalidArgument, NotFound
from roost.model.task import Delivery
from roost.store.provision import QualifierRecord

Count = Annotated[int, Field(ge=0, le=10000)]
Policies = Annotated[list[dict[str, Any]], Field(max_length=100)]


class _PutConcurrency(Shape):
    reserved_concurrency: Annotated[int, Field(ge=1, le=10000)]


class _PutProvision(Shape):
    """`target` is the older name of `defaultTarget`."""

    default_target: Count | None = None
    target: Count | None = None
    always_allocate_cpu: Annotated[bool | None, Field(alias="alwaysAllocateCPU")] = None
    always_allocate_gpu: Annotated[bool | None, Field(alias="alwaysAllocateGPU")] = None
    scheduled_actions: Policies | None = None
    target_tracking_policies: Policies | None = None


class _PutScaling(Shape):
    min_instances: Count = 0
    enable_on_demand_scaling: bool | None = None
    enable_mix_mode: bool | None = None
    request_dispatch_policy: Annotated[str, Field(max_length=128)] | None = None
    resident_pool_id: str | None = None
    horizontal_scaling_policies: Policies | None = None
    scheduled_policies: Policies | None = None


class _Destination(Shape):
    destination: Annotated[str, Field(max_length=1024)] | None = None


class _Destinations(Shape):
    on_success: _Destination | None = None
    on_failure: _Destination | None = None


class _RoostAsync(Shape):
    """`delivery`: what becomes of a task that may have had effects when its run was cut off. `busy`: of a new task
    whose session has work."""

    delivery: Literal["atLeastOnce", "atMostOnce"] | None = None
    busy: Literal["reject", "enqueue", "interrupt"] | None = None


class _PutAsync(Shape):
    async_task: bool | None = None
    destination_config: _Destinations | None = None
    max_async_event_age_in_seconds: Annotated[int, Field(ge=1, le=2592000)] | None = None
    max_async_retry_attempts: Annotated[int, Field(ge=0, le=8)] | None = None
    roost: _RoostAsync | None = None


class Concurrency:
    def __init__(self, catalog: FunctionCatalog) -> None:
        self._catalog = catalog

    def routes(self, endpoints: Endpoints) -> list[Route]:
        path = "/functions/{name}/concurrency"
        return [
            endpoints.route("PUT", path, self._put),
            endpoints.route("GET", path, self._get),
            endpoints.route("DELETE", path, self._delete),
            endpoints.route("GET", "/concurrency-configs", self._list),
        ]

    async def _put(self, call: Call) -> Answer:
        reserved = call.parse(_PutConcurrency).reserved_concurrency
        await self._catalog.concurrency.put(call.account, call.params["name"], reserved)
        return self._json(call, call.params["name"], reserved)

    async def _get(self, call: Call) -> Answer:
        name = call.params["name"]
        return self._json(call, name, self._catalog.concurrency.get(call.account, name))

    async def _delete(self, call: Call) -> Answer:
        await self._catalog.concurrency.delete(call.account, call.params["name"])
        return None

    async def _list(self, call: Call) -> Answer:
        found, token = page(
            self._catalog.concurrency.list(call.account, call.query.get("functionName") or None).items(),
            lambda item: item[0],
            limit=limit_of(call.query),
            token=call.query.get("nextToken", ""),
        )
        return with_token({"configs": [self._json(call, name, reserved) for name, reserved in found]}, token)

    def _json(self, call: Call, name: str, reserved: int) -> dict[str, Any]:
        return {
            "functionArn": function_arn(self._catalog.region, call.account, name),
            "reservedConcurrency": reserved,
        }


class _PerQualifier:
    """The four calls that the settings of a qualifier have in common."""

    path = ""
    list_path = ""
    list_name = ""

    def __init__(self, catalog: FunctionCatalog, settings: QualifierSettings) -> None:
        self._catalog = catalog
        self._settings = settings

    def routes(self, endpoints: Endpoints) -> list[Route]:
        path = "/functions/{name}" + self.path
        return [
            endpoints.route("PUT", path, self._put),
            endpoints.route("GET", path, self._get),
            endpoints.route("DELETE", path, self._delete),
            endpoints.route("GET", self.list_path, self._list),
        ]

    def config_of(self, call: Call) -> Mapping[str, Any]:
        """The body, checked, as it is kept."""
        raise NotImplementedError

    def render(self, record: QualifierRecord) -> dict[str, Any]:
        raise NotImplementedError

    async def _put(self, call: Call) -> Answer:
        config = self.config_of(call)
        return self.render(await self._settings.put(call.account, call.params["name"], call.qualifier, config))

    async def _get(self, call: Call) -> Answer:
        return self.render(self._settings.get(call.account, call.params["name"], call.qualifier))

    async def _delete(self, call: Call) -> Answer:
        await self._settings.delete(call.account, call.params["name"], call.qualifier)
        return None

    async def _list(self, call: Call) -> Answer:
        found, token = page(
            self._settings.list(call.account, call.query.get("functionName") or None),
            lambda record: f"{record.function}/{record.qualifier}",
            limit=limit_of(call.query),
            token=call.query.get("nextToken", ""),
        )
        return with_token({self.list_name: [self.render(record) for record in found]}, token)

    def _arn(self, record: QualifierRecord) -> str:
        return function_arn(self._catalog.region, record.account, record.function, record.qualifier)


class _Counted(_PerQualifier):
    """Settings whose answer counts the instances that live now."""

    def __init__(self, catalog: FunctionCatalog, settings: QualifierSettings, instances: Instances) -> None:
        super().__init__(catalog, settings)
        self._instances = instances

    def _current(self, record: QualifierRecord) -> int:
        version = self._catalog.get(record.account, record.function).version_of(record.qualifier)
        views = self._instances.list_instances(record.account, record.function)
        return sum(view.version == version and view.destroyed is None for view in views)


class Provision(_Counted):
    path = "/provision-config"
    list_path = "/provision-configs"
    list_name = "provisionConfigs"

    def config_of(self, call: Call) -> Mapping[str, Any]:
        given = call.parse(_PutProvision)
        if given.scheduled_actions or given.target_tracking_policies:
            raise InvalidArgument(
                "scheduledActions, targetTrackingPolicies: not supported; give a number in defaultTarget."
            )
        target = given.target if given.default_target is None else given.default_target
        if target is None:
            raise InvalidArgument("defaultTarget: this field is required.")
        flags = {"alwaysAllocateCPU": given.always_allocate_cpu, "alwaysAllocateGPU": given.always_allocate_gpu}
        return {"defaultTarget": target, **{key: value for key, value in flags.items() if value is not None}}

    def render(self, record: QualifierRecord) -> dict[str, Any]:
        return {
            **record.config,
            "target": record.config["defaultTarget"],
            "current": self._current(record),
            "functionArn": self._arn(record),
        }


class Scaling(_Counted):
    path = "/scaling-config"
    list_path = "/scaling-configs"
    list_name = "scalingConfigs"

    def config_of(self, call: Call) -> Mapping[str, Any]:
        given = call.parse(_PutScaling)
        if given.horizontal_scaling_policies or given.scheduled_policies:
            raise InvalidArgument(
                "horizontalScalingPolicies, scheduledPolicies: not supported; give a number in minInstances."
            )
        if given.resident_pool_id:
            raise InvalidArgument("residentPoolId: Roost has no resident pools.")
        kept = {"horizontalScalingPolicies", "scheduledPolicies"}
        body = {key: value for key, value in given.to_json().items() if key not in kept}
        return {**body, "minInstances": given.min_instances}

    def render(self, record: QualifierRecord) -> dict[str, Any]:
        return {
            "enableOnDemandScaling": True,
            **record.config,
            "targetInstances": record.config["minInstances"],
            "currentInstances": self._current(record),
            "functionArn": self._arn(record),
        }


class AsyncInvoke(_PerQualifier):
    """`schemes`: of the URLs that events about tasks can be sent to."""

    path = "/async-invoke-config"
    list_path = "/async-invoke-configs"
    list_name = "configs"

    def __init__(self, catalog: FunctionCatalog, settings: QualifierSettings, schemes: Collection[str]) -> None:
        super().__init__(catalog, settings)
        self._schemes = schemes

    def config_of(self, call: Call) -> Mapping[str, Any]:
        given = call.parse(_PutAsync)
        once = given.roost is not None and given.roost.delivery == Delivery.AT_MOST_ONCE.value
        if once and given.max_async_retry_attempts:
            raise InvalidArgument(
                "maxAsyncRetryAttempts: with delivery atMostOnce a task is started once; leave it out, or give 0."
            )
        config = given.to_json()
        present = self._present(call)
        for name, chosen in (config.get("destinationConfig") or {}).items():
            if chosen and chosen.get("destination"):
                before = ((present.get("destinationConfig") or {}).get(name) or {}).get("destination") or ""
                chosen["destination"] = unmasked(chosen["destination"], before)
                self._check_destination(call, f"destinationConfig.{name}.destination", chosen["destination"])
        return config

    def _present(self, call: Call) -> Mapping[str, Any]:
        try:
            return self._settings.get(call.account, call.params["name"], call.qualifier).config
        except NotFound:
            return {}

    def _check_destination(self, call: Call, field: str, destination: str) -> None:
        if scheme := scheme_of(destination):
            if scheme not in self._schemes:
                known = ", ".join(f"{one}://" for one in sorted(self._schemes))
                raise InvalidArgument(f"{field}: this server sends nothing to {scheme}:// addresses, but to {known}.")
            check_url(field, destination)
            return
        function, qualifier = function_of(field, destination)
        if function == call.params["name"]:
            raise InvalidArgument(f"{field}: a function can't be its own destination; that would never end.")
        self._catalog.get(call.account, function).version_of(qualifier)

    def render(self, record: QualifierRecord) -> dict[str, Any]:
        destinations = {
            name: {**chosen, "destination": masked(chosen["destination"])}
            for name, chosen in (record.config.get("destinationConfig") or {}).items()
            if chosen and chosen.get("destination")
        }
        return {
            **record.config,
            **({"destinationConfig": destinations} if "destinationConfig" in record.config else {}),
            "functionArn": self._arn(record),
            "createdTime": iso(record.created),
            "lastModifiedTime": iso(record.modified),
        }
