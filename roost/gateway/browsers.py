"""What a server without keys answers to: programs of its own machine, and pages of its own; no page of the web's. Pure.

Whoever reaches such a server may run code on it, and any page that somebody on the machine looks at reaches it: it can
send requests across sites, or give its own name the address 127.0.0.1 (DNS rebinding). Browsers tell where a request
comes from, in fields that a page can't set: Host, Origin and Sec-Fetch-Site. Programs send no Origin.
"""

from __future__ import annotations

import functools
import ipaddress

from roost.gateway.head import RequestHead
from roost.gateway.sandbox_routes import is_sandbox_host
from roost.model.errors import AccessDenied

_OWN = (b"same-origin", b"none")


def check_host(head: RequestHead) -> None:
    """Raises AccessDenied for a request to a name that is not this machine's own."""
    host = head.values.get(b"host")
    if host is not None and not _is_loopback(host):
        raise AccessDenied(
            f"A server without keys answers to localhost and 127.0.0.1 alone, not to '{host.decode('latin-1')[:100]}'. "
            "Configure [keys] to use another name.",
            code="HostNotAllowed",
        )


def check_api_caller(head: RequestHead) -> None:
    """Raises AccessDenied for what a page sends to the API, also a function's own page: its code is the function's."""
    if b"origin" in head.values or head.values.get(b"sec-fetch-site", b"none") != b"none":
        raise AccessDenied(
            "A server without keys takes no API calls from web pages: use the command line or an SDK, or set [keys].",
            code="BrowserNotAllowed",
        )


def check_function_caller(head: RequestHead) -> None:
    """Raises AccessDenied for what a page of another site sends to a function, but for following a link to it."""
    values = head.values
    site, origin = values.get(b"sec-fetch-site"), values.get(b"origin")
    if site in _OWN or (site is None and origin is None):
        return
    if origin is None:
        allowed = site == b"same-site" or (head.method in ("GET", "HEAD") and _navigates(head))
    else:
        allowed = _is_own_page(origin)
    if not allowed:
        raise AccessDenied(
            "A server without keys takes no requests from pages of other sites. Configure [keys] to allow them.",
            code="BrowserNotAllowed",
        )


def check_sandbox_caller(head: RequestHead) -> None:
    """The same for a sandbox: its own pages may, and pages of this machine that are no other sandbox's."""
    host, origin = head.values.get(b"host", b""), head.values.get(b"origin", b"")
    if origin.partition(b"://")[2].lower() != host.lower():
        check_function_caller(head)


def _is_own_page(origin: bytes) -> bool:
    """A page of this machine; what a sandbox serves is whoever's code runs in it."""
    host = origin.partition(b"://")[2]
    return _is_loopback(host) and not is_sandbox_host(host)


def _navigates(head: RequestHead) -> bool:
    return head.values.get(b"sec-fetch-mode") == b"navigate"


@functools.lru_cache(maxsize=256)
def _is_loopback(host: bytes) -> bool:
    """Whether `host[:port]` can't be anything but this machine."""
    name = host.decode("latin-1").lower()
    name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
