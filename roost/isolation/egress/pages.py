"""What package indexes answer, read as foreign input, and what a room gets of it. Pure.

A page is not passed on: its known fields are read, and a new page is written whose links lead to the proxy.
"""

from __future__ import annotations

import base64
import binascii
import html
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

from roost.isolation.egress.routes import METADATA_SUFFIX, file_path, tarball_url
from roost.model.errors import Unavailable

SIMPLE_JSON = "application/vnd.pypi.simple.v1+json"
SIMPLE_HTML = "application/vnd.pypi.simple.v1+html"
#: What is asked of an index: JSON, else HTML.
SIMPLE_ACCEPT = f"{SIMPLE_JSON}, {SIMPLE_HTML};q=0.2, text/html;q=0.1"
NPM_SHORT = "application/vnd.npm.install-v1+json"
_HEX = {"sha256": 64, "sha384": 96, "sha512": 128}
_MAX_FILES = 200_000


@dataclass(frozen=True, kw_only=True)
class Digest:
    """A digest that is fit to name content: sha256, sha384 or sha512, in hexadecimal."""

    algorithm: str
    value: str


@dataclass(frozen=True, kw_only=True)
class IndexFile:
    """A file of a project or package. Without a digest it can be passed on, but not kept for others."""

    filename: str
    url: str
    digest: Digest | None
    metadata: Digest | None = None
    requires_python: str | None = None
    yanked: str | bool = False
    size: int | None = None
    upload_time: str | None = None


@dataclass(frozen=True, kw_only=True)
class NpmDocument:
    """A package's document for a room, and the tarballs it names."""

    body: bytes
    files: Mapping[str, IndexFile] = field(repr=False)


def read_simple(content: bytes, content_type: str, url: str) -> tuple[IndexFile, ...]:
    """The files of a project page (PEP 503 or 691) that came from `url`. Raises Unavailable if it is none."""
    if content_type.partition(";")[0].strip().lower() in (SIMPLE_JSON, "application/json"):
        return tuple(_read_simple_json(_json_object(content), url))
    reader = _AnchorReader(url)
    reader.feed(content.decode("utf-8", errors="replace"))
    return tuple(reader.files)


def write_simple_json(project: str, files: tuple[IndexFile, ...]) -> bytes:
    """The page of PEP 691."""
    entries = []
    for file in files:
        if (path := file_path(project, file.filename)) is None:
            continue
        entry: dict[str, Any] = {
            "filename": file.filename,
            "url": path,
            "hashes": {file.digest.algorithm: file.digest.value} if file.digest else {},
            "yanked": file.yanked,
            "core-metadata": {file.metadata.algorithm: file.metadata.value} if file.metadata else False,
        }
        optional = {"requires-python": file.requires_python, "size": file.size, "upload-time": file.upload_time}
        entries.append(entry | {key: value for key, value in optional.items() if value is not None})
    return json.dumps({"meta": {"api-version": "1.0"}, "name": project, "files": entries}).encode()


def write_simple_html(project: str, files: tuple[IndexFile, ...]) -> bytes:
    """The page of PEP 503, with the attributes of PEP 592, 658 and 714."""
    lines = ["<!DOCTYPE html><html><head>", '<meta name="pypi:repository-version" content="1.0">', "</head><body>"]
    for file in files:
        if (path := file_path(project, file.filename)) is None:
            continue
        fragment = f"#{file.digest.algorithm}={file.digest.value}" if file.digest else ""
        attributes = [f'href="{html.escape(path + fragment)}"']
        if file.requires_python is not None:
            attributes.append(f'data-requires-python="{html.escape(file.requires_python)}"')
        if file.yanked is not False:
            attributes.append(f'data-yanked="{html.escape(file.yanked if isinstance(file.yanked, str) else "")}"')
        if file.metadata is not None:
            digest = f"{file.metadata.algorithm}={file.metadata.value}"
            attributes.append(f'data-core-metadata="{digest}" data-dist-info-metadata="{digest}"')
        lines.append(f"<a {' '.join(attributes)}>{html.escape(file.filename)}</a><br>")
    return "\n".join([*lines, "</body></html>"]).encode()


def read_npm(content: bytes, package: str, allowed: Callable[[str], bool]) -> NpmDocument:
    """A package's document with its tarballs' addresses rewritten.

    Versions whose tarball `allowed` refuses are left out. Raises Unavailable if it is no document of this package.
    """
    document = _json_object(content)
    versions = document.get("versions")
    if document.get("name") != package or not isinstance(versions, dict):
        raise Unavailable(f"The registry's answer is not the document of {package}.")
    files: dict[str, IndexFile] = {}
    kept = {}
    for number, version in versions.items():
        dist = version.get("dist") if isinstance(version, dict) else None
        tarball = dist.get("tarball") if isinstance(dist, dict) else None
        if not isinstance(dist, dict) or not isinstance(tarball, str) or not allowed(tarball):
            continue
        filename = _last_component(tarball)
        if (url := tarball_url(package, filename)) is not None:
            files[filename] = IndexFile(filename=filename, url=tarball, digest=_read_integrity(dist.get("integrity")))
            kept[number] = {**version, "dist": {**dist, "tarball": url}}
    tags = document.get("dist-tags")
    if isinstance(tags, dict):
        document["dist-tags"] = {tag: number for tag, number in tags.items() if number in kept}
    return NpmDocument(body=json.dumps({**document, "versions": kept}).encode(), files=files)


def metadata_of(file: IndexFile) -> IndexFile:
    """The metadata beside a file, as a file of its own."""
    return IndexFile(filename=file.filename + METADATA_SUFFIX, url=file.url + METADATA_SUFFIX, digest=file.metadata)


def _read_simple_json(page: dict[str, Any], url: str) -> list[IndexFile]:
    listed = page.get("files")
    if not isinstance(listed, list):
        raise Unavailable("The index's answer is not a project page: it lists no files.")
    files = []
    for entry in listed[:_MAX_FILES]:
        if not isinstance(entry, dict) or not isinstance(entry.get("url"), str):
            continue
        link = urldefrag(urljoin(url, entry["url"])).url
        metadata = entry.get("core-metadata", entry.get("dist-info-metadata"))
        files.append(
            IndexFile(
                filename=_last_component(link),
                url=link,
                digest=_read_hashes(entry.get("hashes")),
                metadata=_read_hashes(metadata),
                requires_python=_text(entry.get("requires-python")),
                yanked=entry["yanked"] if isinstance(entry.get("yanked"), str | bool) else False,
                size=entry["size"] if isinstance(entry.get("size"), int) else None,
                upload_time=_text(entry.get("upload-time")),
            )
        )
    return files


class _AnchorReader(HTMLParser):
    """Collects the links of a project page."""

    def __init__(self, url: str) -> None:
        super().__init__(convert_charrefs=True)
        self.files: list[IndexFile] = []
        self._base = url

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = dict(attrs)
        href = told.get("href")
        if tag == "base" and href:
            self._base = urljoin(self._base, href)
        elif tag == "a" and href and len(self.files) < _MAX_FILES:
            link, fragment = urldefrag(urljoin(self._base, href))
            metadata = told.get("data-core-metadata", told.get("data-dist-info-metadata"))
            self.files.append(
                IndexFile(
                    filename=_last_component(link),
                    url=link,
                    digest=_read_fragment(fragment),
                    metadata=_read_fragment(metadata or ""),
                    requires_python=told.get("data-requires-python"),
                    yanked=(told["data-yanked"] or True) if "data-yanked" in told else False,
                )
            )


def _json_object(content: bytes) -> dict[str, Any]:
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Unavailable("The index's answer is not JSON.") from error
    if not isinstance(document, dict):
        raise Unavailable("The index's answer is not a JSON object.")
    return document


def _read_hashes(hashes: object) -> Digest | None:
    if isinstance(hashes, dict):
        for algorithm, length in _HEX.items():
            value = hashes.get(algorithm)
            if isinstance(value, str) and re.fullmatch(rf"[0-9a-fA-F]{{{length}}}", value):
                return Digest(algorithm=algorithm, value=value.lower())
    return None


def _read_fragment(fragment: str) -> Digest | None:
    algorithm, _, value = fragment.partition("=")
    return _read_hashes({algorithm: value})


def _read_integrity(integrity: object) -> Digest | None:
    """The strongest digest of a subresource integrity string."""
    digests = {}
    for part in integrity.split()[:8] if isinstance(integrity, str) else ():
        algorithm, _, value = part.partition("?")[0].partition("-")
        try:
            digests[algorithm] = base64.b64decode(value, validate=True).hex()
        except (binascii.Error, ValueError):
            continue
    return _read_hashes({"sha512": digests["sha512"]} if "sha512" in digests else digests)


def _last_component(url: str) -> str:
    return unquote(urlsplit(url).path.rpartition("/")[2])


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
