"""Stands where the sandbox's daemon would: serves requests with the real code interpreter.

As a module it runs on this machine; as the guest of a room (copied into its bundle) it is the room's init.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import json
import os
import pwd
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field

from roost.guest.async_server import AsyncServer
from roost.guest.at_fork import at_fork
from roost.guest.config import StartConfig
from roost.guest.main import entry_of_contexts
from roost.guest.sandbox.interpreter.lifeline import Lifeline
from roost.guest.sandbox.interpreter.server import Interpreter


@dataclass
class FakeUser:
    name: str
    uid: int
    gid: int
    home: str
    groups: tuple[int, ...] = ()


@dataclass
class FakeIdentities:
    """The accounts of this machine or room; `home` stands for that of every user."""

    default: str
    home: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    workdir: str = ""

    def lookup(self, name: str) -> FakeUser:
        entry = pwd.getpwnam(name)
        return FakeUser(name=name, uid=entry.pw_uid, gid=entry.pw_gid, home=self.home or entry.pw_dir)

    def environment(self, user: FakeUser) -> dict[str, str]:
        return {"PATH": os.environ.get("PATH", os.defpath), "HOME": user.home, "USER": user.name, **self.env}


def warm() -> None:
    """As the zygote of `code-interpreter-v1` does."""
    with contextlib.suppress(ImportError):
        importlib.import_module("roost.guest.sandbox.interpreter.python.context")


def rehearse() -> None:
    """As the guest's own does, before anything else."""
    at_fork.arrange()


def serve(
    listener: socket.socket, identities: FakeIdentities, env: Mapping[str, str], live: Lifeline | None = None
) -> None:
    interpreter = Interpreter(StartConfig(env=env), identities, live=live)

    async def run() -> None:
        server = AsyncServer(listener, interpreter, concurrency=1000, grace_s=0)
        await server.serve()
        interpreter.begin()
        await asyncio.get_running_loop().create_future()

    asyncio.run(run())


def run(guest_fd: int, app_fd: int, *, live_fd: int = -1) -> None:
    """Be a room's init; what nobody waits for goes by itself."""
    live = Lifeline(socket.socket(fileno=live_fd)) if live_fd >= 0 else None
    serve(socket.socket(fileno=app_fd), FakeIdentities(default="user"), {}, live)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--home", required=True)
    parser.add_argument("--user", default="root")
    parser.add_argument("--env", default="{}")
    options = parser.parse_args()
    env = json.loads(options.env)
    identities = FakeIdentities(default=options.user, home=options.home, env=env)
    warm()
    serve(socket.socket(fileno=options.fd), identities, {"PATH": os.environ["PATH"], **env})


__all__ = ["entry_of_contexts", "run", "serve", "warm"]

if __name__ == "__main__":
    main()
