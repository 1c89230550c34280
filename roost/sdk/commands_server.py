"""Commands that run the server, or look at this machine."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from roost.sdk.client import Server
from roost.sdk.daemon import Daemon, ServerOptions, data_directory
from roost.sdk.errors import UsageError
from roost.sdk.model_process import start_local_model

Host = Annotated[str | None, typer.Option("--host", help="Address to listen on [default: 127.0.0.1].")]
Port = Annotated[int | None, typer.Option("--port", help="Port to listen on [default: 8700].")]
DataDir = Annotated[
    Path | None, typer.Option("--data-dir", help="Where everything is kept [default: ~/.local/share/roost].")
]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="Settings in TOML.", exists=True, dir_okay=False)]
Model = Annotated[
    str | None,
    typer.Option("--model", help="`local`: a real but very small model on this machine, for agents without a key."),
]


def _options(
    host: str | None, port: int | None, data_dir: Path | None, config: Path | None, model: str | None
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
    )


def _become(module: str, arguments: list[str]) -> None:
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])  # noqa: S606 - no shell is wanted


def serve(
    host: Host = None, port: Port = None, data_dir: DataDir = None, config: ConfigFile = None, model: Model = None
) -> None:
    """Run the server in the foreground."""
    options = _options(host, port, data_dir, config, model)
    if model:
        os.environ.update(start_local_model())
    _become("roost.server", options.arguments())


def up(
    host: Host = None, port: Port = None, data_dir: DataDir = None, config: ConfigFile = None, model: Model = None
) -> None:
    """Start the server in the background, unless it runs already."""
    options = _options(host, port, data_dir, config, model)
    daemon = _daemon(data_dir, host, port)
    if daemon.healthy():
        typer.echo(f"Roost is running already at {daemon.url}.")
        return
    pid = daemon.start(options)
    stop = f"roost down --data-dir {data_dir}" if data_dir else "roost down"
    typer.echo(f"Roost is running at {daemon.url} (pid {pid}); log: {daemon.log}; `{stop}` stops it.")


def down(data_dir: DataDir = None) -> None:
    """Stop the server that `roost up` started."""
    typer.echo("Roost has stopped." if _daemon(data_dir, None, None).stop() else "Roost is not running.")


def _daemon(data_dir: Path | None, host: str | None, port: int | None) -> Daemon:
    url = Server.from_environment(os.environ).url
    if host or port:
        reached = host if host not in {None, "0.0.0.0", "::"} else "127.0.0.1"  # noqa: S104 - compared, not bound
        url = f"http://{f'[{reached}]' if reached and ':' in reached else reached}:{port or 8700}"
    return Daemon(data_directory(data_dir, os.environ), url)


def doctor(context: typer.Context) -> None:
    """Say what this machine can do, and what is missing with the command that mends it (--json for programs)."""
    _become("roost.isolation.doctor", context.args)


def template(context: typer.Context) -> None:
    """Make root file systems for rooms: build, list, remove (`roost template build --help`)."""
    _become("roost.isolation.templates", context.args)
