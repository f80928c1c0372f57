"""All storages keep the one contract, on their own and with retries around them."""

from __future__ import annotations

from pathlib import Path

import pytest
from storage.contract import Place, StorageContract

from shardload.storage import LocalStorage, Storage


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


class TestLocal(StorageContract):
    @pytest.fixture
    def place(self, tmp_path: Path) -> Place:
        return Directory(tmp_path / "place")
