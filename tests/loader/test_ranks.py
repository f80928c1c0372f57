"""Real processes with a real process group: ranks are found, share one order, and stay in step."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

import shardload
from shardload.loader.ranks import Ranks, one_of, resolve_ranks

RANK_PROGRAM = """
import datetime, json, sys
import torch
import torch.distributed as dist
import shardload

path, store, rank, world, first_batch_size, state = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6]), sys.argv[6]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world,
                        timeout=datetime.timedelta(seconds=60))
loader = shardload.ShardLoader(shardload.open(path), first_batch_size, shuffle=True, seed=4, tail="short", with_ids=True)
steps = 0
if state:
    loader.load_state_dict(json.loads(state))
for batch in loader:
    # As a training step would: every rank must take part in every step, or this waits for ever.
    total = torch.tensor([len(batch["_sample_id"])])
    dist.all_reduce(total)
    print(json.dumps({"step": steps, "ids": batch["_sample_id"].tolist(), "total": int(total)}), flush=True)
    steps += 1
    if not state and steps == 5:
        break
print(json.dumps({"state": loader.state_dict(), "rank": loader.rank, "len": len(loader)}), flush=True)
loader.close()
dist.destroy_process_group()
"""


def run_ranks(path, store, world, batch_size, state=""):
    """Runs one process a rank and returns the lines each printed."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RANK_PROGRAM, str(path), str(store), str(rank), str(world), str(batch_size), state],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    outputs = []
    for process in processes:
        try:
            out, err = process.communicate(timeout=100)
        finally:
            process.kill()
        assert process.returncode == 0, err
        outputs.append([json.loads(line) for line in out.splitlines() if line.startswith("{")])
    return outputs


def test_three_processes_then_two_share_one_order(numbers, tmp_path):
    """Five steps on three ranks, then the rest on two with another batch size: every id once, and no rank waits."""
    first = run_ranks(numbers, tmp_path / "store1", 3, 16)
    states = {json.dumps(lines[-1]["state"]) for lines in first}
    assert len(states) == 1
    assert [lines[-1]["rank"] for lines in first] == [0, 1, 2]
    second = run_ranks(numbers, tmp_path / "store2", 2, 21, states.pop())
    assert {len(lines) for lines in second} == {1 + -(-(1003 - 5 * 48) // 42)}
    for lines in (*first, *second):
        for line in lines[:-1]:
            assert line["total"] in (48, 42, (1003 - 240) % 42)
    ids = [i for lines in (*first, *second) for line in lines[:-1] for i in line["ids"]]
    assert sorted(ids) == list(range(1003))


def test_the_default_group_comes_before_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "9")
    assert resolve_ranks(None, None) == Ranks(3, 9, "RANK and WORLD_SIZE")
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        assert resolve_ranks(None, None) == Ranks(0, 1, "the default process group")
        assert resolve_ranks(4, 2) == Ranks(2, 4, "the arguments")
    finally:
        torch.distributed.destroy_process_group()


def test_ranks_are_fixed_at_the_first_iteration(numbers, monkeypatch, capsys):
    """A loader made before the process group exists goes by the group; one that runs stays what it was."""
    loader = shardload.ShardLoader(shardload.open(numbers), 8, shuffle=True)
    assert (loader.rank, loader.num_replicas) == (0, 1)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert (loader.rank, loader.num_replicas) == (1, 2)
    next(iter(loader))
    monkeypatch.setenv("WORLD_SIZE", "5")
    assert (loader.rank, loader.num_replicas) == (1, 2)
    assert capsys.readouterr().err.count("rank 1 of 2") == 1
    loader.close()


@pytest.mark.parametrize(("num_replicas", "rank"), [(0, 0), (2, 2), (2, -1), (2, True), (2.0, 0), (None, 0)])
def test_ranks_that_cannot_be(num_replicas, rank):
    with pytest.raises(ValueError, match=r"rank|replicas"):
        resolve_ranks(num_replicas, rank)


def test_two_names_for_the_number_of_replicas():
    assert one_of(None, 3) == one_of(3, None) == one_of(3, 3) == 3
    assert one_of(None, None) is None
    with pytest.raises(ValueError, match="another name"):
        one_of(2, 3)
