"""All routes of the API, wired."""

from __future__ import annotations

from collections.abc import Callable

from starlette.routing import Route

from roost.api.e2b.builds import Builds
from roost.api.e2b.call import Answer, Call, Endpoints
from roost.api.e2b.checkpoints import CheckpointRoutes
from roost.api.e2b.sandboxes import Sandboxes
from roost.api.e2b.secrets import Secrets
from roost.api.e2b.snapshots import SnapshotRoutes
from roost.api.e2b.tags import Tags
from roost.api.e2b.teams import Teams
from roost.api.e2b.templates import Templates
from roost.api.e2b.terms import Terms
from roost.api.e2b.volumes import VolumeContent, Volumes
from roost.model.errors import NotFound
from roost.sandboxes.census import Census
from roost.sandboxes.checkpoints import Checkpoints
from roost.sandboxes.fleet import SandboxFleet
from roost.sandboxes.registry import TemplateRegistry
from roost.sandboxes.snapshots import Snapshots
from roost.sandboxes.templates import TemplateShelf
from roost.sandboxes.volumes import VolumeShelf
from roost.sandboxes.workshop import Workshop
from roost.store.secrets import Secrets as SecretStore
from roost.tenants.identity import Identity

#: First segments of the API; what is below them and no operation is answered in its shape too.
SEGMENTS = (
    "sandboxes", "v2", "v3", "templates", "default-templates", "snapshots", "volumes", "volumecontent", "secrets",
    "teams",
)  # fmt: skip
_METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS")


def build_e2b_api(
    *,
    fleet: SandboxFleet,
    snapshots: Snapshots,
    checkpoints: Checkpoints,
    shelf: TemplateShelf,
    registry: TemplateRegistry,
    workshop: Workshop,
    secrets: SecretStore,
    volumes: VolumeShelf,
    census: Census,
    terms: Terms,
    domain: Callable[[], str],
    identity: Identity,
    link_secret: bytes,
    clock: Callable[[], float],
) -> list[Route]:
    """`domain` is what sandboxes are below, known once the server listens; `identity` tells who calls.

    `link_secret` signs links for uploads.
    """
    endpoints = Endpoints(identity)
    resources = (
        Sandboxes(fleet, terms, domain),
        SnapshotRoutes(snapshots, terms, domain),
        CheckpointRoutes(checkpoints, domain),
        Builds(workshop, link_secret, clock),
        Tags(shelf, registry),
        Templates(shelf, registry),
        Teams(census),
        Secrets(secrets, clock),
        Volumes(volumes, fleet),
    )
    routes = [route for resource in resources for route in resource.routes(endpoints)]
    unknown = [
        endpoints.route(method, path, _unknown)
        for segment in SEGMENTS
        for path in (f"/{segment}", f"/{segment}/{{rest:path}}")
        for method in _METHODS
    ]
    return [*routes, *VolumeContent(volumes).routes(), *unknown]


async def _unknown(call: Call) -> Answer:
    raise NotFound(f"Roost has no operation {call.request.method} {call.request.url.path[:200]}")
