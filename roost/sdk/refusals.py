"""What the functions API refuses, said in the words of roost.toml."""

from __future__ import annotations

import re

#: Field of the API -> key of roost.toml; a field stands for all that is inside it.
KEYS = {
    "functionName": "name",
    "description": "description",
    "runtime": "runtime",
    "handler": "handler",
    "memorySize": "memory",
    "cpu": "cpu",
    "diskSize": "disk",
    "timeout": "timeout",
    "instanceConcurrency": "concurrency",
    "layers": "layers",
    "environmentVariables": "env",
    "customRuntimeConfig.command": "command",
    "customRuntimeConfig.port": "port",
    "instanceLifecycleConfig.initializer": "initializer",
    "instanceLifecycleConfig.initializer.timeout": "initializer.timeout",
    "instanceLifecycleConfig.preStop": "pre_stop",
    "instanceLifecycleConfig.preStop.timeout": "pre_stop.timeout",
    "sessionAffinity": "session.affinity",
    "sessionAffinityConfig": "session",
    "sessionAffinityConfig.affinityHeaderFieldName": "session.header",
    "sessionAffinityConfig.sessionConcurrencyPerInstance": "session.per_instance",
    "sessionAffinityConfig.sessionTTLInSeconds": "session.ttl",
    "sessionAffinityConfig.sessionIdleTimeoutInSeconds": "session.idle_timeout",
    "sessionAffinityConfig.sseEndpointPath": "session.sse_path",
    "instanceIsolationMode": "session.exclusive",
    "ossMountConfig": "volumes",
    "roost.template": "template",
    "roost.packages": "packages",
    "roost.taint": "taint",
    "roost.taint.mode": "taint.mode",
    "roost.taint.trusted": "taint.trusted",
    "roost.taint.private": "taint.private",
    "roost.taint.volumes": "taint.volumes",
    "roost.taint.start": "taint.start",
    "roost.egress": "egress",
    "roost.isolation": "isolation",
    "roost.live": "live",
    "roost.allowOut": "allow_out",
    "roost.denyOut": "deny_out",
    "roost.pids": "pids",
    "roost.egressMB": "egress_mb",
    "roost.egressConnections": "egress_connections",
    "roost.modelCalls": "model_calls",
    "roost.openFiles": "open_files",
    "roost.volumeQuotaMB": "volume_quota",
    "roost.freezeAfter": "idle.freeze_after",
    "roost.idleTimeout": "idle.stop_after",
    "roost.maxInstances": "scaling.max",
    "minInstances": "scaling.min",
    "maxAsyncRetryAttempts": "async.retries",
    "maxAsyncEventAgeInSeconds": "async.max_age",
    "destinationConfig.onSuccess": "async.on_success",
    "destinationConfig.onFailure": "async.on_failure",
}
_FIELD = re.compile(r"'?(?P<field>[A-Za-z][\w.\[\]]*)'?:? ")


def in_words_of_the_file(message: str) -> str:
    """`message` with the key of roost.toml in place of the field that it begins with; unchanged without one."""
    match = _FIELD.match(message)
    if match is None:
        return message
    parts = re.sub(r"\[\d+\]", "", match["field"]).split(".")
    for count in range(len(parts), 0, -1):
        key = KEYS.get(".".join(parts[:count]))
        if key is not None:
            return f"`{key}`: {message[match.end() :]}"
    return message
