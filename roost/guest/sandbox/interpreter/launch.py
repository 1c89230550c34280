"""What a fork of the daemon does before it is a context: it becomes the user, at the right place, with little else."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Mapping
from typing import Any, NoReturn, Protocol

from roost.guest.child import close_others
from roost.guest.environment import BUNDLE_BIN
from roost.guest.sandbox.identities import take_groups
from roost.guest.sandbox.interpreter import frames, linux
from roost.guest.sandbox.interpreter.languages import LANGUAGES, command_of
from roost.guest.sandbox.interpreter.processes import Descriptors, Order

SOCKET = 3  # the descriptor of a context's socket
_OOM_SCORE = b"1000"  # where the room's memory ends, a context ends first, not the daemon
_SIGNALS = (signal.SIGPIPE, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGINT)
#: In memory if the template's zygote imported it, and with it the libraries that contexts share.
PYTHON = "roost.guest.sandbox.interpreter.python.context"
_COLD = "roost.guest.sandbox.interpreter.python.cold"
#: What of the libraries a user may have installed in another version.
_SHARED = ("IPython", "numpy", "pandas", "matplotlib", "matplotlib_inline", "PIL", "traitlets", "orjson", "pydantic")


class Account(Protocol):
    """A user of the room."""

    @property
    def name(self) -> str: ...
    @property
    def uid(self) -> int: ...
    @property
    def gid(self) -> int: ...
    @property
    def home(self) -> str: ...
    @property
    def groups(self) -> tuple[int, ...]: ...


class Accounts(Protocol):
    """What is needed of `roost.guest.sandbox.identities.Identities`.

    `default` is the user that contexts run as, `workdir` where they are; if that is empty, they are at the user's home.
    """

    @property
    def default(self) -> str: ...
    @property
    def workdir(self) -> str: ...
    def lookup(self, name: str) -> Any: ...
    def environment(self, user: Any) -> dict[str, str]: ...


class Refused(Exception):
    """The context can't start; the text says why."""


class Launcher:
    """`processes.Launch`: runs in the forks."""

    def __init__(self, accounts: Accounts) -> None:
        self._accounts = accounts

    def __call__(self, order: Order, fds: Descriptors) -> NoReturn:
        code = 1
        try:
            _leave_daemon(fds)
            env = self._become(order["cwd"])
            language = LANGUAGES[order["language"]]
            if language.command:
                if language.reads_input:
                    os.dup2(SOCKET, 0)
                _execute(command_of(language), env)
            if PYTHON not in sys.modules or _has_own_libraries(env["PYTHONUSERBASE"]):
                _execute([sys.executable, "-P", "-m", _COLD], env)
            sys.modules[PYTHON].run(socket.socket(fileno=SOCKET), env)
            code = 0
        except Refused as error:
            report = frames.frame(frames.FAILED, json.dumps({"error": str(error)}).encode())
            with contextlib.suppress(OSError):
                os.write(SOCKET, report)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def _become(self, cwd: str) -> dict[str, str]:
        """Turn into the user; the variables of the context."""
        try:
            user: Account = self._accounts.lookup(self._accounts.default)
        except LookupError:
            raise Refused(f"there is no user {self._accounts.default!r}") from None
        os.umask(0o022)
        # As the room's root still: a context may be put where its user has no right to look.
        try:
            os.chdir(cwd)
        except OSError as error:
            raise Refused(f"{cwd}: {error.strerror}") from None
        with contextlib.suppress(OSError):  # a room may have a /proc that nobody writes to
            fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
            os.write(fd, _OOM_SCORE)
            os.close(fd)
        if os.geteuid() == 0:
            try:
                take_groups(user.groups)
                os.setresgid(user.gid, user.gid, user.gid)
                os.setresuid(user.uid, user.uid, user.uid)
            except OSError as error:
                raise Refused(f"the user {user.name} can't be taken: {error.strerror}") from None
        linux.die_with_parent()
        linux.set_dumpable()
        return context_environment(self._accounts.environment(user), user.home)


def context_environment(login: Mapping[str, str], home: str) -> dict[str, str]:
    """The variables of a context: a login's, with the guest's interpreter first. Pure.

    `pip` installs for the user by itself, as the interpreter's own directory is read-only; told so by PIP_USER it would
    also list nothing else.
    """
    env = {"LANG": "C.UTF-8", "PYTHONUSERBASE": f"{home}/.local", "PATH": "", **login}
    path = [entry for entry in env["PATH"].split(":") if entry and entry != BUNDLE_BIN]
    user_bin = f"{env['PYTHONUSERBASE']}/bin"
    env["PATH"] = ":".join([BUNDLE_BIN, *path, *([] if user_bin in path else [user_bin])])
    return env


def _leave_daemon(fds: Descriptors) -> None:
    """0 reads nothing, 1 and 2 are the output, 3 is the socket; nothing else stays. A group of its own."""
    os.setsid()
    asyncio.set_event_loop(None)
    signal.set_wakeup_fd(-1)
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    sock, out, err = (_above(fd) for fd in fds)
    null = os.open(os.devnull, os.O_RDONLY)
    for fd, place in ((null, 0), (out, 1), (err, 2)):
        os.dup2(fd, place)
    os.dup2(sock, SOCKET, inheritable=False)
    close_others({0, 1, 2, SOCKET})


def _above(fd: int) -> int:
    """A copy of the descriptor that is not where another one is wanted. The others are closed with all the rest."""
    while fd <= SOCKET:
        fd = os.dup(fd)
    return fd


def _has_own_libraries(user_base: str) -> bool:
    """The user has installed one of those that are in memory: theirs is to be used."""
    site = f"{user_base}/lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
    return any(os.path.isdir(f"{site}/{name}") for name in _SHARED)


def _execute(command: list[str], env: Mapping[str, str]) -> NoReturn:
    os.set_inheritable(SOCKET, True)
    try:
        os.execvpe(command[0], command, env)  # noqa: S606 - there is no shell, on purpose
    except OSError as error:
        os.set_inheritable(SOCKET, False)
        raise Refused(f"{command[0]}: {error.strerror}") from None
