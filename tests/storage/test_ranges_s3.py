"""What clients of S3 cost before their first request."""

from __future__ import annotations

import botocore.loaders
import pytest

from shardload.errors import StorageError
from shardload.storage import RemoteStorage

NOWHERE = {"endpoint_url": "http://127.0.0.1:1"}


def test_only_the_first_client_reads_the_descriptions_of_services(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(number: int) -> None:
        storage = RemoteStorage(f"s3://bucket-{number}", NOWHERE | {"key": f"key-{number}", "secret": "secret"})
        with pytest.raises(StorageError, match="no connection"):
            storage.read_small("name", 9)

    ask(0)
    load, loaded = botocore.loaders.JSONFileLoader.load_file, list[str]()

    def noted(self: object, path: str) -> object:
        loaded.append(path)
        return load(self, path)

    monkeypatch.setattr(botocore.loaders.JSONFileLoader, "load_file", noted)
    for number in range(1, 4):
        ask(number)
    assert not loaded
