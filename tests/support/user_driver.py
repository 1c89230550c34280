"""An `UnprivilegedDriver` in a process of its own, for tests that are root: DATA RUN TEMPLATE BUNDLE GUEST.

Each line of its input is JSON, `{"do": what, ...}`; each line that it answers is `{"result": ...}` or `{"error": ...}`.
"""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from roost.isolation.bundle import Bundle
from roost.isolation.driver import Mount, RoomSpec, Template
from roost.isolation.unprivileged.driver import UnprivilegedDriver
from roost.isolation.unprivileged.room import UnprivilegedRoom
from roost.model.errors import RoostError
from roost.model.function import Limits


class Service:
    def __init__(self, data: Path, run: Path, template: Path, bundle: Path, guest: str) -> None:
        self.run = run
        self.driver = UnprivilegedDriver(data, run, Bundle(bundle), guest=guest)
        self.template = Template(name="host", root=template, binds=((Path("/usr"), "/usr"),))
        self.rooms: dict[str, UnprivilegedRoom] = {}

    async def create(self, name: str, limits: dict[str, Any], mounts: list[dict[str, Any]], **more: Any) -> Any:
        run_dir = self.run / name
        run_dir.mkdir(parents=True, exist_ok=True)
        layer = more.pop("layer", None)
        spec = RoomSpec(
            id=name,
            template=self.template,
            limits=Limits(**{"disk_mb": 64, **limits}),
            run_dir=run_dir,
            layer=None if layer is None else Path(layer),
            mounts=tuple(Mount(**{**mount, "source": Path(mount["source"])}) for mount in mounts),
            capabilities=frozenset(more.pop("capabilities", ())),
            **more,
        )
        self.rooms[name] = room = await self.driver.create(spec)
        return dict(room.handle)

    async def destroy(self, name: str) -> None:
        await self.rooms.pop(name).destroy()

    async def freeze(self, name: str) -> None:
        await self.rooms[name].freeze()

    async def usage(self, name: str) -> Any:
        return asdict(self.rooms[name].usage())

    async def recover(self, handle: dict[str, Any]) -> bool:
        room = await self.driver.recover(handle)
        if room is not None:
            self.rooms[room.id] = room
        return room is not None

    async def sweep(self, keep: list[str]) -> int:
        return await self.driver.sweep(frozenset(keep))

    async def close(self) -> None:
        for name in list(self.rooms):
            await self.destroy(name)
        await self.driver.close()


async def main() -> None:
    service = Service(*(Path(argument) for argument in sys.argv[1:5]), sys.argv[5])
    await service.driver.start()
    print(json.dumps({"result": "ready"}), flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        asked = json.loads(line)
        try:
            answer = {"result": await getattr(service, asked.pop("do"))(**asked)}
        except RoostError as error:
            answer = {"error": f"{type(error).__name__}: {error.message}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
