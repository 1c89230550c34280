"""`roost`: the one place where commands get their names, and where an error becomes a sentence and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.metadata import version as package_version

import typer

from roost.sdk import (
    commands_functions,
    commands_keys,
    commands_labels,
    commands_objects,
    commands_sandbox,
    commands_sandbox_use,
    commands_secrets,
    commands_server,
    commands_tasks,
    commands_triggers,
    commands_watch,
)
from roost.sdk.errors import CliError, FunctionFault
from roost.sdk.running import Interrupted
from roost.sdk.terminal import clean

_PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True}
#: What comes behind the first argument is the command's, `--` or not.
_COMMAND = {"allow_interspersed_args": False}


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"roost {package_version('roost')}")
        raise typer.Exit


def build() -> typer.Typer:
    """The command line, as typer runs it."""
    app = typer.Typer(
        help="Roost: a self-hosted runtime for AI agents.",
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        add_completion=False,
    )

    @app.callback()
    def roost(
        version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
    ) -> None:
        """Roost: a self-hosted runtime for AI agents. The server is at ROOST_URL, or http://127.0.0.1:8700."""

    for command in (
        commands_server.serve,
        commands_server.up,
        commands_server.down,
        commands_functions.deploy,
        commands_functions.invoke,
        commands_functions.chat,
        commands_functions.delete,
        commands_tasks.tasks,
        commands_watch.ps,
        commands_watch.top,
        commands_watch.sessions,
        commands_watch.logs,
    ):
        app.command()(command)
    # What follows is read by the programs themselves, `--help` too.
    app.command(context_settings=_PASSED_ON, add_help_option=False)(commands_server.doctor)
    app.command(context_settings=_PASSED_ON, add_help_option=False)(commands_server.template)
    app.command(context_settings=_PASSED_ON, add_help_option=False)(commands_server.audit)
    app.add_typer(_sandbox(), name="sandbox")
    app.add_typer(_objects(), name="objects")
    app.add_typer(_triggers(), name="triggers")
    app.add_typer(_keys(), name="keys")
    app.add_typer(_labels(), name="labels")
    app.add_typer(_secrets(), name="secrets")
    return app


def _triggers() -> typer.Typer:
    app = typer.Typer(
        help="What starts functions: timers, webhooks, queues; `roost triggers create`, then ls, show, pause, resume.",
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    for command in (
        commands_triggers.ls,
        commands_triggers.show,
        commands_triggers.create,
        commands_triggers.update,
        commands_triggers.delete,
        commands_triggers.pause,
        commands_triggers.resume,
    ):
        app.command()(command)
    return app


def _keys() -> typer.Typer:
    app = typer.Typer(
        help="Who may use the server: `roost keys create NAME --role developer`, then ls, revoke.",
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    for command in (commands_keys.create, commands_keys.ls, commands_keys.revoke):
        app.command()(command)
    return app


def _labels() -> typer.Typer:
    app = typer.Typer(
        help="What is known of where data came from: `roost labels ls`, then clear.",
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    for command in (commands_labels.ls, commands_labels.clear):
        app.command()(command)
    return app


def _secrets() -> typer.Typer:
    app = typer.Typer(
        help="Keys that rooms use and never see: `roost secrets put NAME --host api.example.com`, then ls, rm.",
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    for command in (commands_secrets.put, commands_secrets.ls, commands_secrets.rm):
        app.command()(command)
    return app


def _objects() -> typer.Typer:
    app = typer.Typer(
        help="The object store: `roost objects put FILE BUCKET/KEY`, then ls, get, rm.",
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    for command in (
        commands_objects.buckets,
        commands_objects.ls,
        commands_objects.put,
        commands_objects.get,
        commands_objects.rm,
    ):
        app.command()(command)
    return app


def _sandbox() -> typer.Typer:
    app = typer.Typer(
        help="Computers for as long as somebody wants them: `roost sandbox create`, then exec, run, shell, cp.",
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    for command in (
        commands_sandbox.create,
        commands_sandbox.ls,
        commands_sandbox.info,
        commands_sandbox_use.cp,
        commands_sandbox.logs,
        commands_sandbox.kill,
        commands_sandbox.pause,
        commands_sandbox.resume,
        commands_sandbox.timeout,
        commands_sandbox.snapshot,
        commands_sandbox.snapshots,
        commands_sandbox.fork,
        commands_sandbox.checkpoint,
        commands_sandbox.rollback,
        commands_sandbox.tree,
    ):
        app.command()(command)
    app.command("connect")(commands_sandbox.resume)
    app.command("run")(commands_sandbox_use.run_code)
    app.command("exec", context_settings=_COMMAND)(commands_sandbox_use.execute)
    app.command("shell", context_settings=_COMMAND)(commands_sandbox_use.shell)
    return app


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; ends with SystemExit: 0, 1 failed, 2 usage, 3 no server, 4 the function's fault;
    that of the command for `sandbox exec` and `shell`, 128 and the signal's number for what a signal ended."""
    try:
        build()(args=list(sys.argv[1:] if arguments is None else arguments))
    except CliError as error:
        typer.echo(f"Error: {clean(str(error))}", err=True)
        if isinstance(error, FunctionFault):
            for line in error.stack:
                typer.echo(clean(line).rstrip("\n"), err=True)
        sys.exit(error.exit_code)
    except Interrupted as error:
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # The reader went away, as `head` does; closing here keeps the interpreter from complaining at its end.
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:
        # A full disk, a cache that can't be written: what no command can do anything about.
        where = f" ({error.filename})" if error.filename else ""
        typer.echo(f"Error: {clean(str(error.strerror or error))}{clean(where)}.", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
