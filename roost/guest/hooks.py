"""The initializer and the pre-stop hook of the Python runtime."""

from __future__ import annotations

import asyncio
import inspect
import subprocess
import threading
from collections.abc import Callable, Coroutine
from typing import Any

from roost.guest.config import Hook, StartConfig
from roost.guest.context import Context, ContextFactory
from roost.guest.faults import StartFailed, describe, stack_of
from roost.guest.invocation import Output
from roost.guest.loading import load

#: Runs a coroutine to its end, wherever the worker's event loop is.
RunCoroutine = Callable[[Coroutine[Any, Any, Any]], Any]


class Hooks:
    """Made in the main thread, before serving: a hook that does not load fails the start. Raises StartFailed."""

    def __init__(self, config: StartConfig, contexts: ContextFactory, output: Output) -> None:
        self._config = config
        self._contexts = contexts
        self._output = output
        self._initializer = _load(config.initializer)
        self._pre_stop = _load(config.pre_stop)

    def initialize(self, run: RunCoroutine) -> None:
        """Raises StartFailed with what the initializer raised."""
        hook = self._config.initializer
        if hook is None:
            return
        self._output.line("FC Initialize Start")
        try:
            _call(hook, self._initializer, self._contexts.without_request(), run)
        except BaseException as error:
            self._output.fault(error)
            text = f"{type(error).__name__}: {describe(error)['errorMessage']}"
            raise StartFailed(type(error).__name__, f"The initializer failed: {text}", stack_of(error)) from error
        finally:
            self._output.line("FC Initialize End")

    def pre_stop(self, run: RunCoroutine, done: Callable[[], None]) -> None:
        """Run the hook in a thread of its own, since the main one serves; then call `done`, whatever came of it."""
        threading.Thread(target=self._run_pre_stop, args=(run, done), name="pre-stop", daemon=True).start()

    def _run_pre_stop(self, run: RunCoroutine, done: Callable[[], None]) -> None:
        hook = self._config.pre_stop
        try:
            if hook is not None:
                self._output.line("FC PreStop Start")
                _call(hook, self._pre_stop, self._contexts.without_request(), run)
        except BaseException as error:
            self._output.fault(error)
        finally:
            if hook is not None:
                self._output.line("FC PreStop End")
            done()


def _load(hook: Hook | None) -> Callable[[Context], Any] | None:
    return load(hook.handler) if hook is not None and hook.handler else None


def _call(hook: Hook, function: Callable[[Context], Any] | None, context: Context, run: RunCoroutine) -> None:
    """Call the hook's function with the context, or run its command. Raises what it raises."""
    if function is not None:
        result = function(context)
        if inspect.iscoroutine(result):
            run(result)
    if hook.command:
        subprocess.run(hook.command, check=True, timeout=hook.timeout)


def run_in(loop: asyncio.AbstractEventLoop) -> RunCoroutine:
    """For another thread than the loop's."""

    def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result()

    return run
