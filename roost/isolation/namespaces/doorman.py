"""A helper process that turns what leaves a room to a socket of the server. See ARCHITECTURE.md, "Doors of a room".

In the room's network namespace, over which nobody in the room has power, every address becomes one of `lo`'s; TCP to
other addresses than loopback's is turned to one listening socket, UDP to port 53 to one socket of datagrams, and all
else is refused at once. No packet leaves the namespace, whatever these rules say: it has no interface but `lo`.

Runs as root: python -m roost.isolation.namespaces.doorman SOCKET_FD
Each request is `{"id"}` with the descriptor of a network namespace; the reply carries `{"id"}` and the sockets, of
datagrams first, or `{"id", "error"}`. To ask again for the same namespace replaces what was there.
"""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys

from roost.isolation import linux
from roost.isolation.namespaces import wire

#: Above those that the kernel gives out by itself, and no service's. The room can't bind the one that is taken: the
#: first that is free, so that the next server has the same. The kernel goes on to send there what it has begun to.
_PORTS = range(61129, 61149)
_BACKLOG = 128
NO_NFT = "nft is missing: apt-get install nftables"
_NFT_TIMEOUT_S = 5.0
_NFT_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_LOOPBACK = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}

# Numbers of rtnetlink, from linux/rtnetlink.h.
_RTM_NEWROUTE, _NLMSG_ERROR = 24, 2
_REQUEST_ACK_CREATE_REPLACE = 0x001 | 0x004 | 0x400 | 0x100
_TABLE_LOCAL, _PROTOCOL_BOOT, _SCOPE_HOST, _TYPE_LOCAL = 255, 3, 254, 2
_RTA_OIF, _RTA_PREFSRC = 4, 7
_LO = 1  # its index, in every namespace

# Priorities are numbers, as old releases of nft know few of their names. What goes to loopback is not tracked, but for
# the replies of the two sockets, so that a room's own traffic fills no table of the kernel's.
_RULES = """
table inet roost
delete table inet roost
table inet roost {{
  chain track {{
    type filter hook output priority -300; policy accept;
    ip daddr 127.0.0.0/8 meta l4proto {{ tcp, udp }} th sport != {port} notrack
    ip6 daddr ::1 meta l4proto {{ tcp, udp }} th sport != {port} notrack
  }}
  chain turn {{
    type nat hook output priority -100; policy accept;
    ip daddr 127.0.0.0/8 accept
    ip6 daddr ::1 accept
    meta l4proto tcp redirect to :{port}
    meta nfproto ipv4 udp dport 53 redirect to :{port}
  }}
  chain leave {{
    type filter hook output priority 0; policy drop;
    tcp dport {port} tcp flags & (fin | syn | rst | ack) == syn limit rate over 200/second burst 1000 packets drop
    udp dport {port} limit rate over 200/second burst 1000 packets drop
    ip daddr 127.0.0.0/8 accept
    ip6 daddr ::1 accept
    meta l4proto {{ tcp, udp }} th sport {port} accept
    meta l4proto tcp reject with tcp reset
    reject with icmpx type admin-prohibited
  }}
}}
"""


def serve(sock: socket.socket) -> None:
    """Answer requests until the server has gone."""
    home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    while (received := wire.receive(sock)) is not None:
        message, fds = received
        try:
            if len(fds) != 1 or os.path.sameopenfile(fds[0], home):
                raise OSError(22, "one network namespace is expected, and not the server's own")
            linux.setns(fds[0], linux.CLONE_NEWNET)
            try:
                sockets = open_door()
            finally:
                linux.setns(home, linux.CLONE_NEWNET)
        except OSError as error:
            wire.send(sock, {"id": message["id"], "error": str(error.strerror)})
            continue
        finally:
            wire.close_all(fds)
        wire.send(sock, {"id": message["id"]}, [one.fileno() for one in sockets])
        for one in sockets:
            one.close()


def open_door() -> list[socket.socket]:
    """The sockets to which the present network namespace turns what leaves it. Raises OSError."""
    linux.bring_loopback_up()
    families = [family for family in _LOOPBACK if _route(family)]
    sockets, port = _bind(families)
    try:
        _load(_RULES.format(port=port))
    except OSError:
        for one in sockets:
            one.close()
        raise
    return sockets


def _route(family: socket.AddressFamily) -> bool:
    """Make every address one of `lo`'s. False: there is no IPv6 here, so nothing leaves by it either."""
    source = socket.inet_pton(family, _LOOPBACK[family])
    route = struct.pack("8BI", family, 0, 0, 0, _TABLE_LOCAL, _PROTOCOL_BOOT, _SCOPE_HOST, _TYPE_LOCAL, 0)
    route += struct.pack("HHI", 8, _RTA_OIF, _LO) + struct.pack("HH", 4 + len(source), _RTA_PREFSRC) + source
    head = struct.pack("IHHII", 16 + len(route), _RTM_NEWROUTE, _REQUEST_ACK_CREATE_REPLACE, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as netlink:
        netlink.send(head + route)
        reply = netlink.recv(4096)
    _, kind, _, _, _, error = struct.unpack_from("IHHIIi", reply)
    if kind != _NLMSG_ERROR or (error and family is socket.AF_INET):
        raise OSError(-error, f"the route to lo: {os.strerror(-error)}")
    return not error


def _bind(families: list[socket.AddressFamily]) -> tuple[list[socket.socket], int]:
    """One port, of datagrams in IPv4 and of connections in each family."""
    kinds = [(socket.AF_INET, socket.SOCK_DGRAM), *((family, socket.SOCK_STREAM) for family in families)]
    for port in _PORTS:
        sockets: list[socket.socket] = []
        try:
            for family, kind in kinds:
                sockets.append(socket.socket(family, kind | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK))
                sockets[-1].bind((_LOOPBACK[family], port))
                if kind is socket.SOCK_STREAM:
                    sockets[-1].listen(_BACKLOG)
        except OSError:  # the room has it
            for one in sockets:
                one.close()
            continue
        return sockets, port
    raise OSError(98, "the room has taken all ports for its way out")


def nft() -> str:
    """Where the program is; "" when it is missing."""
    return shutil.which("nft", path=_NFT_PATH) or ""


def _load(rules: str) -> None:
    """Raises OSError with what nft says."""
    program = nft()
    if not program:
        raise OSError(2, NO_NFT)
    try:
        done = subprocess.run(
            [program, "-f", "-"], input=rules.encode(), capture_output=True, timeout=_NFT_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise OSError(110, "nft does not end") from None
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise OSError(1, f"nft: {said[0][:300] if said else 'it failed'}")


def main() -> None:
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
    linux.set_process_name(b"roost-doorman")
    sock = socket.socket(fileno=int(sys.argv[1]))
    sock.set_inheritable(False)
    gc.freeze()
    wire.send(sock, {"ready": True})
    # The server may end at any moment: there is nobody left to answer.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        serve(sock)


if __name__ == "__main__":
    main()
