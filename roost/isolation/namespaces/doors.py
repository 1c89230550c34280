"""Ways out of rooms for programs that know no proxy, on the server's side: asked of the doorman, when first wanted."""

from __future__ import annotations

import socket
from collections.abc import Callable

from roost.isolation.driver import Door
from roost.isolation.namespaces.doorman import NO_NFT, nft
from roost.isolation.namespaces.helper import Helper, Standing
from roost.model.errors import InvalidArgument, Unavailable
from roost.model.function import GVISOR


def check_doors(isolation: str) -> None:
    """Raises InvalidArgument, Unavailable where rooms of that kind can't have them."""
    if isolation == GVISOR:  # its kernel has a network of its own
        raise InvalidArgument("Transparent egress is for rooms on the host's kernel, not on gVisor's.")
    if not nft():
        raise Unavailable(f"There is no transparent egress here: {NO_NFT}.")


class Doors:
    """Opens them. The doorman's process is there from the first room on that has one."""

    def __init__(self, start: Callable[[str], Helper] = Helper) -> None:
        self._doorman = Standing("doorman", start)

    async def open(self, netns: int) -> Door:
        """Of a room with this network namespace, a descriptor of the caller's. Raises Unavailable."""
        try:
            doorman = await self._doorman.get()
            _, fds = await doorman.request({}, [netns])
        except Unavailable as error:
            raise Unavailable(f"The room has no transparent way out: {error.message.rstrip('.')}.") from error
        datagrams, *connections = (socket.socket(fileno=fd) for fd in fds)
        return Door(names=datagrams, connections=tuple(connections))

    async def close(self) -> None:
        """End the process. Doors stay open."""
        await self._doorman.close()
