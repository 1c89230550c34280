"""Buckets behind an S3 address, through `obstore` (the extra `objects`)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from types import TracebackType
from typing import Any

from obstore.exceptions import BaseError, NotFoundError, PermissionDeniedError, UnauthenticatedError
from obstore.store import S3Store as Bucket

from roost.model.errors import InvalidArgument, NotFound, Unavailable
from roost.model.objects import ObjectInfo, check_bucket, check_key
from roost.objects.ports import CHUNK, PAGE, Hint, Watch

#: Requests for single objects at once.
_AT_ONCE = 16
#: Buckets whose connections are kept.
_MOST_BUCKETS = 256
_RETRIES: Any = {"max_retries": 3, "retry_timeout": timedelta(seconds=30)}


class S3:
    """Implements `ObjectStore`. Without a key, obstore finds one as every AWS client does."""

    exact = True

    def __init__(self, *, endpoint: str, region: str, access_key_id: str = "", access_key_secret: str = "") -> None:
        self._settings: dict[str, Any] = {"region": region, "virtual_hosted_style_request": not endpoint}
        if endpoint:
            self._settings["endpoint"] = endpoint
        if access_key_id:
            self._settings |= {"access_key_id": access_key_id, "secret_access_key": access_key_secret}
        self._client: Any = {
            "timeout": "300s",
            "connect_timeout": "5s",
            "allow_http": endpoint.startswith("http://"),
        }
        self._buckets: dict[str, Bucket] = {}

    async def prepare(self) -> None:
        """Nothing: a store that is down keeps no server from starting."""

    async def buckets(self) -> list[str]:
        raise InvalidArgument("The buckets of an S3 store are listed by its own tools.", code="NotImplemented")

    async def put(self, bucket: str, key: str, pieces: AsyncIterable[bytes]) -> ObjectInfo:
        check_key(key)
        with _explained(bucket, key):
            store = self._of(bucket)
            await store.put_async(key, pieces)
            return _info(await store.head_async(key))

    async def get(self, bucket: str, key: str) -> tuple[ObjectInfo, AsyncIterator[bytes]]:
        check_key(key)
        with _explained(bucket, key):
            found = await self._of(bucket).get_async(key)

        async def pieces() -> AsyncIterator[bytes]:
            with _explained(bucket, key):
                async for piece in found.stream(min_chunk_size=CHUNK):
                    yield bytes(piece)

        return _info(found.meta), pieces()

    async def remove(self, bucket: str, key: str) -> None:
        check_key(key)
        with contextlib.suppress(NotFound), _explained(bucket, key):
            await self._of(bucket).delete_async(key)

    async def list(self, bucket: str, prefix: str = "", after: str = "") -> AsyncGenerator[Sequence[ObjectInfo]]:
        folder = prefix.rpartition("/")[0]  # the library asks by whole parts of a key
        if prefix and prefix > after:
            after = _just_before(prefix)
        with _explained(bucket, ""):
            pages = self._of(bucket).list(folder or None, offset=after or None, chunk_size=PAGE)
            async for page in pages:
                yield [_info(meta) for meta in page if meta["path"].startswith(prefix)]
                if page[-1]["path"] > prefix and not page[-1]["path"].startswith(prefix):
                    return

    async def heads(self, bucket: str, keys: Collection[str]) -> Mapping[str, ObjectInfo]:
        limit = asyncio.Semaphore(_AT_ONCE)
        store = self._of(bucket)

        async def head(key: str) -> ObjectInfo | None:
            async with limit:
                try:
                    with _explained(bucket, key):
                        return _info(await store.head_async(key))
                except NotFound:
                    return None

        found = await asyncio.gather(*(head(key) for key in keys))
        return {info.key: info for info in found if info is not None}

    def watch(self, bucket: str, prefix: str, interval_s: float) -> AbstractAsyncContextManager[Watch]:
        check_bucket(bucket)
        return _Interval(interval_s)

    def _of(self, bucket: str) -> Bucket:
        store = self._buckets.get(check_bucket(bucket))
        if store is None:
            if len(self._buckets) >= _MOST_BUCKETS:
                self._buckets.clear()
            store = Bucket(bucket, client_options=self._client, retry_config=_RETRIES, **self._settings)
            self._buckets[bucket] = store
        return store


class _Interval:
    """A `Watch` that knows nothing: all is looked at again and again."""

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._looked = 0.0

    async def __aenter__(self) -> _Interval:
        self._looked = asyncio.get_running_loop().time()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    async def next(self, timeout_s: float) -> Hint:
        loop = asyncio.get_running_loop()
        left = self._looked + self._interval_s - loop.time()
        await asyncio.sleep(max(0.0, min(timeout_s, left)))
        if timeout_s < left:
            return Hint()
        self._looked = loop.time()
        return Hint(anywhere=True)


def _just_before(prefix: str) -> str:
    """A key that comes before all with this prefix, and behind most others that do. The listing leaves it out."""
    last = ord(prefix[-1])
    return prefix[:-1] + (chr(last - 1) if 0x21 < last < 0x7F else "")


def _info(meta: Any) -> ObjectInfo:
    """OSS and S3 say when an object was written to the second or better: that belongs to what is compared."""
    etag = (meta["e_tag"] or "").strip('"')
    modified = meta["last_modified"].timestamp()
    stamp = f"{etag}@{modified:.3f}"
    return ObjectInfo(
        key=meta["path"],
        size=meta["size"],
        etag=etag.upper(),
        modified=modified,
        appeared=modified,
        stamp=stamp,
        birth="",
    )


@contextlib.contextmanager
def _explained(bucket: str, key: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise InvalidArgument(f"key: the client of S3 can't ask for {key[:80]!r}: {error}") from error
    except (NotFoundError, FileNotFoundError) as error:
        if key:
            raise NotFound(f"Bucket {bucket} has no object {key[:200]!r}.", code="NoSuchKey") from error
        raise NotFound(f"There is no bucket {bucket}.", code="NoSuchBucket") from error
    except BaseError as error:
        # A listing that fails has no class of its own.
        if isinstance(error, PermissionDeniedError | UnauthenticatedError) or "403 Forbidden" in str(error):
            raise Unavailable(f"The object store refuses the key of this server at bucket {bucket}.") from error
        if "NoSuchBucket" in str(error):
            raise NotFound(f"There is no bucket {bucket}.", code="NoSuchBucket") from error
        said = str(error).partition("\n")[0][:300]
        raise Unavailable(f"The object store failed at bucket {bucket}: {said}") from error
