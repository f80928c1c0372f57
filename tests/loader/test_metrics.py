"""Metrics over a masked evaluation are the same for any number of ranks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import shardload


def evaluate(numbers: Path, world: int, batch_size: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    hits, valid = [], []
    for rank in range(world):
        options = {"shuffle": False, "num_replicas": world, "rank": rank, "tail": "mask"}
        for batch in shardload.ShardLoader(shardload.open(numbers), batch_size, **options):  # type: ignore[arg-type]
            hits.append(batch["number"] % 7 == 3)
            valid.append(batch["_valid"])
    return hits, valid


@pytest.mark.parametrize("world", [1, 2, 3, 7])
@pytest.mark.parametrize("batch_size", [1, 16, 250])
def test_accuracy_does_not_depend_on_the_world(numbers: Path, world: int, batch_size: int) -> None:
    accuracy = shardload.masked_mean(*evaluate(numbers, world, batch_size))
    assert accuracy.dtype == torch.float64
    assert accuracy.item() == sum(n % 7 == 3 for n in range(1003)) / 1003


def test_values_of_any_shape() -> None:
    values, valid = torch.tensor([[1.0, 2.0], [3.0, 6.0], [100.0, 100.0]]), torch.tensor([True, True, False])
    assert shardload.masked_mean(values, valid).tolist() == [2.0, 4.0]
    assert shardload.masked_mean([values, values[:0]], [valid, valid[:0]]).tolist() == [2.0, 4.0]
    assert shardload.masked_mean(torch.tensor([2**53 + 1, 1]), torch.tensor([True, False])) == float(2**53 + 1)
    assert shardload.masked_mean(torch.tensor([0.1] * 3, dtype=torch.float16), valid).dtype == torch.float64


@pytest.mark.parametrize(
    ("values", "valid", "message"),
    [
        ([], [], "no values"),
        (torch.ones(3), torch.ones(3), "must be bool"),
        (torch.ones(3), torch.ones(2, dtype=torch.bool), r"shape \(2,\) for \(3,\)"),
        (torch.ones(3), torch.ones(3, 1, dtype=torch.bool), "must be bool of shape"),
        (torch.ones(3), torch.zeros(3, dtype=torch.bool), "no valid sample"),
    ],
)
def test_what_cannot_be(values, valid, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        shardload.masked_mean(values, valid)


def test_over_a_process_group(tmp_path: Path) -> None:
    group = torch.distributed
    group.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        mean = shardload.masked_mean(torch.tensor([1, 2, 9]), torch.tensor([True, True, False]), group.group.WORLD)
        assert mean.item() == 1.5
    finally:
        group.destroy_process_group()
