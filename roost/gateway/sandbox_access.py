"""Who may send a request to a sandbox. Pure; time is an argument. The room holds no secret, so it is all checked here.

- The daemon's port takes `X-Access-Token`, or on `/files` a signature of the request; `/health` takes anybody.
- The interpreter's port takes either token.
- Every other port is open if its sandbox is public, else it takes `e2b-traffic-access-token`.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Iterable, Mapping
from urllib.parse import parse_qs

from roost.gateway.faults import Answer
from roost.gateway.head import RequestHead
from roost.gateway.sandbox_routes import ENVD_PORT, INTERPRETER_PORT
from roost.model.sandbox import Sandbox

ACCESS_TOKEN = b"x-access-token"
TRAFFIC_TOKEN = b"e2b-traffic-access-token"

_HEALTH = (("GET", b"/health"), ("HEAD", b"/health"))
_OPERATIONS = {"GET": "read", "HEAD": "read", "POST": "write"}
_UNAUTHORIZED = "unauthorized access, please provide a valid access token or method signing if supported"


def answer(status: int, body: Mapping[str, object]) -> Answer:
    """A reply of the data plane."""
    return Answer(
        status=status,
        fields=b"content-type: application/json\r\n",
        body=json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace"),
    )


def refusal(sandbox: Sandbox, port: int, head: RequestHead, now: float) -> Answer | None:
    """Why the request is not passed on; None if it is."""
    if port == ENVD_PORT:
        return _refused_by_daemon(sandbox, head, now)
    if port == INTERPRETER_PORT and _equal(head.values.get(ACCESS_TOKEN), sandbox.envd_token):
        return None
    if sandbox.public and port != INTERPRETER_PORT:
        return None
    given = head.values.get(TRAFFIC_TOKEN)
    if _equal(given, sandbox.traffic_token):
        return None
    name = TRAFFIC_TOKEN.decode("ascii")
    what = f"Token header '{name}' is missing" if given is None else f"Provided token in header '{name}' is invalid"
    message = f"Sandbox is secured with traffic access token. {what}"
    return answer(403, {"sandboxId": sandbox.id, "message": message, "code": 403})


def _refused_by_daemon(sandbox: Sandbox, head: RequestHead, now: float) -> Answer | None:
    path, _, query = head.target.partition(b"?")
    if (head.method, path) in _HEALTH:
        return None
    given = head.values.get(ACCESS_TOKEN)
    if given is not None:
        return None if _equal(given, sandbox.envd_token) else _unauthorized(_UNAUTHORIZED)
    if path != b"/files" or head.method not in _OPERATIONS:
        return _unauthorized(_UNAUTHORIZED)
    fields = _fields(query)
    if "signature" not in fields:
        return _unauthorized("missing signature query parameter")
    if not _signed(sandbox, head.method, fields):
        return _unauthorized("invalid signature")
    if "signature_expiration" in fields and not now < int(fields["signature_expiration"]):
        return _unauthorized("signature is already expired")
    return None


def signer(sandboxes: Iterable[Sandbox], head: RequestHead) -> Sandbox | None:
    """Whose token has signed this link to a file."""
    fields = _fields(head.target.partition(b"?")[2])
    if head.method not in _OPERATIONS or "path" not in fields:
        return None
    return next((sandbox for sandbox in sandboxes if _signed(sandbox, head.method, fields)), None)


def unsigned() -> Answer:
    """For a link that no sandbox has signed."""
    return _unauthorized("invalid signature")


def _unauthorized(message: str) -> Answer:
    return answer(401, {"code": 401, "message": message})


def _fields(query: bytes) -> dict[str, str]:
    """The first value of each field of a query; nothing of one that has absurdly many."""
    try:
        given = parse_qs(query.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=50)
    except ValueError:
        return {}
    return {name: values[0] for name, values in given.items()}


def _signed(sandbox: Sandbox, method: str, fields: Mapping[str, str]) -> bool:
    parts = [fields.get("path", ""), _OPERATIONS[method], fields.get("username", ""), sandbox.envd_token]
    expiration = fields.get("signature_expiration")
    if expiration is not None:
        if not (expiration.isascii() and expiration.isdigit() and len(expiration) < 16):
            return False
        parts.append(expiration)
    digest = hashlib.sha256(":".join(parts).encode("utf-8", "replace")).digest()
    wanted = "v1_" + base64.b64encode(digest).rstrip(b"=").decode("ascii")
    return hmac.compare_digest(wanted.encode(), fields.get("signature", "").encode("utf-8", "replace"))


def _equal(given: bytes | None, token: str) -> bool:
    return given is not None and hmac.compare_digest(given, token.encode("ascii"))
