"""`roost sandbox`: what is done in one: commands, code, a shell, files."""

from __future__ import annotations

import codecs
import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn
from rich.progress import Progress as ProgressBar

from roost.sdk import cells, copies, screen
from roost.sdk.commands_sandbox import Env, Id, api, pairs
from roost.sdk.envd import Envd
from roost.sdk.errors import Failed, FunctionFault, Unreachable, UsageError
from roost.sdk.programs import Ended, Output, Program
from roost.sdk.running import Feed, Input, Wake, interruptible, run
from roost.sdk.sandbox_api import Sandbox, SandboxApi
from roost.sdk.terminal import clean

User = Annotated[str, typer.Option("--user", "-u", help="Who runs it: a user of the sandbox [default: user].")]
Cwd = Annotated[str, typer.Option("--cwd", "-w", help="Where it runs [default: the user's home].")]


@contextlib.contextmanager
def _reached(id: str) -> Iterator[tuple[SandboxApi, Sandbox]]:
    """A sandbox in use. When the connection to it breaks, the server tells what became of it."""
    with api() as sandboxes:
        sandbox = sandboxes.reach(id)
        try:
            yield sandboxes, sandbox
        except Unreachable as broken:
            state = sandboxes.get(sandbox.id).get("state")  # raises the reason, if it has ended
            if state == "paused":
                raise Failed(f"Sandbox {sandbox.id} has been paused.") from broken
            raise


def execute(
    id: Id,
    command: Annotated[list[str], typer.Argument(metavar="-- CMD...", help="The program with its arguments.")],
    user: User = "",
    cwd: Cwd = "",
    env: Env = None,
) -> None:
    """Run a command: its output as it comes, its exit code. Standard input goes to it when it is not a terminal."""
    piped = sys.stdin is not None and not sys.stdin.isatty()
    program = Program(argv=_argv(command), env=pairs("--env", env), cwd=cwd, stdin=piped)
    with _reached(id) as (sandboxes, sandbox), Wake() as wake:
        envd = Envd(sandboxes.client, sandbox, user)
        ended = run(envd, program, _stdin() if piped else None, _Printer(), wake)
    _leave(ended)


def _argv(command: list[str]) -> tuple[str, ...]:
    """Without the `--` that may be before it. Raises UsageError when there is nothing behind."""
    argv = command[1:] if command[:1] == ["--"] else command
    if not argv:
        raise UsageError("The command is missing.")
    return tuple(argv)


def _stdin() -> Feed:
    fd = sys.stdin.fileno()

    def feed(given: Input, wake: Wake) -> None:
        while data := wake.read(fd):
            given.write(data)

    return feed


class _Printer:
    """To a pipe byte for byte; to a terminal as harmless text."""

    def __init__(self) -> None:
        self._decoders = {name: codecs.getincrementaldecoder("utf-8")("replace") for name in ("stdout", "stderr")}

    def __call__(self, output: Output) -> None:
        target = sys.stderr if output.stream == "stderr" else sys.stdout
        if target.isatty():
            target.write(clean(self._decoders["stderr" if target is sys.stderr else "stdout"].decode(output.data)))
            target.flush()
        else:
            target.buffer.write(output.data)
            target.buffer.flush()


def _leave(ended: Ended) -> None:
    if ended.signal:
        typer.echo(f"The command was ended by a signal: {clean(ended.signal)}.", err=True)
    if ended.code:
        raise typer.Exit(ended.code)


def shell(
    id: Id,
    command: Annotated[
        list[str] | None, typer.Argument(metavar="[-- CMD...]", help="Instead of bash [default: /bin/bash -i -l].")
    ] = None,
    user: User = "",
    cwd: Cwd = "",
) -> None:
    """Open a shell in this terminal. It ends with the shell, whose exit code is passed on."""
    with _reached(id) as (sandboxes, sandbox):
        argv = _argv(command) if command else ("/bin/bash", "-i", "-l")
        ended = screen.shell(Envd(sandboxes.client, sandbox, user), argv, cwd)
    _leave(ended)


def run_code(
    id: Id,
    file: Annotated[str | None, typer.Argument(metavar="[FILE|-]", help="The code; `-` is standard input.")] = None,
    *,
    code: Annotated[str | None, typer.Option("--code", "-c", help="The code itself, instead of a file.")] = None,
    language: Annotated[
        str | None, typer.Option("--language", "-l", help="python, javascript, typescript, bash, r, java.")
    ] = None,
    context: Annotated[str, typer.Option("--context", help="A context's id [default: the language's own].")] = "",
    env: Env = None,
) -> None:
    """Run code in the sandbox's interpreter, which remembers what ran before."""
    text, path = _code(file, code)
    if language is None:
        language = "" if context else cells.language_of(path)
    cell = cells.Cell(code=text, language=language, context=context, env=pairs("--env", env))
    failed = ""
    with _reached(id) as (sandboxes, sandbox), interruptible():
        for said in cells.execute(sandboxes.client, sandbox, cell):
            if said.kind == "error":
                failed = failed or said.text
            else:
                _print(said)
    if failed:
        raise FunctionFault("", _last_line(failed), failed.splitlines())


def _code(file: str | None, code: str | None) -> tuple[str, Path | None]:
    if (file is None) == (code is None) and (code is not None or sys.stdin is None or sys.stdin.isatty()):
        raise UsageError("Give the code as a file, with --code, or by standard input: one of them.")
    if code is not None:
        return code, None
    path = None if file in (None, "-") else Path(str(file))
    try:
        return (sys.stdin.read() if path is None else path.read_text()), path
    except OSError as error:
        raise UsageError(f"{file} can't be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{file or 'Standard input'} is not text in UTF-8.") from error


def _print(said: cells.Said) -> None:
    if said.kind == "other":
        typer.echo(f"(a result without text: {clean(said.text)})", err=True)
        return
    target = sys.stderr if said.kind == "stderr" else sys.stdout
    text = said.text + ("\n" if said.kind == "result" else "")
    target.write(clean(text) if target.isatty() else text)
    target.flush()


def _last_line(text: str) -> str:
    return next((line for line in reversed(text.splitlines()) if line.strip()), "the code failed")


def cp(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A file or directory; `ID:path` in a sandbox.")],
    target: Annotated[str, typer.Argument(metavar="DST", help="Where to; `ID:path` in a sandbox.")],
    user: User = "",
) -> None:
    """Copy a file or a directory into a sandbox, or out of one."""
    ours, theirs = copies.place(source), copies.place(target)
    id = ours.sandbox or theirs.sandbox
    if id is None or (ours.sandbox and theirs.sandbox):
        raise UsageError("One of the two is in a sandbox, as ID:path; the other is a path here.")
    with _reached(id) as (sandboxes, sandbox), interruptible(), _progress(source) as progress:
        envd = Envd(sandboxes.client, sandbox, user)
        if theirs.sandbox:
            skipped: list[str] = []
            place = f"{sandbox.id}:{copies.send(envd, Path(source), theirs.path, progress)}"
        else:
            path, skipped = copies.fetch(envd, ours.path, target, progress)
            place = str(path)
    for name in skipped[:_SHOWN]:
        typer.echo(f"Not copied, as it is no plain file or leads elsewhere: {clean(name)}", err=True)
    if len(skipped) > _SHOWN:
        typer.echo(f"... and {len(skipped) - _SHOWN} more.", err=True)
    typer.echo(f"Copied to {clean(place)}.", err=True)


_SHOWN = 10


@contextlib.contextmanager
def _progress(name: str) -> Iterator[copies.Progress]:
    """A bar on a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with ProgressBar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(clean(Path(name).name)[:40], total=None)

        def tell(done: int, total: int | None) -> None:
            bar.update(task, completed=done, total=total)

        yield tell
