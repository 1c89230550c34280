"""Commands that run the server, or look at this machine."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from roost.sdk.client import Server
from roost.sdk.daemon import Daemon, ServerOptions, address, data_directory
from roost.sdk.errors import UsageError
from roost.sdk.model_process import start_local_model

Host = Annotated[str | None, typer.Option("--host", help="Address to listen on [default: 127.0.0.1].")]
Port = Annotated[int | None, typer.Option("--port", help="Port to listen on [default: 8700].")]
DataDir = Annotated[
    Path | None, typer.Option("--data-dir", help="Where everything is kept [default: ~/.local/share/roost].")
]
DatabaseUrl = Annotated[
    str | None,
    typer.Option("--database", metavar="URL", help="PostgreSQL instead of SQLite (postgresql://user@host/name)."),
]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="Settings in TOML.", exists=True, dir_okay=False)]
Model = Annotated[
    str | None,
    typer.Option("--model", help="`local`: a real but very small model on this machine, for agents without a key."),
]


def _options(
    *,
    host: str | None,
    port: int | None,
    data_dir: Path | None,
    config: Path | None,
    model: str | None,
    database: str | None,
) -> ServerOptions:
    if model not in {None, "local"}:
        raise UsageError(
            "--model takes `local`; for any other model set OPENAI_BASE_URL, OPENAI_API_KEY, OPENAI_MODEL."
        )
    return ServerOptions(
        host=host,
        port=port,
        data_dir=data_dir.absolute() if data_dir else None,
        config=config.absolute() if config else None,
        model=model,
        database=database,
    )


def _become(module: str, arguments: list[str]) -> None:
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])  # noqa: S606 - no shell is wanted


def serve(
    *,
    host: Host = None,
    port: Port = None,
    data_dir: DataDir = None,
    config: ConfigFile = None,
    model: Model = None,
    database: DatabaseUrl = None,
) -> None:
    """Run the server in the foreground."""
    options = _options(host=host, port=port, data_dir=data_dir, config=config, model=model, database=database)
    if model:
        os.environ.update(start_local_model())
    # Ctrl-C while Python still imports the server would print a traceback; the server's main unblocks it.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    _become("roost.server", options.arguments())


def up(
    *,
    host: Host = None,
    port: Port = None,
    data_dir: DataDir = None,
    config: ConfigFile = None,
    model: Model = None,
    database: DatabaseUrl = None,
) -> None:
    """Start the server in the background, unless it runs already."""
    url, told = address(host, port, config, os.environ)
    # The server runs in another working directory: what is relative in the file is meant from here.
    kept_in = data_directory(data_dir, config, os.environ)
    options = _options(host=host, port=told, data_dir=kept_in, config=config, model=model, database=database)
    daemon = Daemon(kept_in, url)
    if daemon.healthy():
        typer.echo(f"Roost is running already at {daemon.url}.")
        return
    pid = daemon.start(options)
    usual = kept_in == data_directory(None, None, os.environ)
    stop = "roost down" if usual else f"roost down --data-dir {kept_in}"
    typer.echo(f"Roost is running at {daemon.url} (pid {pid}); log: {daemon.log}; `{stop}` stops it.")
    if url != Server.from_environment(os.environ).url:
        typer.echo(f"Other commands find it with: export ROOST_URL={url}")


def down(data_dir: DataDir = None) -> None:
    """Stop the server that `roost up` started."""
    daemon = Daemon(data_directory(data_dir, None, os.environ), "")
    typer.echo("Roost has stopped." if daemon.stop() else f"No server of {daemon.log.parent} is running.")


def doctor(context: typer.Context) -> None:
    """Say what this machine can do, and what is missing with the command that mends it (--json for programs)."""
    _become("roost.isolation.doctor", context.args)


def audit(context: typer.Context) -> None:
    """Read what was done on this server, and verify that nobody changed it: show, verify, head."""
    _become("roost.telemetry.audit", context.args)


def template(context: typer.Context) -> None:
    """Make root file systems for rooms: build, list, remove (`roost template build --help`)."""
    _become("roost.isolation.templates", context.args)
