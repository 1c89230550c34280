"""Both kinds of addresses, wired.

/sandboxes/{id}/mcp     one sandbox's tools, for an API key or that sandbox's access token
/roost/mcp              those of all sandboxes of an account, for an API key
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Collection

from starlette.requests import Request
from starlette.routing import Route

from roost.api.e2b.terms import Terms
from roost.api.identity import CALLER
from roost.api.mcp.arguments import TOOLS
from roost.api.mcp.endpoint import Caller, Endpoint
from roost.api.mcp.rooms import Rooms
from roost.api.mcp.sandbox_tools import SandboxTools
from roost.api.mcp.server_tools import ServerTools
from roost.api.mcp.toolbox import Toolbox
from roost.model.audit import Audit
from roost.model.errors import InvalidArgument
from roost.model.role import TOOL, Role
from roost.model.sandbox import Sandbox
from roost.sandboxes.fleet import SandboxFleet
from roost.sandboxes.traffic import SandboxTraffic
from roost.tenants.roles import needed

ONE, ALL = "/sandboxes/{id}/mcp", "/roost/mcp"
ACCESS_TOKEN = "x-access-token"  # noqa: S105
_OF_ONE = (
    "One sandbox: a Linux computer of your own, with files that stay. It has no network but what its owner opened. "
    "Code runs with run_code and remembers; commands run with run_command."
)
_OF_ALL = (
    "Sandboxes: small Linux computers, made with create_sandbox and named by their ids in all other tools. They have "
    "no network but what their owner opened, and end when their time is over; kill_sandbox ends one before."
)


def build_mcp_api(
    *,
    fleet: SandboxFleet,
    traffic: SandboxTraffic,
    identify: Callable[[Request, Role, str], str],
    terms: Terms,
    audit: Audit,
    only: Collection[str] = (),
) -> list[Route]:
    """`identify` tells whose API key a request has, if that may be for tools. `only`: the names of the tools that are
    offered, where not all are. Raises InvalidArgument for one that there is not."""
    of_sandbox = SandboxTools(Rooms(traffic), fleet).tools()
    of_server = ServerTools(fleet, terms).tools()

    if unknown := sorted(set(only) - set(TOOLS)):
        raise InvalidArgument(f"mcp_tools: there is no tool {unknown[0][:100]!r}; there are {', '.join(TOOLS)}.")
    of_one, of_all = needed("POST", ONE), needed("POST", ALL)

    def admit_to_one(request: Request) -> Caller:
        id = request.path_params["id"]
        owner = _owner(request, traffic.find(id))
        account = identify(request, of_one, TOOL) if owner is None else owner
        return Caller(
            account=account, sandbox=fleet.get(account, id).id, actor=_actor(request), grants=_grants(request)
        )

    def admit_to_all(request: Request) -> Caller:
        account = identify(request, of_all, TOOL)
        return Caller(account=account, sandbox="", actor=_actor(request), grants=_grants(request))

    one = Endpoint(ONE, Toolbox(of_sandbox, whole=False, audit=audit, only=only), admit_to_one, _OF_ONE)
    every = Endpoint(ALL, Toolbox([*of_server, *of_sandbox], whole=True, audit=audit, only=only), admit_to_all, _OF_ALL)
    return [one.route(), every.route()]


def _actor(request: Request) -> str:
    """The key that was shown; who has a sandbox's token is not known by name."""
    return request.scope[CALLER].key if CALLER in request.scope else "token"


def _grants(request: Request) -> frozenset[str]:
    """What the key that was shown is for alone."""
    found: frozenset[str] = request.scope[CALLER].grants if CALLER in request.scope else frozenset()
    return found


def _owner(request: Request, sandbox: Sandbox | None) -> str | None:
    """The account of the sandbox whose access token came, as X-Access-Token or as a bearer; else None."""
    if sandbox is None:
        return None
    scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
    given = [request.headers.get(ACCESS_TOKEN, ""), bearer.strip() if scheme.lower() == "bearer" else ""]
    right = [hmac.compare_digest(one.encode("utf-8", "replace"), sandbox.envd_token.encode()) for one in given]
    return sandbox.account if any(right) else None
