"""Real processes with a real process group: ranks are found, share one order, and stay in step."""

from __future__ import annotations

import json
import pickle

import pytest
import torch
from programs import Program

import shardload
from shardload.loader.ranks import RankChoice, Ranks, one_of

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
    processes = [Program(RANK_PROGRAM, path, store, rank, world, batch_size, state) for rank in range(world)]
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
    assert RankChoice().resolve() == Ranks(3, 9, "RANK and WORLD_SIZE", inferred=True)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        assert RankChoice().resolve() == Ranks(0, 1, "the default process group", inferred=True)
        assert RankChoice(4, 2).resolve() == Ranks(2, 4, "the arguments")
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
        RankChoice(num_replicas, rank).resolve()


def test_two_names_for_the_number_of_replicas():
    assert one_of(None, 3) == one_of(3, None) == one_of(3, 3) == 3
    assert one_of(None, None) is None
    with pytest.raises(ValueError, match="another name"):
        one_of(2, 3)


@pytest.fixture
def fake_world():
    """Starts one process of a world that is not there: enough for all that needs no other one."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    def start(rank: int, world: int) -> None:
        torch.distributed.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)

    yield start
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("dims", "expected"),
    [
        ("dp", (1, 2, 4)),
        (("replicate", "shard"), (4, 6, 4)),
        (("shard", "replicate"), (4, 6, 4)),
        (("shard",), (1, 3, 8)),
    ],
)
def test_ranks_of_a_mesh(fake_world, dims, expected):
    """By the mesh's own order, whatever that of the names; what its other dimensions hold are copies."""
    shape, names = ((2, 2, 2), ("dp", "tp", "pp")) if dims == "dp" else ((2, 3, 4), ("replicate", "shard", "tp"))
    world = 8 if dims == "dp" else 24
    fake_world({8: 5, 24: 17}[world], world)
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", shape, mesh_dim_names=names)
    ranks = RankChoice(mesh=mesh, mesh_dims=dims).resolve()
    assert (ranks.rank, ranks.num_replicas, ranks.num_copies) == expected
    assert not ranks.inferred
    # What was given outright comes first.
    assert RankChoice(7, 3, mesh, dims).resolve() == Ranks(3, 7, "the arguments")


def test_ranks_of_a_process_group(fake_world):
    fake_world(2, 4)
    group = torch.distributed.new_group([1, 2])
    assert RankChoice(process_group=group).resolve() == Ranks(1, 2, "the process group given")
    other = torch.distributed.new_group([0, 3])
    with pytest.raises(ValueError, match="is not in the process group"):
        RankChoice(process_group=other).resolve()


def test_mesh_dimensions_that_are_not_there(fake_world):
    fake_world(0, 4)
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    for dims in ("cp", ("dp", "dp"), ()):
        with pytest.raises(ValueError, match="must name dimensions of the mesh"):
            RankChoice(mesh=mesh, mesh_dims=dims).resolve()
    with pytest.raises(ValueError, match="has 2 dimensions"):
        RankChoice(mesh=mesh).resolve()
    assert RankChoice(mesh=mesh["tp"]).resolve().num_replicas == 2
    with pytest.raises(ValueError, match="give mesh too"):
        RankChoice(mesh_dims="dp")


def test_inferred_ranks_beside_a_model_parallel_mesh_are_warned_of(numbers, fake_world):
    fake_world(3, 4)
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    dataset = shardload.open(numbers)
    with pytest.warns(UserWarning, match="device mesh with the dimension 'tp'"):
        next(iter(shardload.ShardLoader(dataset, 8, shuffle=True)))
    with pytest.warns(UserWarning, match="device mesh with the dimension 'tp'"):
        next(iter(shardload.ShardSampler(dataset).batch_sampler(8)))
    with_mesh = shardload.ShardLoader(dataset, 8, shuffle=True, mesh=mesh, mesh_dims="dp")
    next(iter(with_mesh))
    assert (with_mesh.rank, with_mesh.num_replicas) == (1, 2)
    again = pickle.loads(pickle.dumps(with_mesh))
    assert (again.rank, again.num_replicas) == (1, 2)


def test_hybrid_sharding_is_all_data_parallel(numbers, fake_world):
    fake_world(3, 4)
    torch.distributed.device_mesh.init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp_replicate", "dp_shard"))
    next(iter(shardload.ShardLoader(shardload.open(numbers), 8, shuffle=True)))


def test_without_a_rank_there_are_lengths_and_states_and_no_reads(numbers):
    dataset = shardload.open(numbers)
    loader = shardload.ShardLoader(dataset, 10, shuffle=True, num_replicas=4)
    sampler = shardload.ShardSampler(dataset, num_replicas=4)
    batches = sampler.batch_sampler(10, tail="drop")
    whole = shardload.ShardLoader(dataset, 10, shuffle=True, num_replicas=4, rank=2)
    assert len(loader) == len(batches) == loader.remaining == 25 and len(sampler) == 251
    assert loader.state_at(7) == batches.state_at(7) == whole.state_at(7)
    loader.load_state_dict(loader.state_at(7))
    assert loader.remaining == 18
    for planning in (loader, sampler, batches):
        with pytest.raises(ValueError, match="num_replicas without rank"):
            next(iter(planning))
