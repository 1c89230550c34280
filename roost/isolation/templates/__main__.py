"""`python -m roost.isolation.templates`: build, list and remove templates; `roost template` runs it.

Exit codes: 0 done, 1 a mistake of the caller, 2 this machine can't do it now.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from roost.config import default_data_dir
from roost.isolation.templates.catalog import BuildOptions, Templates
from roost.isolation.templates.data import build_data
from roost.isolation.templates.debian import VARIANTS
from roost.model.errors import RoostError

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Root file systems that rooms are made from.")
DataDir = Annotated[Path | None, typer.Option("--data-dir", help="The server's data directory.")]


def _templates(data_dir: Path | None) -> Templates:
    return Templates(data_dir or default_data_dir(os.environ))


@app.command()
def build(  # noqa: PLR0917 - a command's options are its parameters
    source: Annotated[str, typer.Argument(help="A directory, an OCI image layout or a Debian suite.")],
    name: Annotated[str, typer.Argument(help="The template's name.")],
    data_dir: DataDir = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace a template of this name.")] = False,
    variant: Annotated[str, typer.Option(help=f"For a suite: {', '.join(VARIANTS)}.")] = "minbase",
    package: Annotated[list[str] | None, typer.Option(help="For a suite: a package to add; may be repeated.")] = None,
) -> None:
    """Build a template."""
    options = BuildOptions(replace=replace, variant=variant, packages=tuple(package or ()))
    info = _templates(data_dir).build(source, name, options, lambda line: print(line, file=sys.stderr))
    print(f"{info.name}: {info.entries} entries, {info.bytes / (1 << 20):.0f} MiB, from {info.kind} {info.source}")


@app.command("list")
def list_templates(data_dir: DataDir = None) -> None:
    """Print the templates."""
    for info in _templates(data_dir).list():
        print(f"{info.name:24} {info.kind:10} {info.bytes / (1 << 20):8.0f} MiB  {info.source}")


@app.command()
def remove(name: Annotated[str, typer.Argument(help="The template's name.")], data_dir: DataDir = None) -> None:
    """Remove a template that no server uses."""
    _templates(data_dir).remove(name)


@app.command()
def packages(data_dir: DataDir = None) -> None:
    """Install what code contexts of sandboxes have at hand (numpy, pandas, matplotlib...), if it is not there yet."""
    print(build_data(data_dir or default_data_dir(os.environ)))


def main() -> None:
    """Run a command and turn an error into one sentence and an exit code."""
    try:
        app(prog_name="roost template")
    except RoostError as error:
        print(f"roost template: {error.message}", file=sys.stderr)
        sys.exit(1 if error.status < 500 else 2)


if __name__ == "__main__":
    main()
