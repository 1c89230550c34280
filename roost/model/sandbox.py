"""A sandbox: one user's computer for as long as they want it, with files that outlive its room."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from roost.model.function import Limits
from roost.model.instance import StopReason
from roost.model.taint import TaintRules

#: "i" and 19 letters or digits: 98 bits, so that nobody finds a sandbox by guessing.
SANDBOX_ID = re.compile(r"i[a-z0-9]{19}")
#: `Sandbox.place`
SANDBOX_PLACE = re.compile(r"i[a-z0-9]{19}(-[0-9]{1,9})?")


class SandboxState(StrEnum):
    """As its owner sees it. What is on its way is shown as where it comes from."""

    RUNNING = "running"
    PAUSED = "paused"


class PauseMode(StrEnum):
    """What a paused sandbox kept."""

    FULL = "full"  # processes and memory too: the room is frozen and held
    DISK = "disk"  # the memory of its contexts, on disk: the room is gone, as nothing else was in it
    FILESYSTEM = "filesystem"  # files alone: the room is gone, resuming starts another


@dataclass(frozen=True, kw_only=True)
class SandboxVolume:
    """A named volume in a sandbox."""

    name: str
    path: str  # absolute, in the room


@dataclass(frozen=True, kw_only=True)
class Volume:
    """Named storage that sandboxes mount and outlive not. `token` opens its files; `created`: Unix seconds."""

    account: str
    id: str
    name: str
    token: str = field(repr=False)
    created: float


@dataclass(frozen=True, kw_only=True)
class Foundation:
    """What a sandbox's own files lie on, and what starts in it. It never changes under a sandbox."""

    root: str = "host"  # the root file system, by its name in the catalog
    layers: tuple[str, ...] = ()  # names of images above it, newest first
    interpreter: bool = False  # serves code contexts at port 49999
    user: str = "user"
    workdir: str = "/home/user"
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    start_command: str = ""
    ready_command: str = ""
    labels: tuple[str, ...] = ()  # of what is in the layers
    taint: TaintRules = field(default_factory=TaintRules)  # the policy of the sandbox whose files these were


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A sandbox at one moment, to go back to. Its memory, if that is held, goes with the server; this does not."""

    id: str
    label: str = ""
    parent: str = ""  # the one that its state comes from
    created: float
    foundation: Foundation  # its own files are the first layer
    memory: str = "none"  # in what way it came along
    contexts: tuple[str, ...] = ()  # whose memory came along, each by itself
    left_behind: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()  # why that of others did not
    dropped: str = ""  # why the memory that came along is not held any more, where a rule of the server's says so


@dataclass(frozen=True, kw_only=True)
class Sandbox:
    """One sandbox. Times are Unix seconds; the tokens are secrets of its owner that its room never sees."""

    id: str
    account: str
    template: str
    alias: str = ""  # the name that its creator used for the template
    foundation: Foundation = field(default_factory=Foundation)
    created: float
    ends_at: float  # of a running one: then it is killed, or paused with `auto_pause`
    timeout_s: int  # as last set; how long it runs when traffic wakes it
    state: SandboxState = SandboxState.RUNNING
    pause_mode: PauseMode | None = None
    reason: str = ""  # why it is paused; a StopReason
    limits: Limits
    metadata: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    auto_pause: bool = False
    auto_pause_memory: bool = True
    auto_resume: bool = False
    internet: bool | None = None  # as asked for
    network: Mapping[str, Any] = field(default_factory=dict)  # the API's own configuration, kept as it came
    volumes: tuple[SandboxVolume, ...] = ()
    envd_token: str = field(repr=False)
    traffic_token: str = field(repr=False)
    public: bool = False  # its ports take requests without a token
    checkpoints: tuple[Checkpoint, ...] = ()  # the oldest first
    at: str = ""  # the checkpoint that its state comes from
    rollbacks: int = 0  # the number of its room: each has a higher one than those before

    @property
    def place(self) -> str:
        """Names the layer with its own files, and the folder of its room: another one after each rollback."""
        return f"{self.id}-{self.rollbacks}" if self.rollbacks else self.id

    @property
    def standing(self) -> tuple[tuple[str, ...], ...]:
        """Stacks of images that it needs."""
        return (self.foundation.layers, *(one.foundation.layers for one in self.checkpoints))

    @property
    def variables(self) -> Mapping[str, str]:
        """What it was given, over what it stands on."""
        return {**self.foundation.environment, **self.environment}

    @property
    def wakes(self) -> bool:
        """Whether traffic may resume it: not what was paused for its files alone, nor what died of itself."""
        kept = self.pause_mode in (PauseMode.FULL, PauseMode.DISK) or self.reason in (
            StopReason.SHUTDOWN,
            StopReason.LOST,
        )
        return self.state is SandboxState.PAUSED and self.auto_resume and kept


@dataclass(frozen=True, kw_only=True)
class EndedSandbox:
    """What is remembered of one that is gone."""

    id: str
    account: str
    reason: str  # a StopReason
    at: float


_EXPLAINED: dict[str, str] = {
    StopReason.TIMEOUT: "its timeout had passed",
    StopReason.KILLED: "it was killed by request",
    StopReason.OUT_OF_MEMORY: "it ran out of memory",
    StopReason.EXITED: "its main process ended",
    StopReason.PAUSED: "it was paused by request",
    StopReason.SHUTDOWN: "the server was stopped",
    StopReason.LOST: "its room was lost",
    StopReason.START_FAILED: "it did not start",
    StopReason.ROLLED_BACK: "it was rolled back to a checkpoint, and what ran in it was ended",
}


def explain(reason: str) -> str:
    """Why a sandbox ended or is paused, as the rest of a sentence."""
    return _EXPLAINED.get(reason, reason.replace("_", " "))
