"""`roost objects`: the server's object store."""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, BinaryIO
from urllib.parse import quote

import typer

from roost.sdk import tables
from roost.sdk.client import Client, check
from roost.sdk.commands_functions import connect
from roost.sdk.commands_watch import AsJson, console
from roost.sdk.errors import Failed, UsageError
from roost.sdk.terminal import clean

API = "/roost/objects"
_CHUNK = 256 << 10
_SILENCE_S = 120.0

Where = Annotated[str, typer.Argument(metavar="BUCKET/KEY", help="The object.")]


def buckets(as_json: AsJson = False) -> None:
    """List buckets."""
    with connect() as client:
        found = client.get_json(API).get("buckets") or []
    typer.echo(json.dumps(found) if as_json else "\n".join(clean(str(name)) for name in found))


def ls(
    where: Annotated[str, typer.Argument(metavar="BUCKET[/PREFIX]", help="Whose objects.")], as_json: AsJson = False
) -> None:
    """List a bucket's objects."""
    bucket, _, prefix = where.partition("/")
    with connect() as client:
        rows = list(_objects(client, bucket, prefix))
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
    else:
        console().print(tables.objects(rows))


def put(
    file: Annotated[str, typer.Argument(metavar="FILE", help="What to store; - is standard input.")],
    where: Annotated[
        str, typer.Argument(metavar="BUCKET/[KEY]", help="Where; behind a slash the file keeps its name.")
    ],
) -> None:
    """Store a file as an object. A bucket is made with its first object."""
    if where.endswith("/") and file != "-":
        where += Path(file).name
    path = _path(where)
    with connect() as client:
        try:
            source = sys.stdin.buffer if file == "-" else Path(file).open("rb")  # noqa: SIM115 (closed below)
        except OSError as error:
            raise Failed(f"{file} can't be read: {error.strerror}.") from error
        with (
            source,
            client.unsigned(
                "PUT", path, content=_pieces(source), headers=_bearer(client), silence_s=_SILENCE_S, judge=check
            ),
        ):
            typer.echo(clean(where))


def get(
    where: Where,
    file: Annotated[
        str | None, typer.Argument(metavar="[FILE]", help="Where to write it; - is standard output.")
    ] = None,
) -> None:
    """Fetch an object, into a file of its name unless another one is given."""
    path = _path(where)
    with (
        connect() as client,
        client.unsigned(
            "GET", path, headers=_bearer(client), streaming=True, silence_s=_SILENCE_S, judge=check
        ) as response,
    ):
        if file == "-":
            for piece in response.iter_raw(_CHUNK):
                sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
            return
        target = Path(file or where.rpartition("/")[2])
        if target.is_dir():
            target /= where.rpartition("/")[2]
        _save(target, response.iter_raw(_CHUNK))
    typer.echo(clean(str(target)))


def rm(wheres: Annotated[list[str], typer.Argument(metavar="BUCKET/KEY...", help="The objects.")]) -> None:
    """Remove objects."""
    paths = [_path(where) for where in wheres]
    with connect() as client:
        for where, path in zip(wheres, paths, strict=True):
            client.send("DELETE", path)
            typer.echo(clean(where))


def _path(where: str) -> str:
    bucket, _, key = where.partition("/")
    if not bucket or not key:
        raise UsageError(f"An object is named BUCKET/KEY, not {where!r}.")
    return f"{API}/{quote(bucket, safe='')}/{quote(key)}"


def _objects(client: Client, bucket: str, prefix: str) -> Iterator[Mapping[str, Any]]:
    after = ""
    while True:
        page = client.get_json(f"{API}/{quote(bucket, safe='')}", {"prefix": prefix, "after": after})
        yield from page.get("objects") or ()
        more = str(page.get("nextAfter") or "")
        if not more or more == after:
            return
        after = more


def _bearer(client: Client) -> dict[str, str]:
    """A body that is sent as it is read can't be signed."""
    keys = client.server.keys
    return {"authorization": f"Bearer {keys.secret}"} if keys else {}


def _pieces(source: BinaryIO) -> Iterator[bytes]:
    while piece := source.read(_CHUNK):
        yield piece


def _save(target: Path, pieces: Iterator[bytes]) -> None:
    """Whole or not at all."""
    passing = target.with_name(f".{target.name}-{secrets.token_hex(4)}")
    try:
        with passing.open("xb") as file:
            for piece in pieces:
                file.write(piece)
        os.replace(passing, target)  # noqa: PTH105
    except OSError as error:
        raise Failed(f"{target} can't be written: {error.strerror}.") from error
    finally:
        passing.unlink(missing_ok=True)
