"""Which object store a server has."""

from __future__ import annotations

import importlib
from urllib.parse import parse_qs, urlsplit

from roost.config import Config, ConfigError
from roost.objects.local import LocalStore
from roost.objects.ports import ObjectStore

_SETTINGS = frozenset({"endpoint", "region"})
_DEFAULT_REGION = "us-east-1"


def open_store(config: Config) -> ObjectStore:
    """A directory of the data directory, or what `object_store` names. Raises ConfigError."""
    if not config.object_store:
        return LocalStore(config.data_dir / "objects")
    endpoint, region = parse_address(config.object_store)
    try:
        s3 = importlib.import_module("roost.objects.s3")  # 15 ms and 6 MB that only such a server pays for
    except ImportError as error:
        raise ConfigError(
            "'object_store' names an S3 store, which needs the extra 'objects': pip install 'roost[objects]'."
        ) from error
    store: ObjectStore = s3.S3(
        endpoint=endpoint,
        region=region,
        access_key_id=config.object_store_key_id,
        access_key_secret=config.object_store_key_secret,
    )
    return store


def parse_address(address: str) -> tuple[str, str]:
    """(endpoint, region) of `s3://?endpoint=...&region=...`. Raises ConfigError."""
    where = "'object_store' is like s3://?endpoint=https://host:port&region=us-east-1"
    parts = urlsplit(address)
    if parts.scheme != "s3":
        raise ConfigError(f"{where}, not {address[:80]!r}; without it objects are kept in the data directory.")
    if parts.netloc or parts.path.strip("/"):
        raise ConfigError(f"{where}: it names no bucket (triggers do) and no key (object_store_key_id does).")
    given = parse_qs(parts.query, keep_blank_values=True)
    if unknown := set(given) - _SETTINGS:
        raise ConfigError(f"{where}; it has no {', '.join(sorted(unknown))}.")
    endpoint = given.get("endpoint", [""])[-1].rstrip("/")
    if endpoint and urlsplit(endpoint).scheme not in {"http", "https"}:
        raise ConfigError(f"{where}: the endpoint begins with http:// or https://.")
    return endpoint, given.get("region", [_DEFAULT_REGION])[-1]
