"""F39: ranks that find different datasets in one place, because it was replaced while they started."""

from __future__ import annotations

import datetime
import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
from samples import write_mixed
from servers import ObjectStore

import shardload
from shardload.errors import StateMismatchError


def replace(store: ObjectStore, name: str, directory: Path) -> None:
    """Puts another dataset in the place of one, as a writer does: the manifest last."""
    files = sorted(
        (path for path in directory.rglob("*") if path.is_file()), key=lambda path: path.name == "manifest.json"
    )
    for path in files:
        store.put(f"{name}/{path.relative_to(directory)}", path.read_bytes())


def run(rank: int, store: ObjectStore, name: str, other: Path | None, folder: Path) -> None:
    from torch import distributed

    limit = datetime.timedelta(seconds=60)
    meeting = f"file://{folder}/meeting"
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2, timeout=limit)
    facts: dict[str, Any] = {}
    if rank == 1:
        # The other rank has opened it, and it was replaced since.
        distributed.barrier()
    dataset = shardload.open(f"{store.http_url}/{name}")
    assert len(dataset) > 0
    if rank == 0:
        if other is not None:
            replace(store, name, other)
        distributed.barrier()
    loader = shardload.ShardLoader(dataset, 8, shuffle=True, seed=1)
    facts["samples"] = len(dataset)
    try:
        loader.check_ranks()
        facts["batch"] = next(iter(loader))["number"].tolist()
    except StateMismatchError as error:
        facts["error"] = str(error)
    facts["requests"] = loader.stats().num_requests
    loader.close()
    (folder / f"{rank}.json").write_text(json.dumps(facts))
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.mark.parametrize("replaced", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_replaced_between_two_opens(object_store: ObjectStore, mixed: Path, tmp_path: Path, replaced: bool) -> None:
    name = object_store.upload(mixed)
    other = write_mixed(tmp_path / "other", 400) if replaced else None
    # Forked, since all that they need is imported here.
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=run, args=(rank, object_store, name, other, tmp_path)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(100)
        assert process.exitcode == 0
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    if replaced:
        assert (first["samples"], second["samples"]) == (500, 400)
        for facts in (first, second):
            assert "disagree on fingerprint" in facts["error"] and "batch" not in facts and facts["requests"] == 0
    else:
        assert not {"error"} & (first.keys() | second.keys()) and not set(first["batch"]) & set(second["batch"])
