"""Packs whose target is in an object store."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fault_proxy
import pytest
from fault_proxy import FaultProxy
from servers import BUCKET, KEY, SECRET, ObjectStore, s3_options

import shardload
from shardload.errors import PackError
from shardload.storage import UploadStorage, upload_storage_of
from shardload.writer.prune import prune

pytestmark = pytest.mark.usefixtures("quick_workers")

FAST = {"shardload": {"deadline": 300, "progress_timeout": 300, "first_wait": 0.01}}
"""No test waits for these limits: they are for whoever is stopped meanwhile."""
OPTIONS: dict[str, Any] = {"shard_size": "64KiB", "unit_size": "100KiB", "compression": "none"}
_names = iter(range(1_000_000))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts for several units of two or three shards each. Read only."""
    path = tmp_path_factory.mktemp("source") / "texts.jsonl"
    draw = random.Random(7)
    with path.open("w") as file:
        for number in range(300):
            file.write(json.dumps({"number": number, "text": f"{draw.getrandbits(7000):x}"}) + "\n")
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
        self.direct = upload_storage_of(self.url, s3_options(store.s3_port) | FAST)

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


@pytest.mark.parametrize("workers", [1, 2, pytest.param(4, marks=pytest.mark.slow)])
def test_the_bytes_are_those_of_a_pack_to_a_disk(
    place: Place, source: Path, local: dict[str, bytes], staging: Path, workers: int
) -> None:
    summary = place.pack(source, workers=workers)
    assert place.files() == local
    assert (summary.target, summary.num_workers) == (place.url, min(workers, summary.num_units))
    assert not list(staging.rglob("*")) and not place.direct.open_uploads()
    dataset = shardload.open(place.url, storage_options=place.options)
    assert dataset.fingerprint == summary.fingerprint and dataset[299]["number"] == 299
    again = place.pack(source, resume=True)
    assert again.num_workers == 0 and place.files() == local
    with pytest.raises(PackError, match=f"{place.url} exists and holds a dataset"):
        place.pack(source)


def lost(path: str, method: str, **options: Any) -> fault_proxy.Fault:
    """The server does what it is asked for, and its answer breaks off."""
    return fault_proxy.cut("header", "reset", path=path, method=method, **{"times": 1, **options})


LOST = {
    "claim": [lost("claim", "PUT")],
    "shard": [lost("shards/", "PUT", times=2)],
    "table": [lost("tables/", "PUT")],
    "manifest": [lost("manifests/1", "PUT")],
    "manifest for ever": [lost("manifests/1", "PUT", times=None)],
    "current": [lost("manifest.json", "PUT")],
    "claim's end": [lost("claim", "DELETE")],
    "busy": [fault_proxy.s3_error(503, "SlowDown", path="shards/", method=None, times=3)],
    "conflict": [fault_proxy.s3_error(409, "ConditionalRequestConflict", path="manifests/1", method="PUT", times=1)],
    "damaged": [fault_proxy.s3_error(400, "BadDigest", path="shards/", method="PUT", times=1)],
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in {"busy", "table", "claim", "current"} else ())
        for name in LOST
    ],
)
def test_lost_answers_are_no_matter(
    proxied: Place,
    s3_proxy: FaultProxy,
    source: Path,
    local: dict[str, bytes],
    staging: Path,
    name: str,
) -> None:
    s3_proxy.arm(*(dataclasses.replace(fault) for fault in LOST[name]))
    proxied.pack(source)
    assert s3_proxy.num_hits >= len(LOST[name])
    assert proxied.files() == local
    assert not list(staging.rglob("*"))


def test_a_store_that_is_gone_leaves_what_is_needed_to_go_on(
    proxied: Place, s3_proxy: FaultProxy, source: Path, local: dict[str, bytes], staging: Path
) -> None:
    proxied.options["shardload"] = FAST["shardload"] | {"retries": 1}
    s3_proxy.arm(fault_proxy.status(500, path="shards/", method="PUT", times=None, skip=4))
    with pytest.raises(PackError, match=r"shards/0001-.* cannot be written: .*; gave up after .*--continue") as caught:
        proxied.pack(source)
    there = {name: data for name, data in proxied.files().items() if name.startswith("shards/")}
    assert len(there) == 4
    kept = b"".join(path.read_bytes() for path in staging.rglob("*") if path.is_file())
    assert SECRET not in str(caught.value) and SECRET.encode() not in kept and KEY.encode() not in kept
    with pytest.raises(
        PackError, match="holds what an unfinished pack left: go on with the same command and --continue"
    ):
        proxied.pack(source)
    with pytest.raises(PackError, match="another writer is at work there, or was cut off"):
        proxied.pack(source, staging=staging / "elsewhere", replace=True)
    with pytest.raises(PackError, match="a writer is at work there, or was cut off"):
        prune(proxied.url, storage_options=proxied.options)
    s3_proxy.reset()
    # One that was lost meanwhile is made again; the others are not sent again.
    lost_name = sorted(there)[1]
    proxied.direct.remove([lost_name])
    proxied.pack(source, resume=True)
    assert proxied.files() == local and not list(staging.rglob("*"))
    sent = {name for name in there for asked in s3_proxy.asked if asked.method == "PUT" and name in asked.path}
    assert sent == {lost_name}


@pytest.mark.parametrize(("path", "method"), [("manifest.json", "PUT"), ("claim", "DELETE")])
def test_what_fails_after_the_commit_is_finished_later(
    proxied: Place,
    s3_proxy: FaultProxy,
    source: Path,
    local: dict[str, bytes],
    staging: Path,
    path: str,
    method: str,
) -> None:
    proxied.options["shardload"] = FAST["shardload"] | {"retries": 0}
    s3_proxy.arm(fault_proxy.status(500, path=path, method=method, times=None))
    with pytest.raises(PackError, match="this came after the commit: version 1 is there whole"):
        proxied.pack(source)
    s3_proxy.reset()
    proxied.pack(source, resume=True)
    assert proxied.files() == local and not list(staging.rglob("*"))


def test_another_writer_who_was_first_is_told_of(place: Place, source: Path, tmp_path: Path) -> None:
    with shardload.ShardWriter(tmp_path / "other", {"number": "int64"}) as writer:
        writer.write({"number": 1})
    other = (tmp_path / "other" / "manifest.json").read_bytes()

    def publish(_: Any) -> None:
        # As a program would that heeds no claims.
        place.direct.put("manifests/1", other)

    with pytest.raises(PackError, match="another writer published version 1 first; its dataset stands"):
        place.pack(source, progress=publish)
    assert place.direct.read_small("manifests/1", 1 << 20) == other and not place.direct.exists("manifest.json")


def test_of_two_writers_one_wins(place: Place, source: Path, local: dict[str, bytes], staging: Path) -> None:
    refused = []

    def compete(_: Any) -> None:
        if not refused:
            for elsewhere, reason in ((staging / "b", "or was cut off"), (None, "another writer is at work there$")):
                refused.append(reason)
                with pytest.raises(PackError, match=reason):
                    place.pack(source, staging=elsewhere, replace=True)

    place.pack(source, progress=compete)
    assert len(refused) == 2 and place.files() == local


def test_a_claim_that_was_removed_ends_a_pack_before_its_commit(place: Place, source: Path) -> None:
    def take_away(_: Any) -> None:
        place.direct.remove([".work/claim"])

    with pytest.raises(PackError, match="the claim of this writer was removed meanwhile; nothing was published"):
        place.pack(source, progress=take_away)
    assert not place.direct.list("manifests")


def test_a_store_without_conditions_is_refused(
    proxied: Place, s3_proxy: FaultProxy, source: Path, staging: Path
) -> None:
    done = fault_proxy.status(200, path="claim", method="PUT", skip=1)
    s3_proxy.arm(done)
    with pytest.raises(PackError, match="does not heed If-None-Match"):
        proxied.pack(source)
    assert proxied.files() == {} and not list(staging.rglob("*"))


def test_appends_and_replacements(
    place: Place, source: Path, tmp_path: Path, staging: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here = tmp_path / "here"
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"number": 1, "text": "ok"}\n{"number": "x", "text": "bad"}\n')
    for target, options in ((place.url, {"storage_options": place.options}), (here, {})):
        for steps in ({}, {"append": True, "on_error": "reject"}, {"append": True, "on_error": "reject"}):
            shardload.pack(bad if steps else source, target, workers=1, **OPTIONS, **steps, **options)
        with shardload.ShardWriter(target, append=True, **options) as writer:
            writer.write({"number": 7, "text": "seven"})
    assert place.files() == files_of(here) and not list(staging.rglob("*"))
    with shardload.ShardWriter(place.url, {"a": "int64"}, replace=True, storage_options=place.options) as writer:
        writer.write({"a": 1})
    with shardload.ShardWriter(here, {"a": "int64"}, replace=True) as writer:
        writer.write({"a": 1})
    assert place.files() == files_of(here)
    planned = prune(place.url, dry_run=True, storage_options=place.options)
    pruned = prune(place.url, keep=1, storage_options=place.options)
    assert planned == pruned == prune(here)
    assert place.files() == files_of(here)


def test_a_writer_that_fails_leaves_nothing(place: Place, staging: Path) -> None:
    writer = shardload.ShardWriter(place.url, {"a": "bytes"}, shard_size="8KiB", storage_options=place.options)
    with pytest.raises(ZeroDivisionError), writer:
        for _ in range(40):
            writer.write({"a": bytes(1000)})
        assert len(place.direct.list("shards")) > 1 and len(list(staging.rglob("*.shard"))) <= 1
        raise ZeroDivisionError
    assert place.files() == {} and not list(staging.rglob("*"))


def test_stray_parts_are_listed_and_removed(place: Place, source: Path, local: dict[str, bytes], staging: Path) -> None:
    place.pack(source)
    stray = place.direct._ask(
        "", 0, lambda way, seconds: way.begin_upload("shards/0002-000000-00000.shard", "x", seconds)
    )
    place.direct._ask(
        "", 0, lambda way, seconds: way.put_part("shards/0002-000000-00000.shard", stray, 1, b"x", seconds)
    )
    place.direct.put("shards/0002-000000-00001.shard", b"12345")
    with pytest.raises(PackError, match=r"holds shards/0002-000000-00001.shard, which no version names"):
        prune(place.url, storage_options=place.options)
    wanted = ["shards/0002-000000-00001.shard", "shards/0002-000000-00000.shard (begun, not completed)"]
    for dry_run in (True, False):
        found = prune(place.url, unfinished=True, dry_run=dry_run, storage_options=place.options)
        assert (found.versions, found.files, found.num_bytes) == ([], wanted, 5)
        assert len(place.direct.open_uploads()) == dry_run
    assert place.files() == local


@pytest.mark.parametrize("number", [9, pytest.param(None, marks=pytest.mark.slow)])
def test_a_pack_that_is_killed_goes_on_to_the_same_bytes(
    proxied: Place, s3_proxy: FaultProxy, source: Path, local: dict[str, bytes], staging: Path, number: int | None
) -> None:
    if number is None:
        proxied.pack(source)
        numbers: list[int] = list(range(len(s3_proxy.asked) + 10))
        proxied.pack(source, replace=True)
        prune(proxied.url, storage_options=proxied.options)
        proxied.direct.remove(proxied.files())
    else:
        numbers = [number]
    settings = {"storage_options": proxied.options, "workers": 2, **OPTIONS}
    program = f"import shardload, sys; shardload.pack({str(source)!r}, {proxied.url!r}, **{settings!r})"
    for at in numbers:
        s3_proxy.reset()
        process = subprocess.Popen([sys.executable, "-c", program], start_new_session=True, stderr=subprocess.PIPE)

        def kill(answer: fault_proxy.Answer, group: int = process.pid) -> fault_proxy.Answer:
            os.killpg(group, signal.SIGKILL)
            return answer

        s3_proxy.arm(fault_proxy.Fault("kill", method=None, change=kill, skip=at, times=1))
        _, errors = process.communicate(timeout=600)
        assert process.returncode in (-signal.SIGKILL, 0), (at, errors.decode())
        assert process.returncode or number is None
        s3_proxy.reset()
        kept = b"".join(path.read_bytes() for path in staging.rglob("*") if path.is_file())
        assert SECRET.encode() not in kept and KEY.encode() not in kept
        proxied.pack(source, resume=True)
        assert proxied.files() == local and not list(staging.rglob("*")) and not proxied.direct.open_uploads()
        proxied.direct.remove(proxied.files())
