"""Packs whose target is in an object store."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fault_proxy import FaultProxy
from servers import BUCKET, ObjectStore, s3_options

import shardload
from shardload.errors import PackError
from shardload.storage import UploadStorage, upload_storage_of

FAST = {"shardload": {"deadline": 10, "first_wait": 0.01}}
OPTIONS: dict[str, Any] = {"shard_size": "64KiB", "unit_size": "100KiB", "compression": "none"}
_names = iter(range(1_000_000))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts for several units of two or three shards each. Read only."""
    path = tmp_path_factory.mktemp("source") / "texts.jsonl"
    draw = random.Random(7)
    with path.open("w") as file:
        for number in range(300):
            file.write(json.dumps({"number": number, "text": "%x" % draw.getrandbits(7000)}) + "\n")
    return path


@pytest.fixture(scope="module")
def local(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of the same dataset on a disk."""
    target = tmp_path_factory.mktemp("local") / "out"
    shardload.pack(source, target, workers=1, **OPTIONS)
    return files_of(target)


@pytest.fixture(autouse=True)
def staging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where packs keep what is not uploaded yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "shardload" / "staging"


@pytest.fixture
def place(object_store: ObjectStore) -> Iterator[Place]:
    yield Place(object_store, object_store.s3_port)


@pytest.fixture
def proxied(object_store: ObjectStore, s3_proxy: FaultProxy) -> Iterator[Place]:
    yield Place(object_store, s3_proxy.port)


class Place:
    """A name of its own in the store."""

    def __init__(self, store: ObjectStore, port: int) -> None:
        self.name = f"packed-{next(_names)}"
        self.url = f"s3://{BUCKET}/{self.name}"
        self.options = s3_options(port) | FAST
        self.direct = upload_storage_of(self.url, s3_options(store.s3_port))

    def pack(self, source: Path, **options: Any) -> shardload.packing.PackSummary:
        settings = {"workers": 1, **OPTIONS, **options}
        return shardload.pack(source, self.url, storage_options=self.options, **settings)

    def files(self) -> dict[str, bytes]:
        return far_files(self.direct)


def files_of(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def far_files(storage: UploadStorage) -> dict[str, bytes]:
    names = [name for name in storage.list("") if storage.facts(name) is not None]
    for folder in ("manifests", "tables", "shards", ".work"):
        names += [f"{folder}/{name}" for name in storage.list(folder)]
    return {name: storage.read_small(name, 1 << 30) for name in sorted(names)}


@pytest.mark.parametrize("workers", [1, 2])
def test_the_bytes_are_those_of_a_pack_to_a_disk(
    place: Place, source: Path, local: dict[str, bytes], staging: Path, workers: int
) -> None:
    summary = place.pack(source, workers=workers)
    assert place.files() == local
    assert (summary.target, summary.num_workers) == (place.url, workers)
    assert not list(staging.rglob("*")) and not place.direct.open_uploads()
    dataset = shardload.open(place.url, storage_options=place.options)
    assert dataset.fingerprint == summary.fingerprint and dataset[299]["number"] == 299
    again = place.pack(source, resume=True)
    assert again.num_workers == 0 and place.files() == local
    with pytest.raises(PackError, match=f"{place.url} exists and holds a dataset"):
        place.pack(source)
