"""All routes of the API, wired."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

from starlette.routing import Route

from roost.api.fc.call import Answer, Call, Endpoints
from roost.api.fc.downloads import Downloads
from roost.api.fc.functions import Functions
from roost.api.fc.instances import Instances
from roost.api.fc.layers import Layers
from roost.api.fc.ports import Instances as Fleet
from roost.api.fc.ports import Sessions as SessionManager
from roost.api.fc.ports import Snapshots as SnapshotManager
from roost.api.fc.sessions import Sessions
from roost.api.fc.settings import AsyncInvoke, Concurrency, Provision, Scaling
from roost.api.fc.snapshots import Snapshots
from roost.api.fc.tags import Tags
from roost.api.fc.tasks import AsyncTasks
from roost.api.fc.triggers import Triggers
from roost.api.fc.versions import Aliases, Versions
from roost.functions.catalog import FunctionCatalog
from roost.functions.tasks.service import TaskService
from roost.model.errors import NotFound
from roost.tenants.identity import Identity
from roost.triggers.status import Statuses

_METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS")


def build_fc_api(
    *,
    catalog: FunctionCatalog,
    sessions: SessionManager,
    snapshots: SnapshotManager,
    instances: Fleet,
    tasks: TaskService,
    statuses: Statuses,
    identity: Identity,
    link_secret: bytes,
    destinations: Collection[str] = (),
    clock: Callable[[], float] = time.time,
) -> list[Route]:
    """Routes below `/2023-03-30`, with an answer in the API's shape for everything there that is none of them.

    `identity` tells who calls. `destinations`: schemes of the URLs that events about tasks
    may go to. `link_secret`: signs links to packages; at least 16 bytes.
    `InvokeFunction` is not here: it is data plane.
    """
    endpoints = Endpoints(identity)
    downloads = Downloads(catalog.packages, link_secret, clock=clock)
    resources = (
        Functions(catalog, downloads),
        Versions(catalog),
        Aliases(catalog),
        Layers(catalog, downloads),
        Concurrency(catalog),
        Provision(catalog, catalog.provision, instances),
        Scaling(catalog, catalog.scaling, instances),
        AsyncInvoke(catalog, catalog.async_invoke, destinations),
        AsyncTasks(catalog, tasks, clock=clock),
        Triggers(catalog, statuses),
        Tags(catalog),
        Sessions(catalog, sessions, snapshots, tasks),
        Snapshots(catalog, sessions, snapshots),
        Instances(catalog, instances),
        downloads,
    )
    routes = [route for resource in resources for route in resource.routes(endpoints)]
    unknown = [endpoints.route(method, "/{rest:path}", _unknown) for method in _METHODS]
    return [*routes, *unknown]


async def _unknown(call: Call) -> Answer:
    raise NotFound(
        f"Roost has no operation {call.request.method} {call.request.url.path[:200]}.", code="OperationNotFound"
    )
