"""A directory becomes a function: packed, then created or updated over the functions API."""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from roost.sdk import bytecode, manifest, package, refusals, vendor
from roost.sdk.client import API, Client, function_path
from roost.sdk.errors import Failed, UsageError
from roost.sdk.triggers import put_triggers
from roost.sdk.uploads import Uploads


@dataclass(frozen=True, kw_only=True)
class Overrides:
    """What the command line says instead of roost.toml."""

    name: str | None = None
    affinity: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Deployed:
    name: str
    created: bool  # False: updated
    package_bytes: int
    url: str
    chat: bool  # sessions by header: `roost chat` can talk to it, if it has a /chat


class Deployer:
    """Deploys directories to one server. `say` is told each step."""

    def __init__(
        self, client: Client, environment: Mapping[str, str], say: Callable[[str], None] = lambda line: None
    ) -> None:
        self._client = client
        self._environment = environment
        self._say = say
        self._cache = vendor.cache_directory(environment)
        self._uploads = Uploads(self._cache / "uploads")

    def deploy(self, directory: Path, overrides: Overrides) -> Deployed:
        """Deploy one directory. Raises UsageError for what is wrong in it, Failed for a step that failed."""
        parsed = merge(manifest.load(directory), overrides)
        name = parsed.get("name")
        if name is None:
            raise UsageError(f"{directory / manifest.FILE} has no `name`; add one or pass --name.")
        try:
            function = manifest.to_function(parsed, self._environment)
            triggers = manifest.to_triggers(parsed, self._environment)
        except UsageError as error:
            raise UsageError(f"{directory / manifest.FILE}: {error}") from error
        python = self._python()
        vendored = self._vendored(directory, python)
        members = package.collect(directory, vendored)
        digest = f"{package.digest(members)} {python}"
        present = self._client.function(name)
        note = self._uploads.note(self._client.server.url, name)
        if present is None or not note.says(digest, str(present.get("codeChecksum", ""))):
            self._say("packing")
            content = _pack(members, vendored, python)
            self._say(f"uploading {len(content) / 1e6:.1f} MB")
            function["code"] = {"zipFile": base64.b64encode(content).decode()}
        try:
            reply = self._put(name, function, new=present is None)
            note.write(digest, str(reply.get("codeChecksum", "")))
            self._scale(name, parsed)
            if (config := manifest.to_async_config(parsed)) is not None:
                self._client.send_json("PUT", function_path(name, "/async-invoke-config"), config)
            put_triggers(self._client, name, triggers)
        except Failed as error:
            raise _refused(error, directory) from error
        return Deployed(
            name=name,
            created=present is None,
            package_bytes=int(reply.get("codeSize") or 0),
            url=f"{self._client.server.url}/{name}/",
            chat=function.get("sessionAffinity") == "HEADER_FIELD",
        )

    def _vendored(self, directory: Path, python: str) -> Path | None:
        if not (directory / vendor.FILE).is_file():
            return None
        self._say(f"installing {vendor.FILE}")
        cache = self._cache / "requirements"
        return vendor.vendor(directory, python, cache, lambda line: self._say(f"pip: {line[:90]}"))

    def _python(self) -> str:
        """Version of the rooms' interpreter, as "3.11"."""
        said = str(self._client.get_json("/roost/info").get("python", ""))
        parts = said.split(".")
        if len(parts) < 2 or not all(part.isdigit() for part in parts[:2]):
            raise Failed(f"The server does not say which Python its rooms have ({said!r}).")
        return ".".join(parts[:2])

    def _put(self, name: str, function: dict[str, Any], *, new: bool) -> dict[str, Any]:
        if new:
            return self._client.send_json("POST", f"{API}/functions", {"functionName": name, **function})
        # An update keeps what it is not told; null takes a field back to its default.
        return self._client.send_json("PUT", function_path(name), {**dict.fromkeys(manifest.MANAGED), **function})

    def _scale(self, name: str, parsed: Mapping[str, Any]) -> None:
        minimum = (parsed.get("scaling") or {}).get("min")
        if minimum is not None:
            self._client.send_json("PUT", function_path(name, "/scaling-config"), {"minInstances": minimum})


def _refused(error: Failed, directory: Path) -> Failed:
    """What the server refused, named as the user wrote it."""
    said = refusals.in_words_of_the_file(str(error))
    where = f"{directory / manifest.FILE}: " if said != str(error) else ""
    return Failed(f"{where}{said}", status=error.status, code=error.code)


def _pack(members: package.Members, vendored: Path | None, python: str) -> bytes:
    """The zip of `members`, with their bytecode where this interpreter can make that of the rooms."""
    with tempfile.TemporaryDirectory(prefix="roost-deploy-") as folder:
        compiled = bytecode.of_package(members, vendored, Path(folder)) if python == bytecode.OWN_PYTHON else {}
        whole = {**members, **compiled}
        return package.build(whole if package.size(whole) <= package.MAX_BYTES else members)


def merge(parsed: Mapping[str, Any], overrides: Overrides) -> dict[str, Any]:
    """`parsed` with what the command line says instead, checked again. Raises UsageError."""
    merged = dict(parsed)
    if overrides.name is not None:
        merged["name"] = overrides.name
    if overrides.env:
        # The command line's values are taken as they are, the file's are expanded.
        literal = {key: value.replace("$", "$$") for key, value in overrides.env.items()}
        merged["env"] = {**(parsed.get("env") or {}), **literal}
    if overrides.affinity is not None:
        merged["session"] = {**(parsed.get("session") or {}), "affinity": overrides.affinity}
    manifest.validate(merged)
    return merged
