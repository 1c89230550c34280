"""Which role each route needs: one table for both planes and every protocol.

A route is written as its module registers it. `open`: it has a credential of its own (a signed link, a volume's token,
a webhook's key), or needs none. A route that is not in the table can't be made.
"""

from __future__ import annotations

from roost.model.role import ROLES, Role

_ALL = "GET,POST,PUT,DELETE,PATCH,OPTIONS"
_FC = "/2023-03-30"
_FUNCTION = f"{_FC}/functions/{{name}}"
_SETTINGS = "concurrency", "provision-config", "scaling-config", "async-invoke-config"
_SEGMENTS = (
    "sandboxes", "v2", "v3", "templates", "default-templates", "snapshots", "volumes", "volumecontent", "secrets",
    "teams",
)  # fmt: skip

_TABLE = f"""
open GET /healthz
open OPTIONS,POST /webhooks/{{account}}/{{function}}/{{trigger}}
open {_ALL} /webhooks{{rest:path}}
open GET {_FC}/packages/{{digest}}
open PUT /templates/files/{{hash}}
open GET,POST /volumecontent/{{id}}/dir
open GET,PATCH,DELETE /volumecontent/{{id}}/path
open GET,PUT /volumecontent/{{id}}/file

viewer GET /metrics
viewer GET /roost/info
viewer GET /roost/instances
viewer GET /roost/functions/{{name}}/logs
viewer GET /roost/usage
viewer GET /roost/objects
viewer GET /roost/objects/{{bucket}}
viewer GET /roost/objects/{{bucket}}/{{key:path}}
developer PUT,DELETE /roost/objects/{{bucket}}/{{key:path}}
viewer GET /roost/labels
admin DELETE /roost/labels/{{holder:path}}
admin GET,POST /roost/keys
admin DELETE /roost/keys/{{id}}
viewer GET /roost/quota
admin GET /roost/quotas
admin PUT,DELETE /roost/quotas/{{account}}

invoker {_ALL} /{{function}}
invoker POST {_FUNCTION}/invocations
viewer {_ALL} {_FC}/{{rest:path}}
viewer GET {_FC}/functions
developer POST {_FC}/functions
viewer GET {_FUNCTION}
developer PUT,DELETE {_FUNCTION}
viewer GET {_FUNCTION}/code
developer POST {_FUNCTION}/invoke/disable
developer POST {_FUNCTION}/invoke/enable
viewer GET {_FUNCTION}/versions
developer POST {_FUNCTION}/versions
developer DELETE {_FUNCTION}/versions/{{version}}
viewer GET {_FUNCTION}/aliases
developer POST {_FUNCTION}/aliases
viewer GET {_FUNCTION}/aliases/{{alias}}
developer PUT,DELETE {_FUNCTION}/aliases/{{alias}}
viewer GET {_FUNCTION}/triggers
developer POST {_FUNCTION}/triggers
viewer GET {_FUNCTION}/triggers/{{trigger}}
developer PUT,DELETE {_FUNCTION}/triggers/{{trigger}}
viewer GET {_FUNCTION}/instances
viewer GET {_FUNCTION}/async-tasks
viewer GET {_FUNCTION}/async-tasks/{{task}}
viewer GET {_FUNCTION}/async-tasks/{{task}}/events
invoker PUT {_FUNCTION}/async-tasks/{{task}}/stop
invoker PUT {_FUNCTION}/async-tasks/{{task}}/retry
viewer GET {_FUNCTION}/sessions
invoker POST {_FUNCTION}/sessions
viewer GET {_FUNCTION}/sessions/{{session}}
invoker PUT,DELETE {_FUNCTION}/sessions/{{session}}
invoker PUT {_FUNCTION}/sessions/{{session}}/pause
invoker PUT {_FUNCTION}/sessions/{{session}}/resume
viewer GET {_FC}/snapshots
invoker POST {_FUNCTION}/snapshots
viewer GET {_FUNCTION}/snapshots/{{snapshot}}
invoker DELETE {_FUNCTION}/snapshots/{{snapshot}}
viewer GET {_FC}/concurrency-configs
viewer GET {_FC}/provision-configs
viewer GET {_FC}/scaling-configs
viewer GET {_FC}/async-invoke-configs
viewer GET {_FC}/regions
viewer GET {_FC}/layers
viewer GET {_FC}/layerarn/{{arn:path}}
developer PUT {_FC}/layers/{{name}}/acl
viewer GET {_FC}/layers/{{name}}/versions
developer POST {_FC}/layers/{{name}}/versions
viewer GET {_FC}/layers/{{name}}/versions/{{version:int}}
developer DELETE {_FC}/layers/{{name}}/versions/{{version:int}}
viewer GET {_FC}/tags-v2
developer POST,DELETE {_FC}/tags-v2

invoker {_ALL} /sandboxes/{{id}}/mcp
developer {_ALL} /roost/mcp
viewer GET /sandboxes
viewer GET /v2/sandboxes
developer POST /sandboxes
developer POST /v2/sandboxes
viewer GET /sandboxes/metrics
invoker GET /sandboxes/{{id}}
developer DELETE /sandboxes/{{id}}
invoker POST /sandboxes/{{id}}/connect
invoker POST /v2/sandboxes/{{id}}/connect
developer POST /sandboxes/{{id}}/resume
developer POST /sandboxes/{{id}}/pause
developer POST /sandboxes/{{id}}/timeout
developer POST /sandboxes/{{id}}/refreshes
developer PUT /sandboxes/{{id}}/network
viewer GET /sandboxes/{{id}}/metrics
viewer GET /sandboxes/{{id}}/logs
viewer GET /v2/sandboxes/{{id}}/logs
developer POST /sandboxes/{{id}}/snapshots
developer POST /sandboxes/{{id}}/fork
viewer GET /sandboxes/{{id}}/checkpoints
developer POST /sandboxes/{{id}}/checkpoints
developer DELETE /sandboxes/{{id}}/checkpoints/{{checkpoint}}
developer POST /sandboxes/{{id}}/rollback
viewer GET /snapshots
viewer GET /secrets
developer POST /secrets
viewer GET /secrets/{{secret}}
developer POST,DELETE /secrets/{{secret}}
viewer GET /teams
viewer GET /teams/{{team}}/metrics
viewer GET /teams/{{team}}/metrics/max
viewer GET /volumes
developer POST /volumes
invoker GET /volumes/{{id}}
developer DELETE /volumes/{{id}}
viewer GET /templates
viewer GET /v2/templates
developer POST /templates
developer POST /v2/templates
developer POST /v3/templates
viewer GET /default-templates
viewer GET /templates/aliases/{{template:path}}
viewer GET /templates/{{template:path}}
developer PATCH,DELETE /templates/{{template:path}}
developer PATCH /v2/templates/{{template:path}}
developer GET /templates/{{template}}/files/{{hash}}
developer POST /v2/templates/{{template}}/builds/{{build}}
viewer GET /templates/{{template}}/builds/{{build}}/status
viewer GET /templates/{{template}}/builds/{{build}}/logs
developer POST,DELETE /templates/tags
viewer GET /templates/{{template:path}}/tags
viewer GET /templates/{{template:path}}/tags/exists
viewer GET /templates/{{template:path}}/tags/count
viewer GET /templates/{{template:path}}/tags/groups
viewer GET /templates/{{template:path}}/tags/{{tag}}/assignments
"""


def _read() -> dict[tuple[str, str], Role | None]:
    rows = [line.split() for line in _TABLE.splitlines() if line]
    rows += [["viewer", "GET", f"{_FUNCTION}/{name}"] for name in _SETTINGS]
    rows += [["developer", "PUT,DELETE", f"{_FUNCTION}/{name}"] for name in _SETTINGS]
    rows += [["viewer", _ALL, path] for name in _SEGMENTS for path in (f"/{name}", f"/{name}/{{rest:path}}")]
    table: dict[tuple[str, str], Role | None] = {}
    for role, methods, path in rows:
        for method in methods.split(","):
            # What stands for everything unknown below a segment comes last, and changes no role that was given.
            table.setdefault((method, path), ROLES.get(role))
    return table


TABLE = _read()


def least_role(method: str, path: str) -> Role | None:
    """What a caller of this route needs; None where the route has a way of its own. Raises LookupError for a route that
    is not in the table: whoever adds one decides."""
    if (method, path) not in TABLE:
        raise LookupError(f"{method} {path} has no role; give it one in roost/tenants/roles.py")
    return TABLE[method, path]


def needed(method: str, path: str) -> Role:
    """The same, for a route that always asks for a key."""
    role = least_role(method, path)
    if role is None:
        raise LookupError(f"{method} {path} is open")
    return role


#: For functions, on either way.
INVOKE = needed("POST", f"{_FUNCTION}/invocations")
