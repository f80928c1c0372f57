"""Uploads in parts to a real object store, whose answers may be lost."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fault_proxy
import pytest
from fault_proxy import FaultProxy
from servers import BUCKET, KEY, SECRET, ObjectStore, s3_options

from shardload.errors import StorageError
from shardload.storage import LocalStorage, UploadStorage, upload_storage_of, uploading

CONTENT = random.Random(3).randbytes(2 * (5 << 20) + 4321)


@pytest.fixture
def storage(
    object_store: ObjectStore, s3_proxy: FaultProxy, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> UploadStorage:
    """A place of its own, behind the proxy, where what is longer than 5 MiB goes up in parts."""
    monkeypatch.setattr(uploading, "PART_BYTES", 5 << 20)
    options = s3_options(s3_proxy.port) | {"shardload": {"deadline": 10, "first_wait": 0.01, "retries": 3}}
    return upload_storage_of(f"s3://{BUCKET}/{request.node.name}/data", options)


def lost(path: str, method: str, times: int | None = 1) -> fault_proxy.Fault:
    return fault_proxy.cut("header", "reset", path=path, method=method, times=times)


FAULTS: dict[str, Callable[[], list[fault_proxy.Fault]]] = {
    "none": list,
    "begin": lambda: [lost("uploads", "POST")],
    "part": lambda: [lost("partNumber=2", "PUT"), fault_proxy.status(500, path="partNumber=3", method="PUT", times=1)],
    "completion": lambda: [lost("uploadId=", "POST")],
    "completion, for ever": lambda: [lost("uploadId=", "POST", None)],
    "completion, then unknown": lambda: [
        lost("uploadId=", "POST"),
        fault_proxy.s3_error(404, "NoSuchUpload", path="uploadId=", method="POST", times=1),
    ],
    "completion, then refused": lambda: [
        lost("uploadId=", "POST"),
        fault_proxy.s3_error(412, "PreconditionFailed", path="uploadId=", method="POST", times=1),
    ],
}


@pytest.mark.parametrize("name", FAULTS)
def test_parts_become_the_object_whatever_is_lost(
    storage: UploadStorage, s3_proxy: FaultProxy, tmp_path: Path, name: str
) -> None:
    (tmp_path / "a").write_bytes(CONTENT)
    file = LocalStorage(str(tmp_path)).open("a")
    faults = FAULTS[name]()
    s3_proxy.arm(*faults)
    pickle.loads(pickle.dumps(storage)).upload("a b/ä", file, "mark")
    assert all(fault.num_hits for fault in faults)
    s3_proxy.reset()
    assert storage.read_small("a b/ä", 1 << 30) == CONTENT and storage.has("a b/ä", len(CONTENT), "mark")
    assert [upload.name for upload in storage.open_uploads()] == ["a b/ä"] * (name == "begin")
    storage.abort(storage.open_uploads())
    assert storage.open_uploads() == []
    # It is there: nothing is sent again.
    s3_proxy.reset()
    storage.upload("a b/ä", file, "mark")
    assert not [asked for asked in s3_proxy.asked if asked.method in ("PUT", "POST")]
    with pytest.raises(StorageError, match="a b/ä is there with other content: another writer is at work there"):
        storage.upload("a b/ä", file, "other")


def test_an_upload_that_fails_leaves_no_parts_and_no_secret(
    storage: UploadStorage, s3_proxy: FaultProxy, tmp_path: Path
) -> None:
    (tmp_path / "a").write_bytes(CONTENT)
    s3_proxy.arm(fault_proxy.s3_error(400, "EntityTooLarge", path="partNumber=2", method="PUT", times=1))
    with pytest.raises(
        StorageError, match=r"data: a cannot be written: the store refused \(status 400\): Entity"
    ) as caught:
        storage.upload("a", LocalStorage(str(tmp_path)).open("a"), "mark")
    text: Any = repr(caught.value) + repr(storage)
    assert SECRET not in text and KEY not in text
    assert storage.facts("a") is None and storage.open_uploads() == []


def test_of_two_creations_one_wins(storage: UploadStorage, s3_proxy: FaultProxy) -> None:
    s3_proxy.arm(lost("x", "PUT"))
    assert storage.create("x", b"first", "one") and storage.create("x", b"first", "one")
    assert not storage.create("x", b"other", "two")
    assert storage.read_small("x", 9) == b"first"
    storage.remove(["x", "x", "none"])
    assert storage.facts("x") is None
