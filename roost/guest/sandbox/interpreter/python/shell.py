"""IPython's shell, as a context has it: results and errors go to the channel, commands to the context's own output."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import Coroutine, Mapping
from typing import Any, NoReturn

from IPython.core.displayhook import DisplayHook
from IPython.core.displaypub import DisplayPublisher
from IPython.core.inputtransformer2 import TransformerManager
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.profiledir import ProfileDir
from traitlets import Any as AnyTrait
from traitlets import Instance, Type, observe
from traitlets.config import Config

from roost.guest.sandbox.interpreter import frames
from roost.guest.sandbox.interpreter.python.bundles import encode, encode_within, to_result
from roost.guest.sandbox.interpreter.python.channel import Channel
from roost.guest.sandbox.interpreter.python.formats import ResultFormatter, add_formats, call_directly

MAX_RESULT = 32 << 20
_SHELL = "/bin/bash"
_TRANSFORMERS = TransformerManager().token_transformers
#: What all of them begin with; the last three are special at the begin of a line alone.
_SPECIAL = re.compile(r"[%!?]|^\s*[,;/]")


class ResultHook(DisplayHook):
    """Sends the value of a cell's last expression."""

    def quiet(self) -> Any:
        """Whether the cell ends with a semicolon, for which IPython reads it token by token."""
        cells = self.shell.history_manager.input_hist_parsed
        return bool(cells) and ";" in cells[-1] and super().quiet()

    def start_displayhook(self) -> None:
        self._bundle: Mapping[str, Any] = {}

    def write_output_prompt(self) -> None:
        """The number is a field of its own."""

    def write_format_data(self, format_dict: Mapping[str, Any], md_dict: Any = None) -> None:
        self._bundle = format_dict

    def finish_displayhook(self) -> None:
        shell = self.shell
        if self._bundle and isinstance(shell, Shell):
            shell.send_result(self._bundle)


class ResultPublisher(DisplayPublisher):
    """Sends what a cell displays. Updates of a display are not sent: E2B's clients have no name for them."""

    def publish(self, data: Mapping[str, Any], metadata: Any = None, **options: Any) -> None:
        shell = self.shell
        if isinstance(shell, Shell) and not options.get("update"):
            shell.send_display(data)

    def clear_output(self, wait: bool = False) -> None:
        """What a client has, it has."""


class Transforms(TransformerManager):
    """Makes Python of what only IPython knows, like `%magic`. To find that, IPython reads a cell token by token."""

    def do_token_transforms(self, lines: list[str]) -> Any:
        """At once where there can be none."""
        if self.token_transformers == _TRANSFORMERS and not any(map(_SPECIAL.search, lines)):
            return lines
        return super().do_token_transforms(lines)


class NoProfile(ProfileDir):
    """IPython's profile keeps files of the user's; a context has none."""

    def check_dirs(self) -> None:
        """Make none."""

    def _location_changed(self, change: Any) -> None:
        """Make none."""


class Shell(InteractiveShell):
    """One for each process. Without a `channel` (in the zygote) it shows nothing."""

    channel: Channel | None = None
    displayhook_class = Type(ResultHook)
    display_pub_class = Type(ResultPublisher)
    input_transformer_manager = Instance(Transforms, ())
    loop_runner = AnyTrait()
    errored = False
    _was_interrupted = False
    _loop: asyncio.AbstractEventLoop | None = None

    @observe("ipython_dir")
    def _ipython_dir_changed(self, change: Any) -> None:
        """Make none."""

    def init_display_formatter(self) -> None:
        self.display_formatter = ResultFormatter(parent=self)
        self.configurables.append(self.display_formatter)

    def run(self, code: str) -> None:
        """Run a cell. Errors have been sent when this returns."""
        self.errored = False
        try:
            self.run_cell(code, store_history=True)
        except KeyboardInterrupt:  # between IPython's own steps
            self.send_error("KeyboardInterrupt", "", "KeyboardInterrupt\n")

    def system_piped(self, cmd: str) -> None:
        """`!command`: its output goes where the cell's goes."""
        command = self.var_expand(cmd, depth=1)
        with subprocess.Popen([_SHELL, "-c", command]) as process:
            self.user_ns["_exit_code"] = process.wait()

    system = system_piped
    system_raw = system_piped

    def ask_exit(self) -> NoReturn:
        """`exit()` ends the cell. The context stays."""
        raise SystemExit

    def send_result(self, bundle: Mapping[str, Any]) -> None:
        if self.channel is not None:
            self.channel.send(frames.RESULT, self._encoded(bundle, is_main=True))

    def send_display(self, bundle: Mapping[str, Any]) -> None:
        if self.channel is not None:
            self.channel.display(self._encoded(bundle, is_main=False))

    def send_error(self, name: str, value: str, traceback: str) -> None:
        """Only the first error of a cell is sent."""
        if self.channel is not None and not self.errored:
            self.errored = True
            item = {"type": "error", "name": name, "value": value, "traceback": traceback}
            self.channel.send(frames.ERROR, encode(item))

    def _showtraceback(self, etype: type[BaseException], evalue: BaseException, stb: list[str]) -> None:
        if issubclass(etype, asyncio.CancelledError) and self._was_interrupted:
            etype = KeyboardInterrupt
        try:
            value = str(evalue)
        except Exception as broken:
            value = f"(no text: {type(broken).__name__} in __str__)"
        self.send_error(etype.__name__, value, "".join(stb))

    def _encoded(self, bundle: Mapping[str, Any], *, is_main: bool) -> bytes:
        data, left_out = encode_within(to_result(bundle, is_main=is_main), MAX_RESULT)
        if left_out:
            print(f"Left out of a result of over {MAX_RESULT >> 20} MB: {', '.join(left_out)}", file=sys.stderr)
        return data

    def run_async(self, cell: Coroutine[Any, Any, Any]) -> Any:
        """Top-level `await`. The loop is the same for all cells; between them it stands still."""
        if self._loop is None or self._loop.is_closed():
            self._loop = asyncio.new_event_loop()
            asyncio.set_event_loop(self._loop)
        self._was_interrupted = False
        task = self._loop.create_task(cell)
        try:
            return self._loop.run_until_complete(task)
        except KeyboardInterrupt:
            self._was_interrupted = True
            task.cancel()
            return self._loop.run_until_complete(task)

    def forget_cells(self) -> None:
        """As if none had run."""
        self.reset(new_session=True)
        self.execution_count = 1
        self.forget_loop()

    def forget_loop(self) -> None:
        """A loop's descriptors must not be shared with a fork."""
        if self._loop is not None:
            self._loop.close()
            self._loop = None
            asyncio.set_event_loop(None)

    def leave_loop(self) -> None:
        """In a copy, which has none of its descriptors."""
        self._loop = None
        asyncio.set_event_loop(None)


def make_shell() -> Shell:
    """The shell of this process, made at the first call."""
    config = Config()
    config.InteractiveShell.colors = "nocolor"
    config.PlainTextFormatter.max_seq_length = 0
    config.HistoryManager.enabled = False  # a thread would write its database
    shell: Shell = Shell.instance(config=config, profile_dir=NoProfile(), ipython_dir="/nonexistent")
    shell.loop_runner = shell.run_async
    add_formats(shell.display_formatter)
    call_directly(shell.display_formatter)
    return shell
