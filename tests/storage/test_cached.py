"""A cached storage keeps the promises of all storages, with and without names for what is in its files."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from storage_contract import FILES, StorageContract

from shardload.storage import CachedStorage, LocalStorage, StoredFile
from shardload.storage.slots import MIN_LIMIT_BYTES


class Named(CachedStorage):
    """Takes a digest of its name for that of a file's content, so that every file of known length is cached."""

    def open(self, name: str, num_bytes: int | None = None, digest: bytes | None = None) -> StoredFile:
        return super().open(name, num_bytes, hashlib.sha256(name.encode()).digest())


class TestCached(StorageContract):
    kind = CachedStorage

    @pytest.fixture
    def storage(self, tmp_path: Path) -> CachedStorage:
        for name, data in FILES.items():
            path = tmp_path / "files" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return self.kind(LocalStorage(str(tmp_path / "files")), str(tmp_path / "cache"), MIN_LIMIT_BYTES)


class TestCachedByDigest(TestCached):
    kind = Named
