"""`roost`: the one place where commands get their names, and where an error becomes a sentence and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.metadata import version as package_version

import typer

from roost.sdk import commands_functions, commands_server, commands_tasks, commands_watch
from roost.sdk.errors import CliError, FunctionFault
from roost.sdk.terminal import clean

_PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True}


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
    return app


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; ends with SystemExit: 0, 1 failed, 2 usage, 3 no server, 4 the function's fault."""
    try:
        build()(args=list(sys.argv[1:] if arguments is None else arguments))
    except CliError as error:
        typer.echo(f"Error: {clean(str(error))}", err=True)
        if isinstance(error, FunctionFault):
            for line in error.stack:
                typer.echo(clean(line).rstrip("\n"), err=True)
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
