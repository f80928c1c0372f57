"""All storages keep the one contract, on their own, with retries around them, and through a cache."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from range_server import RangeServer
from servers import BUCKET, ObjectStore
from storage.contract import Place, StorageContract

from shardload.storage import (
    CachedStorage,
    LocalStorage,
    RemoteStorage,
    RetryingStorage,
    RetryPolicy,
    Storage,
    StoredFile,
)
from shardload.storage.slots import MIN_LIMIT_BYTES

_numbers = itertools.count()


class Directory(Place):
    def __init__(self, path: Path) -> None:
        self.path = path

    def put(self, name: str, data: bytes) -> None:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_name("new").write_bytes(data)
        path.with_name("new").replace(path)

    def remove(self, name: str) -> None:
        (self.path / name).unlink()

    def storage(self, below: str = "") -> Storage:
        return LocalStorage(str(self.path / below))


class Memory(Place):
    """fsspec's own store in memory, by way of which any of its file systems is read."""

    def __init__(self) -> None:
        import fsspec

        self.files = fsspec.filesystem("memory")
        self.root = f"contract-{next(_numbers)}"

    def put(self, name: str, data: bytes) -> None:
        self.files.pipe_file(f"/{self.root}/{name}", data)

    def remove(self, name: str) -> None:
        self.files.rm_file(f"/{self.root}/{name}")

    def storage(self, below: str = "") -> Storage:
        return RemoteStorage(f"memory://{self.root}/{below}")


class Served(Directory):
    """A directory, read by plain HTTP."""

    def __init__(self, path: Path, url: str) -> None:
        super().__init__(path)
        self.url = url

    def storage(self, below: str = "") -> Storage:
        return RemoteStorage(f"{self.url}/{below}")


class Named(CachedStorage):
    """Takes a digest of its name for that of a file's content, so that every file of known length is cached."""

    def open(self, name: str, num_bytes: int | None = None, digest: bytes | None = None) -> StoredFile:
        return super().open(name, num_bytes, hashlib.sha256(name.encode()).digest())


class Cached(Directory):
    """A directory, read through a cache."""

    def __init__(self, path: Path, kind: type[CachedStorage]) -> None:
        super().__init__(path / "place")
        self.cache_dir, self.kind = str(path / "cache"), kind

    def storage(self, below: str = "") -> Storage:
        return self.kind(super().storage(below), self.cache_dir, MIN_LIMIT_BYTES)


class Bucket(Place):
    """Part of the bucket of a real server, read by S3 or by plain HTTP."""

    def __init__(self, store: ObjectStore, kind: str) -> None:
        self.store, self.kind = store, kind
        self.root = f"contract-{next(_numbers)}"

    def put(self, name: str, data: bytes) -> None:
        self.store.put(f"{self.root}/{name}", data)

    def remove(self, name: str) -> None:
        self.store.delete(f"{self.root}/{name}")

    def storage(self, below: str = "") -> Storage:
        if self.kind == "s3":
            return RemoteStorage(f"s3://{BUCKET}/{self.root}/{below}", self.store.s3_options)
        return RemoteStorage(f"{self.store.http_url}/{self.root}/{below}")


class Retried(Place):
    """Another place, read with retries."""

    def __init__(self, inner: Place) -> None:
        self.inner = inner
        self.put, self.remove = inner.put, inner.remove  # type: ignore[method-assign]

    def put(self, name: str, data: bytes) -> None: ...

    def remove(self, name: str) -> None: ...

    def storage(self, below: str = "") -> Storage:
        return RetryingStorage(self.inner.storage(below), RetryPolicy(first_wait_seconds=0.001))


@pytest.fixture(params=["alone", "retrying"])
def around(request: pytest.FixtureRequest) -> type[Retried] | None:
    return Retried if request.param == "retrying" else None


@pytest.fixture(params=["alone", pytest.param("retrying", marks=pytest.mark.slow)])
def around_far(request: pytest.FixtureRequest) -> type[Retried] | None:
    return Retried if request.param == "retrying" else None


class TestLocal(StorageContract):
    @pytest.fixture
    def place(self, tmp_path: Path, around: type[Retried] | None) -> Place:
        place = Directory(tmp_path / "place")
        return place if around is None else around(place)


class TestMemory(StorageContract):
    notices_replacement = False

    @pytest.fixture
    def place(self, around: type[Retried] | None) -> Place:
        return Memory() if around is None else around(Memory())


class TestCached(StorageContract):
    @pytest.fixture(params=[CachedStorage, Named])
    def place(self, tmp_path: Path, request: pytest.FixtureRequest) -> Place:
        return Cached(tmp_path, request.param)


class TestHttpOfOurOwn(StorageContract):
    """Where no object store can be installed this much of HTTP is tested."""

    lists = False

    @pytest.fixture
    def place(self, tmp_path: Path) -> Iterator[Place]:
        with RangeServer(tmp_path) as server:
            yield Served(tmp_path, server.url)


class TestHttp(StorageContract):
    lists = False

    @pytest.fixture
    def place(self, object_store: ObjectStore, around_far: type[Retried] | None) -> Place:
        place = Bucket(object_store, "http")
        return place if around_far is None else around_far(place)


class TestS3(StorageContract):
    @pytest.fixture
    def place(self, object_store: ObjectStore, around_far: type[Retried] | None) -> Place:
        place = Bucket(object_store, "s3")
        return place if around_far is None else around_far(place)
