"""The `context` that handlers get: Function Compute's Python contract."""

from __future__ import annotations

import logging
import time
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, TextIO

from roost.guest.config import StartConfig
from roost.guest.http1 import NO_HEAD, Head, Shape
from roost.guest.task import NO_TASK

#: Of the request that the running code serves; log lines carry it.
request_id: ContextVar[str] = ContextVar("request_id", default="")


class Credentials:
    """Empty strings unless the host passes credentials on."""

    __slots__ = ("access_key_id", "access_key_secret", "security_token")

    def __init__(self, access_key_id: str = "", access_key_secret: str = "", security_token: str = "") -> None:
        self.access_key_id = access_key_id
        self.access_key_secret = access_key_secret
        self.security_token = security_token


class Function:
    """`memory` in MB, `timeout` in seconds."""

    __slots__ = ("handler", "memory", "name", "qualifier", "timeout", "version_id")

    def __init__(self, *, name: str, handler: str, memory: int, timeout: int, version_id: str, qualifier: str) -> None:
        self.name = name
        self.handler = handler
        self.memory = memory
        self.timeout = timeout
        self.version_id = version_id
        self.qualifier = qualifier


class Context:
    """One invocation's. Beyond Function Compute: the session's and the task's id and folder ("" without one), and
    `task`, by which an asynchronous task tells of its progress."""

    __slots__ = (
        "account_id",
        "credentials",
        "function",
        "log_project",
        "log_store",
        "logger",
        "region",
        "request_id",
        "session_dir",
        "session_id",
        "task",
        "task_dir",
        "task_id",
    )

    def __init__(
        self,
        *,
        request_id: str,
        credentials: Credentials,
        function: Function,
        region: str,
        account_id: str,
        logger: logging.Logger,
        session_id: str,
        session_dir: str,
        task_id: str,
        task_dir: str,
    ) -> None:
        self.request_id = request_id
        self.credentials = credentials
        self.function = function
        self.region = region
        self.account_id = account_id
        self.logger = logger
        self.log_project = ""
        self.log_store = ""
        self.session_id = session_id
        self.session_dir = session_dir
        self.task_id = task_id
        self.task_dir = task_dir
        self.task = NO_TASK

    def to_json(self) -> dict[str, Any]:
        """Function Compute's field names; without credentials, since it is made for logs."""
        return {
            "requestId": self.request_id,
            "function": {name: getattr(self.function, name) for name in Function.__slots__},
            "region": self.region,
            "accountId": self.account_id,
        }


class ContextFactory:
    """Makes contexts from request headers; what a header does not say comes from the configuration."""

    def __init__(self, config: StartConfig, logger: logging.Logger) -> None:
        self._config = config
        self._logger = logger
        self._common = lru_cache(64)(self._parts)

    def make(self, head: Head) -> Context:
        credentials, function, common = self._common(head.shape)
        return Context(
            request_id=head.request_id,
            credentials=Credentials(*credentials),
            function=Function(**function),
            logger=self._logger,
            **common,
        )

    def without_request(self) -> Context:
        """Of a hook."""
        return self.make(NO_HEAD)

    def _parts(self, shape: Shape) -> tuple[tuple[str, str, str], dict[str, Any], dict[str, str]]:
        """What the contexts of all requests of this shape have in common."""
        config, info, get = self._config, self._config.function, shape.headers.get
        credentials = (
            get("x-fc-access-key-id", ""),
            get("x-fc-access-key-secret", ""),
            get("x-fc-security-token", ""),
        )
        function = {
            "name": get("x-fc-function-name") or info.name,
            "handler": get("x-fc-function-handler") or info.handler or config.handler,
            "memory": _whole(get("x-fc-function-memory"), info.memory),
            "timeout": _whole(get("x-fc-function-timeout"), int(config.timeout)),
            "version_id": get("x-fc-version-id") or info.version,
            "qualifier": get("x-fc-qualifier") or info.qualifier,
        }
        common = {
            "region": get("x-fc-region") or config.region,
            "account_id": get("x-fc-account-id") or config.account,
            "session_id": get("x-fc-session-id", ""),
            "session_dir": get("x-roost-session-dir", ""),
            "task_id": get("x-fc-async-task-id", ""),
            "task_dir": get("x-roost-task-dir", ""),
        }
        return credentials, function, common


def _whole(text: str | None, default: int) -> int:
    return int(text) if text and text.isascii() and text.isdigit() else default


class _Formatter(logging.Formatter):
    """`2026-01-31T08:00:00.123Z <request id> [INFO] message`"""

    def format(self, record: logging.LogRecord) -> str:
        message = super().format(record)
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        return f"{moment}.{int(record.msecs):03d}Z {request_id.get()} [{record.levelname}] {message}"


def set_up_logging(stream: TextIO) -> logging.Logger:
    """The root logger, at INFO, onto `stream`: what `context.logger` and `logging.getLogger()` both are."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_Formatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    return root
