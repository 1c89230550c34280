"""Whether a driver really makes rooms here: one is made, with a data directory that goes at once."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import Callable
from pathlib import Path

from roost.isolation.bundle import Bundle, build_bundle
from roost.isolation.driver import Driver, RoomSpec, Template
from roost.model.errors import RoostError
from roost.model.function import Limits

_TIMEOUT_S = 120.0
#: On a disk, as data directories are; /tmp is often in memory, where other rules hold.
_PLACE = "/var/tmp"  # noqa: S108

Make = Callable[[Path, Path, Bundle], Driver]


def boot(make: Make) -> str:
    """What went wrong, or nothing. `make` gets a data directory, one for sockets, and the guest. Takes some seconds."""
    with tempfile.TemporaryDirectory(prefix="roost-boot-", dir=_PLACE, ignore_cleanup_errors=True) as directory:
        data, run, root = (Path(directory) / name for name in ("data", "run", "root"))
        data.mkdir()
        root.mkdir()
        template = Template(name="boot", root=root)  # the guest brings all that it needs
        try:
            return asyncio.run(_boot(make(data, run, build_bundle(data)), template, run / "room"))
        except RoostError as error:
            return error.message
        except TimeoutError:
            return f"No room came up within {_TIMEOUT_S:.0f} s."
        except OSError as error:
            return f"No room came up: {error.strerror or error} ({error.filename})."


async def _boot(driver: Driver, template: Template, run_dir: Path) -> str:
    async with asyncio.timeout(_TIMEOUT_S), contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(driver.close)
        await driver.start()
        run_dir.mkdir(parents=True)  # noqa: ASYNC240
        spec = RoomSpec(id="boot", template=template, limits=Limits(disk_mb=64), run_dir=run_dir)
        room = await driver.create(spec)
        stack.push_async_callback(room.destroy)
        await room.settled()
    return ""
