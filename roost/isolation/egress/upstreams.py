"""The package indexes that this host is configured for, as pip and npm on it would use them."""

from __future__ import annotations

import configparser
import os
import re
import ssl
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

import certifi

from roost.model.errors import InvalidArgument

_PYPI = "https://pypi.org/simple/"
_NPM = "https://registry.npmjs.org/"
#: Hosts that serve the files of a public index under another name than the index's own.
_FILE_HOSTS = {"pypi.org": "files.pythonhosted.org", "test.pypi.org": "test-files.pythonhosted.org"}


@dataclass(frozen=True, kw_only=True)
class Upstream:
    """One index. Credentials go to its own origin alone; nothing but its own host and `file_hosts` is ever called."""

    url: str  # ends with a slash
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    auth: tuple[str, str] | None = field(default=None, repr=False)
    file_hosts: frozenset[str] = frozenset()

    def allows(self, url: str) -> bool:
        """Whether a file may be fetched from this address."""
        try:
            target = urlsplit(url)
            if target.username is not None or target.hostname is None:
                return False
            if _origin(url) == _origin(self.url):
                return True
            return target.scheme == "https" and target.port in (None, 443) and target.hostname in self.file_hosts
        except ValueError:
            # A port that is no number.
            return False

    def is_own(self, url: str) -> bool:
        """Whether credentials belong there."""
        return _origin(url) == _origin(self.url)


@dataclass(frozen=True, kw_only=True)
class Upstreams:
    """Both indexes, and certificate authorities that the host's configuration names besides the system's."""

    pypi: Upstream
    npm: Upstream
    authorities: tuple[Path, ...] = ()

    def trust(self) -> ssl.SSLContext:
        """What certificates of indexes are checked with."""
        context = ssl.create_default_context()
        context.load_verify_locations(certifi.where())
        for authority in self.authorities:
            if authority.is_dir():
                context.load_verify_locations(capath=authority)
            elif authority.is_file():
                context.load_verify_locations(authority)
        return context


def upstream(url: str, *, token: str = "", basic: str = "", file_hosts: frozenset[str] = frozenset()) -> Upstream:
    """An index by its address, whose user and password are taken out of it.

    `token` is a bearer token; `basic` is base64 of user and password, as npm keeps them.
    Raises InvalidArgument if it is no http(s) URL.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        shown = urlunsplit((parts.scheme, parts.hostname or "", parts.path, "", ""))
        raise InvalidArgument(f"The package index {shown!r} is not an http or https address.")
    place = parts.netloc.rpartition("@")[2]
    auth = (unquote(parts.username), unquote(parts.password or "")) if parts.username else None
    known = _FILE_HOSTS.get(parts.hostname)
    return Upstream(
        url=urlunsplit((parts.scheme, place, parts.path.rstrip("/") + "/", "", "")),
        auth=auth,
        headers={"authorization": f"Bearer {token}" if token else f"Basic {basic}"} if token or basic else {},
        file_hosts=file_hosts | ({known} if known else frozenset()),
    )


def read_upstreams(environment: Mapping[str, str], *, root: Path = Path("/"), prefix: Path | None = None) -> Upstreams:
    """The indexes of this host: from the environment, else pip's and npm's configuration files, else the public ones.

    `root` and `prefix` (of the Python installation) are where configuration files are looked for.
    """
    pip = _pip_settings(environment, root, Path(sys.prefix) if prefix is None else prefix)
    npm = _npm_settings(environment, root)
    registry = npm.get("registry", _NPM)
    place = urlsplit(registry)._replace(scheme="").geturl().rstrip("/")
    named = (pip.get("cert"), npm.get("cafile"), environment.get("REQUESTS_CA_BUNDLE"))
    return Upstreams(
        pypi=upstream(pip.get("index-url", _PYPI)),
        npm=upstream(registry, token=npm.get(f"{place}/:_authToken", ""), basic=npm.get(f"{place}/:_auth", "")),
        authorities=tuple(Path(path) for path in named if path),
    )


def _pip_settings(environment: Mapping[str, str], root: Path, prefix: Path) -> dict[str, str]:
    """pip's settings, later files and then the environment overruling earlier ones, as pip does it."""
    settings: dict[str, str] = {}
    for file in _pip_files(environment, root, prefix):
        parser = configparser.RawConfigParser()
        try:
            parser.read(file, encoding="utf-8")
        except (configparser.Error, UnicodeDecodeError):
            # pip itself would refuse to run with it; the indexes of the other files are the better guess.
            continue
        for section in ("global", "install"):
            if parser.has_section(section):
                settings |= {key.replace("_", "-"): value.strip() for key, value in parser.items(section)}
    for key in ("index-url", "cert"):
        if value := environment.get("PIP_" + key.upper().replace("-", "_")):
            settings[key] = value
    return {key: value for key, value in settings.items() if value}


def _pip_files(environment: Mapping[str, str], root: Path, prefix: Path) -> Iterator[Path]:
    own = environment.get("PIP_CONFIG_FILE")
    if own == os.devnull:
        return
    for folder in reversed(environment.get("XDG_CONFIG_DIRS", "/etc/xdg").split(":")):
        yield root / folder.lstrip("/") / "pip/pip.conf"
    yield root / "etc/pip.conf"
    if home := environment.get("HOME"):
        yield Path(home) / ".pip/pip.conf"
        yield Path(environment.get("XDG_CONFIG_HOME") or f"{home}/.config") / "pip/pip.conf"
    yield prefix / "pip.conf"
    if own:
        yield Path(own)


def _npm_settings(environment: Mapping[str, str], root: Path) -> dict[str, str]:
    """npm's settings; `${NAME}` in a value stands for a variable of the environment."""
    settings: dict[str, str] = {}
    files = [root / "etc/npmrc", root / "usr/etc/npmrc", root / "usr/local/etc/npmrc"]
    if home := environment.get("HOME"):
        files.append(Path(environment.get("NPM_CONFIG_USERCONFIG") or f"{home}/.npmrc"))
    for file in files:
        try:
            lines = file.read_text(errors="replace").splitlines()
        except OSError:
            continue
        for line in lines:
            key, equals, value = line.partition("=")
            if equals and not line.lstrip().startswith(("#", ";")):
                expanded = re.sub(r"\$\{([^}]+)\}", lambda found: environment.get(found[1], ""), value.strip())
                settings[key.strip()] = expanded.strip("\"'")
    for name, value in environment.items():
        lower = name.lower()
        if lower in ("npm_config_registry", "npm_config_cafile") and value:
            settings[lower.removeprefix("npm_config_")] = value
    return settings


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)
