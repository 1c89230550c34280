"""`python -m roost.telemetry.audit`: verify and read an audit log; `roost audit` runs it.

Exit codes: 0 done, 1 the log is not whole or a mistake of the caller, 2 it can't be read now.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections import deque
from pathlib import Path
from typing import Annotated, Any

import typer

from roost.config import default_data_dir
from roost.model.errors import InvalidArgument, NotFound, RoostError
from roost.telemetry.audit import folder as files
from roost.telemetry.audit.chain import Broken, decode, verify

app = typer.Typer(add_completion=False, no_args_is_help=True, help="What was done on this server, and by whom.")
DataDir = Annotated[Path | None, typer.Option("--data-dir", help="The server's data directory.")]
PublicKey = Annotated[Path | None, typer.Option("--public-key", help="A copy of key.pub that was kept elsewhere.")]
_NOTED = re.compile(r"([1-9][0-9]{0,17}):([0-9a-f]{64})")


def _folder(data_dir: Path | None) -> Path:
    folder = (data_dir or default_data_dir(os.environ)) / "audit"
    if not folder.is_dir():
        raise NotFound(f"There is no audit log at {folder}; --data-dir names the server's data directory.")
    return folder


@app.command("verify")
def verify_log(
    data_dir: DataDir = None,
    key: PublicKey = None,
    noted: Annotated[
        str | None, typer.Option("--noted", metavar="NUMBER:DIGEST", help="What `roost audit head` once printed.")
    ] = None,
) -> None:
    """Say whether the log is as it was written: nothing changed, removed, added or moved."""
    folder = _folder(data_dir)
    found = None if noted is None else _NOTED.fullmatch(noted)
    if noted is not None and found is None:
        raise InvalidArgument("--noted: NUMBER:DIGEST is expected, as `roost audit head` prints it.")
    public = files.public_key(key or folder / files.PUBLIC)
    wanted = None if found is None else (int(found[1]), found[2])
    while True:
        head = files.head_of(folder, public)
        try:
            result = verify(files.records(folder), head, noted=wanted)
            break
        except Broken:
            if files.head_of(folder, public) == head:  # else the server went on meanwhile, and removed old files
                raise
    print(f"Records {result.first} to {result.last} are as they were written; the head was signed {head.time}.")
    if result.unsigned:
        print(f"The last {result.unsigned} are not signed yet: the server was killed, or is writing.")


@app.command("head")
def print_head(data_dir: DataDir = None, key: PublicKey = None) -> None:
    """Print number and digest of the newest record, to be kept elsewhere: `verify --noted` proves that all up to it is
    still there, also against somebody who has the server's key."""
    folder = _folder(data_dir)
    head = files.head_of(folder, files.public_key(key or folder / files.PUBLIC))
    print(f"{head.last}:{head.digest}")


@app.command()
def show(
    data_dir: DataDir = None,
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="How many of the newest.")] = 50,
    action: Annotated[str, typer.Option("--action", help="Those of this action alone, as in file.write.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="The records as they are.")] = False,
) -> None:
    """Print the newest records."""
    kept: deque[tuple[bytes, dict[str, Any]]] = deque(maxlen=lines)
    for place, line in files.records(_folder(data_dir)):
        try:
            record = decode(line)
        except Broken as error:
            print(f"roost audit: {place}: {error.message}; see `roost audit verify`.", file=sys.stderr)
            continue
        if not action or record.get("action") == action:
            kept.append((line, record))
    for line, record in kept:
        if as_json:
            print(line.decode("ascii", "replace"))
            continue
        what = (record.get(name, "") for name in ("time", "outcome", "action", "account", "actor", "target"))
        print(*(_plain(text) for text in what), json.dumps(record.get("detail", {})))


def _plain(text: object) -> str:
    """On one line, and harmless to a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(text)) or "-"


def main() -> None:
    """Run a command and turn an error into one sentence and an exit code."""
    try:
        app(prog_name="roost audit")
    except Broken as error:
        print(f"roost audit: the log is not whole. {error.message}", file=sys.stderr)
        sys.exit(1)
    except RoostError as error:
        print(f"roost audit: {error.message}", file=sys.stderr)
        sys.exit(1 if error.status < 500 else 2)
    except OSError as error:
        print(f"roost audit: {error.filename} can't be read: {error.strerror}.", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
