"""Builds of templates in real rooms, whose guest is the probe: it runs a command as a user and gives its output."""

from __future__ import annotations

import io
import tarfile
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from roost.isolation.driver import ROOT_CAPABILITIES
from roost.isolation.namespaces.room import NamespacesRoom
from roost.sandboxes.build_cache import BuildCache
from roost.sandboxes.builder import Builder, RoomNeeds
from tests.support.rooms import World

_RUN = """
import pwd, subprocess
try:
    known = pwd.getpwnam({user!r})
    ran = subprocess.run(["/bin/bash", "-c", {command!r}], cwd={cwd!r}, capture_output=True, text=True,
                         user=known.pw_uid, group=known.pw_gid, extra_groups=[],
                         env={{"PATH": "/usr/local/bin:/usr/bin:/usr/sbin:/bin", "HOME": known.pw_dir, **{env!r}}})
    result = [ran.returncode, ran.stdout, ran.stderr]
except (KeyError, OSError) as error:
    result = [127, "", str(error)]
"""


class ProbeRooms:
    """Rooms of a `World`. `opened` are the ids of all that there were."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.opened: list[str] = []

    @asynccontextmanager
    async def open(self, needs: RoomNeeds) -> AsyncIterator[NamespacesRoom]:
        assert needs.root == "host"
        self.opened.append(needs.id)
        room = await self._world.room(
            needs.id,
            limits=needs.limits,
            layer=needs.layer,
            lower=needs.lower,
            mounts=needs.mounts,
            capabilities=ROOT_CAPABILITIES,
        )
        try:
            yield room
        finally:
            await room.destroy()


class ProbeRunner:
    """`ran` are the commands, with who ran them."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.ran: list[tuple[str, str]] = []

    async def run(
        self,
        room: NamespacesRoom,
        command: str,
        *,
        user: str,
        cwd: str,
        env: Mapping[str, str],
        on_line: Callable[[str, str], None],
    ) -> int:
        self.ran.append((user, command))
        source = _RUN.format(user=user, command=command, cwd=cwd, env=dict(env))
        code, out, err = await self._world.ask(room, source)
        for stream, text in (("stdout", out), ("stderr", err)):
            for line in text.splitlines():
                on_line(stream, line)
        return int(code)


class Workshop:
    """A builder over a world, and what it did."""

    def __init__(self, world: World, directory: Path, *, most_bytes: int = 1 << 30) -> None:
        self.cache = BuildCache(directory / "builds", most_bytes=most_bytes)
        self.cache.prepare()
        self.rooms = ProbeRooms(world)
        self.runner = ProbeRunner(world)
        self.builder: Builder[NamespacesRoom] = Builder(
            rooms=self.rooms, runner=self.runner, images=world.driver.disks, cache=self.cache, clock=lambda: 0.0
        )

    def upload(self, scope: str, files_hash: str, files: Mapping[str, str | None], mode: str = "w:gz") -> None:
        """`None` is a folder; a text that starts with `-> ` is a link."""
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode=mode) as tar:  # type: ignore[call-overload]
            for name, text in files.items():
                member = tarfile.TarInfo(name)
                member.mode = 0o644
                if text is None:
                    member.type, member.mode = tarfile.DIRTYPE, 0o755
                elif text.startswith("-> "):
                    member.type, member.linkname = tarfile.SYMTYPE, text[3:]
                else:
                    member.size = len(text)
                tar.addfile(member, io.BytesIO((text or "").encode()) if member.isreg() else None)
        with self.cache.upload(scope, files_hash, most_bytes=1 << 20) as file:
            file.write(archive.getvalue())
