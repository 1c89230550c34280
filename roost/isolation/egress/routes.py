"""What a room may ask of the package proxy. Pure: a request target in, one of a closed set of routes or nothing out.

Targets are matched as they came, before any decoding, so that nothing can be hidden by encoding it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import quote, unquote

#: Where the guest's forwarder listens in the room.
ROOM_ORIGIN = "http://127.0.0.1:3128"
METADATA_SUFFIX = ".metadata"

_PROJECT = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,198}[A-Za-z0-9])?"
_FILE = r"[A-Za-z0-9](?:[A-Za-z0-9._+!~-]|%2[Bb]|%21){0,250}"
_NPM_PART = r"[A-Za-z0-9~][A-Za-z0-9._~-]{0,213}"
_NPM_NAME = rf"(?:@{_NPM_PART}(?:/|%2[Ff]))?{_NPM_PART}"
_SIMPLE = re.compile(rf"/pypi/simple/({_PROJECT})/?")
_PROJECT_FILE = re.compile(rf"/pypi/files/({_PROJECT})/({_FILE})")
_PACKAGE = re.compile(rf"/npm/({_NPM_NAME})")
_PACKAGE_FILE = re.compile(rf"/npm/({_NPM_NAME})/-/({_FILE}\.tgz)")


@dataclass(frozen=True, kw_only=True)
class ProjectPage:
    """The files of a PyPI project, by its normalised name (PEP 503)."""

    project: str


@dataclass(frozen=True, kw_only=True)
class ProjectFile:
    """A file of a PyPI project, or with `metadata` the metadata that the index keeps beside it (PEP 658)."""

    project: str
    filename: str
    metadata: bool = False


@dataclass(frozen=True, kw_only=True)
class Package:
    """The versions of an npm package; the name may have a scope."""

    name: str


@dataclass(frozen=True, kw_only=True)
class PackageFile:
    """A tarball of an npm package."""

    name: str
    filename: str


Route = ProjectPage | ProjectFile | Package | PackageFile


def parse_route(target: str) -> Route | None:
    """The route of an undecoded request path without its query, or None if it is none."""
    if found := _SIMPLE.fullmatch(target):
        return ProjectPage(project=normalise(found[1]))
    if found := _PROJECT_FILE.fullmatch(target):
        filename = unquote(found[2])
        stem = filename.removesuffix(METADATA_SUFFIX)
        return ProjectFile(project=normalise(found[1]), filename=stem, metadata=stem != filename)
    if found := _PACKAGE_FILE.fullmatch(target):
        return PackageFile(name=unquote(found[1]), filename=unquote(found[2]))
    if found := _PACKAGE.fullmatch(target):
        return Package(name=unquote(found[1]))
    return None


def index_of(route: Route) -> str:
    """The index that a route belongs to, as a function's `packages` names it."""
    return "pypi" if isinstance(route, ProjectPage | ProjectFile) else "npm"


def normalise(project: str) -> str:
    """A project's normalised name (PEP 503)."""
    return re.sub(r"[-_.]+", "-", project).lower()


def file_path(project: str, filename: str) -> str | None:
    """Where the proxy offers a file of a project, or None if its name could not be asked for."""
    path = f"/pypi/files/{project}/{quote(filename, safe='+!~')}"
    return path if _PROJECT_FILE.fullmatch(path) else None


def tarball_url(package: str, filename: str) -> str | None:
    """The address under which the proxy offers a tarball, or None if its name could not be asked for."""
    path = f"/npm/{package}/-/{quote(filename, safe='+!~')}"
    return ROOM_ORIGIN + path if _PACKAGE_FILE.fullmatch(path) else None


def room_environment(packages: tuple[str, ...]) -> dict[str, str]:
    """What makes pip, uv and npm in a room use the proxy for the indexes named in `packages` ("pypi", "npm").

    Waits are long because a file's first byte comes after the host has fetched and verified all of it.
    """
    environment: dict[str, str] = {}
    if "pypi" in packages:
        environment |= {
            "PIP_INDEX_URL": f"{ROOM_ORIGIN}/pypi/simple/",
            "PIP_TRUSTED_HOST": "127.0.0.1",
            "PIP_DEFAULT_TIMEOUT": "300",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_ROOT_USER_ACTION": "ignore",
            "UV_INDEX_URL": f"{ROOM_ORIGIN}/pypi/simple/",
            "UV_HTTP_TIMEOUT": "300",
        }
    if "npm" in packages:
        environment |= {
            "npm_config_registry": f"{ROOM_ORIGIN}/npm/",
            "npm_config_audit": "false",
            "npm_config_fund": "false",
            "npm_config_update_notifier": "false",
        }
    return environment
