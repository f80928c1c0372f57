"""Saving and restoring a run in one process."""

from __future__ import annotations

import contextlib
import errno
import logging
import random
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faults import FailAt, injected
from torch import distributed, nn

import shardload
from shardload.checkpoint.randomness import capture_random, restore_random, seed_new_rank
from shardload.errors import FormatError, StateMismatchError, StorageError
from shardload.storage import Operations

NUM_SAMPLES = 1003


@pytest.fixture(autouse=True)
def generators_as_before() -> Iterator[None]:
    states, threads = capture_random(), torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    restore_random(states)


def make_model(width: int = 16) -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(1, width), nn.BatchNorm1d(width), nn.Dropout(0.2), nn.Linear(width, 1))


class Run:
    """A training run of one process."""

    def __init__(self, numbers: Path, directory: Path, batch_size: int = 8, width: int = 16, **options: Any) -> None:
        self.model = make_model(width)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-2)
        self.schedule = torch.optim.lr_scheduler.StepLR(self.optimizer, 4, 0.5)
        self.loader = shardload.ShardLoader(shardload.open(numbers), batch_size, shuffle=True, seed=2, tail="carry")
        self.checkpointer = shardload.Checkpointer(
            directory,
            model=self.model,
            optimizer=self.optimizer,
            loader=self.loader,
            extra={"schedule": self.schedule},
            **options,
        )
        random.seed(1), np.random.seed(1), torch.manual_seed(1)
        self.step = self.start = 0
        self.batches: Iterator[Any] = iter(())

    def train(self, stop: int, save_at: tuple[int, ...] = ()) -> list[tuple[str, list[int]]]:
        """Trains up to a step; returns loss and samples of each."""
        told = []
        if self.step == self.start:
            self.batches = iter(self.loader)
        for batch in self.batches:
            loss = self.model(batch["number"].float()[:, None] / 1000).square().mean() + random.random()
            loss = loss + float(np.random.rand()) * self.model[0].weight.sum()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.schedule.step()
            self.step += 1
            told.append((loss.item().hex(), batch["number"].tolist()))
            if self.step in save_at:
                self.checkpointer.save(self.step)
            if self.step >= stop:
                break
        return told

    def restore(self, step: int | None = None, **options: Any) -> int | None:
        found = self.checkpointer.restore(step, **options)
        self.step = self.start = found or 0
        return found

    def weights(self) -> list[torch.Tensor]:
        return [value.clone() for value in self.model.state_dict().values()]

    def close(self) -> None:
        self.checkpointer.close()
        self.loader.close()


Make = Callable[..., Run]


@pytest.fixture
def make(numbers: Path, tmp_path: Path) -> Iterator[Make]:
    runs: list[Run] = []

    def made(**options: Any) -> Run:
        runs.append(Run(numbers, tmp_path / "checkpoints", **options))
        return runs[-1]

    yield made
    for run in runs:
        with contextlib.suppress(StorageError):
            run.close()


def same(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("asynchronous", [False, True])
def test_goes_on_as_if_nothing_had_been(make: Make, tmp_path: Path, asynchronous: bool) -> None:
    plain = make()
    expected = plain.train(30)
    shutil.rmtree(tmp_path / "checkpoints", ignore_errors=True)
    first = make(asynchronous=asynchronous)
    assert first.restore() is None
    # Also before the first step, which torch's state of an optimizer alone would disturb.
    first.checkpointer.save(0)
    assert first.train(30, save_at=(5, 20)) == expected
    first.checkpointer.wait()
    for step in (0, 5, 20):
        later = make()
        assert later.restore(step) == step
        assert later.train(30) == expected[step:]
        assert same(later.weights(), plain.weights())


def test_what_is_saved_is_the_moment_of_the_call(make: Make) -> None:
    """Training goes on while a thread writes: weights and place are those of the call, and no sample after it counts."""
    gate, reached = threading.Event(), threading.Event()

    class Held(Operations):
        def open_new(self, path: str) -> int:
            if path.endswith(".distcp"):
                reached.set()
                assert gate.wait(60)
            return Operations.open_new(self, path)

    run = make(asynchronous=True)
    run.train(4)
    weights, place = run.weights(), run.loader.state_dict()
    with injected(Held()):
        try:
            run.checkpointer.save(4)
            assert reached.wait(60)
            during = run.train(30)
            budget, stats = 256 << 20, run.loader.stats()
            assert stats.leased_bytes <= budget and stats.stall_seconds > 0 and stats.num_batches == 30
            assert not list(Path(run.checkpointer._directory.path).glob("step-*"))
        finally:
            gate.set()
        run.checkpointer.wait()
    assert not same(run.weights(), weights)
    later = make()
    assert later.restore() == 4
    assert same(later.weights(), weights) and later.loader.state_dict() == place
    assert later.train(30)[:26] == during[:26]


def test_prefetch_stays_in_its_budget_while_a_save_takes_long(tmp_path: Path) -> None:
    """The training loop takes nothing while `save` waits: the loader reads ahead up to its limit and no further."""
    with shardload.ShardWriter(tmp_path / "wide", {"number": "int64", "values": "int32[4096]"}) as writer:
        for i in range(400):
            writer.write({"number": i, "values": np.full(4096, i, dtype=np.int32)})
    batch_bytes, seen = 8 * (4096 * 4 + 8), []
    loader = shardload.ShardLoader(
        shardload.open(tmp_path / "wide"), 8, shuffle=True, prefetch_batches=3, num_threads=1
    )

    class Watching(Operations):
        def fsync(self, descriptor: int) -> None:
            # Long enough for the loader to have read all, did it not stop.
            threading.Event().wait(0.05)
            seen.append(loader.stats().leased_bytes)
            Operations.fsync(self, descriptor)

    model = nn.Linear(1, 1)
    with loader, shardload.Checkpointer(tmp_path / "a", model=model, loader=loader) as checkpointer:
        batches = iter(loader)
        for _ in range(3):
            next(batches)
        with injected(Watching()):
            checkpointer.save(3)
        # Three that wait, two bursts of three that are read, one that is made and one that the loop has; there are fifty.
        assert len(seen) > 4 and batch_bytes < max(seen) <= 11 * batch_bytes
        rest = [number for batch in batches for number in batch["number"].tolist()]
        stats = loader.stats()
    assert len(rest) == 400 - 24 and stats.loop_seconds > stats.stall_seconds > 0


def damage_newest(path: Path, how: str) -> None:
    data = next(path.glob("__0_0.distcp"))
    if how == "flipped byte":
        content = bytearray(data.read_bytes())
        content[len(content) // 2] ^= 1
        data.write_bytes(content)
    elif how == "cut":
        data.write_bytes(data.read_bytes()[:-1])
    elif how == "missing file":
        data.unlink()
    elif how == "missing manifest":
        (path / "manifest.json").unlink()
    elif how == "changed manifest":
        manifest = path / "manifest.json"
        manifest.write_bytes(manifest.read_bytes().replace(b'"num_ranks":1', b'"num_ranks":2'))
    elif how == "metadata":
        content = bytearray((path / ".metadata").read_bytes())
        content[100] ^= 8
        (path / ".metadata").write_bytes(content)
    elif how == "empty":
        shutil.rmtree(path)
        path.mkdir()
    elif how == "another's":
        shutil.rmtree(path)
        shutil.copytree(path.with_name("step-5"), path)


HOW = ["flipped byte", "cut", "missing file", "missing manifest", "changed manifest", "metadata", "empty", "another's"]


def test_a_damaged_one_is_passed_over_with_a_warning(make: Make, tmp_path: Path) -> None:
    expected = make().train(12)
    first = make()
    first.train(8, save_at=(5, 8))
    (tmp_path / "whole").mkdir()
    shutil.move(tmp_path / "checkpoints", tmp_path / "whole")
    for how in HOW:
        shutil.rmtree(tmp_path / "checkpoints", ignore_errors=True)
        shutil.copytree(tmp_path / "whole/checkpoints", tmp_path / "checkpoints")
        damage_newest(tmp_path / "checkpoints/step-8", how)
        later = make()
        with pytest.raises(FormatError, match="the checkpoint of step 8 is damaged"):
            later.restore(8)
        with pytest.warns(UserWarning, match="the checkpoint of step 8 is damaged, and is passed over"):
            assert later.restore() == 5
        assert later.train(12, save_at=(8,)) == expected[5:]
        # The damaged one does not stand in the way, and nobody takes it for the newer one.
        again = make()
        assert again.restore() == 8
        again.close()
    shutil.rmtree(tmp_path / "checkpoints/step-8")
    damage_newest(tmp_path / "checkpoints/step-5", "cut")
    with pytest.warns(UserWarning), pytest.raises(FormatError, match="all 1 checkpoints are damaged"):
        make().restore()


def test_sizes_are_compared_even_without_sums(make: Make, tmp_path: Path) -> None:
    make().train(5, save_at=(5,))
    damage_newest(tmp_path / "checkpoints/step-5", "cut")
    with pytest.raises(FormatError, match=r"has \d+ bytes instead of \d+"):
        make().restore(5, verify=False)


def test_an_unfinished_one_is_told_and_removed(make: Make, tmp_path: Path) -> None:
    first = make()
    first.train(5, save_at=(5,))
    half = tmp_path / "checkpoints/.writing-9-0123abcd"
    shutil.copytree(tmp_path / "checkpoints/step-5", half)
    with pytest.warns(UserWarning, match="step 9 was never finished, and is passed over"):
        assert make().restore() == 5
    first.train(6, save_at=(6,))
    assert not half.exists()


def test_rewinds_with_other_hyper_parameters(make: Make, tmp_path: Path) -> None:
    make().train(30, save_at=(10, 20, 30))
    order = [number for _, ids in make().train(30) for number in ids]
    back = make(batch_size=4)
    assert back.restore(10, skip_samples=16) == 10
    later = [number for _, ids in back.train(20, save_at=(12, 15)) for number in ids]
    assert later == order[96:136], "10 batches of 8 were trained on and 16 samples passed over"
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {"step-10", "step-12", "step-15", "aside-step-20", "aside-step-30"}
    again = make(batch_size=4)
    assert again.restore() == 15
    assert [number for _, ids in again.train(20) for number in ids] == order[116:136]


def test_the_newest_are_kept(make: Make, tmp_path: Path) -> None:
    run = make(keep=2)
    for step in range(1, 6):
        run.train(step, save_at=(step,))
        assert len(list((tmp_path / "checkpoints").iterdir())) == min(step, 2)
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"step-4", "step-5"}
    assert run.checkpointer.stats().num_saved == 5


def test_steps_grow_and_directories_are_not_mixed(make: Make) -> None:
    run = make()
    run.train(5, save_at=(5,))
    run.checkpointer.save(5)
    assert run.checkpointer.stats().num_saved == 1
    with pytest.raises(ValueError, match="step 4 was to be saved after step 5"):
        run.checkpointer.save(4)
    with pytest.raises(StateMismatchError, match="up to step 5, which this run does not go on from"):
        make().checkpointer.save(9)
    with pytest.raises(StorageError, match=r"no checkpoint of step 4; it has \[5\]"):
        make().restore(4)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_full_disk_is_told_and_the_next_save_succeeds(make: Make, tmp_path: Path, asynchronous: bool) -> None:
    run = make(asynchronous=asynchronous)
    run.train(5, save_at=(5,))
    run.checkpointer.wait()
    fault = FailAt(1, errno.ENOSPC, names=("write",), lasting=True, inner=Operations())
    with injected(fault), pytest.raises(StorageError, match=r"step 6 was not saved: rank 0: .*No space left"):
        run.train(6, save_at=(6,))
        run.checkpointer.wait()
    assert fault.fired
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-5"]
    run.train(7, save_at=(7,))
    run.checkpointer.wait()
    assert make().restore() == 7
    assert run.checkpointer.stats().num_failed == 1


def test_a_failed_save_is_logged_in_one_sentence(make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "checkpoints").write_text("")
    run = make()
    with pytest.raises(StorageError, match="checkpoints is not a directory"):
        run.restore()
    with pytest.raises(StorageError, match="step 1 was not saved: rank 0: "):
        run.checkpointer.save(1)
    (record,) = (record for record in caplog.records if record.name == "shardload")
    assert "was not saved: rank 0: NotADirectoryError: " in record.getMessage() and "\n" not in record.getMessage()


def test_a_save_that_outlasts_its_time_is_waited_for_again(make: Make, tmp_path: Path) -> None:
    run, gate, waited = make(asynchronous=True), threading.Event(), threading.Event()
    run.train(5)

    class Slow(Operations):
        def open_new(self, path: str) -> int:
            waited.set()
            assert gate.wait(60)
            return super().open_new(path)

    with injected(Slow()):
        run.checkpointer.save(5)
        assert waited.wait(60)
        run.checkpointer._timeout_seconds = 0.01
        for _ in range(2):
            # Not the next one, which would remove what the first is writing.
            with pytest.raises(StorageError, match="step 5 was not saved"):
                run.checkpointer.save(6)
        run.checkpointer._timeout_seconds = 60.0
        gate.set()
        run.checkpointer.wait()
    assert make().restore() == 5


def test_another_model_or_dataset_is_refused_before_anything_changes(make: Make, tmp_path: Path, mixed: Path) -> None:
    make().train(5, save_at=(5,))
    wide = make(width=17)
    weights, place = wide.weights(), wide.loader.state_dict()
    with pytest.raises(StateMismatchError, match=r"0\.weight has shape \(16, 1\) in it, and \(17, 1\) here"):
        wide.restore()
    assert same(wide.weights(), weights) and wide.loader.state_dict() == place
    more = shardload.Checkpointer(tmp_path / "checkpoints", model=nn.Sequential(make_model(), nn.Linear(1, 1)))
    with pytest.raises(StateMismatchError, match=r"of another model: 0\.0\.bias \(and \d+ more\) is not in the"):
        more.restore()
    fewer = shardload.Checkpointer(tmp_path / "checkpoints", model=make_model()[:2])
    with pytest.raises(StateMismatchError, match=r"of another model: 3\.bias \(and 1 more\) is in the checkpoint only"):
        fewer.restore()
    model = make_model()
    with shardload.ShardLoader(shardload.open(mixed), 8, shuffle=True, seed=2) as loader:
        before = [value.clone() for value in model.state_dict().values()]
        other = shardload.Checkpointer(tmp_path / "checkpoints", model=model, loader=loader)
        with pytest.raises(StateMismatchError, match="fingerprint"):
            other.restore()
        assert same(list(model.state_dict().values()), before)
    with pytest.raises(StateMismatchError, match="saved without an extra 'scaler'"):
        shardload.Checkpointer(tmp_path / "checkpoints", model=model, extra={"scaler": make().schedule}).restore()
    # The model alone, as for an evaluation.
    assert shardload.Checkpointer(tmp_path / "checkpoints", model=model).restore() == 5


def test_another_optimizer_is_refused_before_anything_changes(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    first, second = model[0].parameters, model[1].parameters
    both = model.parameters

    def saved(optimizer: torch.optim.Optimizer, path: Path) -> None:
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        shardload.Checkpointer(path, model=model, optimizer=optimizer).save(1)

    saved(torch.optim.AdamW(both()), tmp_path / "adam")
    saved(torch.optim.SGD(both(), lr=0.1, momentum=0.9), tmp_path / "sgd")
    for name, optimizer, message in [
        (
            "adam",
            torch.optim.SGD(both(), lr=0.1, momentum=0.9),
            "exp_avg, exp_avg_sq, step, and this one momentum_buffer",
        ),
        ("adam", torch.optim.AdamW(both(), amsgrad=True), "and this one exp_avg, exp_avg_sq, max_exp_avg_sq, step"),
        ("sgd", torch.optim.SGD(both(), lr=0.1), r"of 0\.bias it has momentum_buffer, and this one nothing"),
        ("adam", torch.optim.AdamW(first()), r"of 1\.bias it has exp_avg, exp_avg_sq, step, and this one nothing"),
        (
            "adam",
            torch.optim.AdamW([{"params": first(), "lr": 0.5}, {"params": second()}]),
            "4 parameters in 1 group, and",
        ),
    ]:
        before = [value.clone() for value in both()]
        with pytest.raises(StateMismatchError, match="of another optimizer 0: .*" + message):
            shardload.Checkpointer(tmp_path / name, model=model, optimizer=optimizer).restore()
        # Not even the step of zeros that torch takes to see what it keeps.
        assert not optimizer.state and same(list(both()), before)
        assert optimizer.param_groups[0]["lr"] in (0.1, 0.5, 1e-3)
    swapped = torch.optim.Adam([*second(), *first()], lr=7.0)
    assert shardload.Checkpointer(tmp_path / "adam", model=model, optimizer=swapped).restore() == 1
    assert swapped.param_groups[0]["lr"] == 1e-3


def test_optimizers_of_parts_unused_parameters_and_extras_with_tensors(tmp_path: Path) -> None:
    def make() -> tuple[nn.ModuleList, list[torch.optim.Optimizer], nn.Module, Any]:
        torch.manual_seed(0)
        model = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)])
        model[1].requires_grad_(False)
        # The third layer is never used: its parameters have no state.
        optimizers = [
            torch.optim.AdamW([*model[0].parameters(), *model[2].parameters()], lr=0.1),
            torch.optim.SGD(model[1].parameters(), lr=0.1, momentum=0.9),
        ]
        average = torch.optim.swa_utils.AveragedModel(model[0])
        objects = {"average": average, "multi": torch.optim.lr_scheduler.MultiStepLR(optimizers[0], [1, 5])}
        return (
            model,
            optimizers,
            average,
            shardload.Checkpointer(tmp_path / "a", model=model, optimizer=optimizers, extra=objects),
        )

    def train(model: nn.ModuleList, optimizers: list[torch.optim.Optimizer], average: Any) -> None:
        for number in range(3):
            model[0](torch.full((4, 2), number + 1.0)).square().sum().backward()
            optimizers[0].step()
            optimizers[0].zero_grad()
            average.update_parameters(model[0])

    model, optimizers, average, checkpointer = make()
    train(model, optimizers, average)
    checkpointer.save(3)
    assert len(optimizers[0].state) == 2 and not optimizers[1].state
    train(model, optimizers, average)
    again, others, average_again, restorer = make()
    # Gradients from before do not stand in the way, and do not count after it.
    again[0](torch.ones(4, 2)).sum().backward()
    assert restorer.restore() == 3
    assert len(others[0].state) == 2 and not others[1].state
    assert int(average_again.n_averaged) == 3
    train(again, others, average_again)
    assert same(list(again.state_dict().values()), list(model.state_dict().values()))
    assert same(list(average_again.state_dict().values()), list(average.state_dict().values()))


def test_saving_takes_no_step_of_an_optimizer(tmp_path: Path) -> None:
    model = nn.Linear(1, 1)
    taken: list[int] = []
    for optimizer in (torch.optim.SGD(model.parameters(), lr=0.1), torch.optim.Adam(model.parameters())):
        optimizer.register_step_post_hook(lambda *_: taken.append(1))
        path = tmp_path / type(optimizer).__name__
        checkpointer = shardload.Checkpointer(path, model=model, optimizer=optimizer)
        checkpointer.save(1)
        assert not taken and not optimizer.state
        optimizer.param_groups[0]["lr"] = 7.0
        assert checkpointer.restore() == 1
        assert optimizer.param_groups[0]["lr"] != 7.0 and not optimizer.state
        taken.clear()


def test_wrong_arguments_are_refused(tmp_path: Path, make: Make) -> None:
    model = nn.Linear(1, 1)
    for options, message in [
        ({"model": {}}, "model must be a torch.nn.Module, not dict"),
        ({"model": model, "optimizer": [3]}, "optimizer must be a torch optimizer or several, not int"),
        (
            {"model": model, "optimizer": torch.optim.SGD(nn.Linear(1, 1).parameters())},
            "optimizer 0 has parameters that are not the model's",
        ),
        ({"model": model, "loader": [1]}, "'loader' must have state_dict"),
        ({"model": model, "extra": {"a": 3}}, "'a' must have state_dict"),
        ({"model": model, "keep": 0}, "keep must be an integer from 1"),
        ({"model": model, "timeout_seconds": 0}, "timeout_seconds must be above 0"),
    ]:
        with pytest.raises((TypeError, ValueError), match=message):
            shardload.Checkpointer(tmp_path / "b", **options)
    with pytest.raises(ValueError, match="step must be an integer from 0"):
        make().checkpointer.save(-1)
    with pytest.raises(ValueError, match="loader= takes a ShardLoader"):
        shardload.Checkpointer(tmp_path / "b", model=model, loader=make().optimizer).save(1)
    with pytest.raises(ValueError, match="without a loader"):
        shardload.Checkpointer(tmp_path / "b", model=model).save(1, {"shardload": "x"})
    assert not (tmp_path / "b").exists()


def test_what_it_took_is_told(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "shardload")
    run = make()
    run.train(5, save_at=(5,))
    told = [record.getMessage() for record in caplog.records if "step-5" in record.getMessage()]
    assert len(told) == 1 and "by 1 writer" in told[0] and "GB/s each; training waited" in told[0]
    stats = run.checkpointer.stats()
    assert 0 < stats.blocked_seconds <= stats.elapsed_seconds and 0 < stats.share <= 1
    assert stats.write_seconds <= stats.blocked_seconds and stats.writer_gb_per_second > 0
    files = list(Path(run.checkpointer._directory.path_of(5)).glob("__*"))
    assert stats.num_bytes == sum(path.stat().st_size for path in files)
    caplog.clear()
    later = make()
    later.restore()
    assert "restored" in caplog.text and later.checkpointer.stats().restored_bytes > stats.num_bytes


def test_a_state_from_ahead_is_taken_where_it_is_given(numbers: Path, tmp_path: Path) -> None:
    model = nn.Linear(1, 1)
    dataset = shardload.open(numbers)
    batches = shardload.ShardSampler(dataset, 1, 0, seed=2).batch_sampler(8)
    checkpointer = shardload.Checkpointer(tmp_path / "a", model=model, loader=batches)
    iterator = iter(batches)
    issued = [next(iterator) for _ in range(7)]
    checkpointer.save(4, loader_state=batches.state_at(4))
    later = shardload.ShardSampler(dataset, 1, 0, seed=2).batch_sampler(8)
    assert shardload.Checkpointer(tmp_path / "a", model=model, loader=later).restore() == 4
    assert [ids for ids, _ in zip(later, range(3), strict=False)] == issued[4:7]


def drawn() -> list[Any]:
    return [random.random(), float(np.random.rand()), float(np.random.randn()), torch.rand(3).tolist()]


def test_goes_on_in_another_process_group(tmp_path: Path) -> None:
    model = nn.Linear(1, 1)
    checkpointer = shardload.Checkpointer(tmp_path / "a", model=model, timeout_seconds=60)
    checkpointer.save(1)
    try:
        for step in (2, 3):
            distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
            checkpointer.save(step)
            distributed.destroy_process_group()
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()
    checkpointer.save(4)
    checkpointer.close()
    assert shardload.Checkpointer(tmp_path / "a", model=model).restore() == 4


def test_random_states_go_through_text() -> None:
    # A number that the generator has made but not given out yet is part of it.
    np.random.randn(), random.gauss(0, 1)
    states = capture_random()
    expected = drawn()
    restore_random(states)
    assert drawn() == expected
    with pytest.raises(FormatError, match="random state"):
        restore_random({"python": "[1]"})


def test_a_new_rank_draws_its_own_numbers_where_ranks_did() -> None:
    random.seed(5), np.random.seed(6), torch.manual_seed(7)
    states = capture_random()
    restore_random(states)
    first = drawn()
    found = []
    for rank in (2, 3, 2):
        seed_new_rank(states, ("python",), rank)
        found.append(drawn())
    assert found[0] == found[2] and all(numbers[0] == first[0] for numbers in found)
    for a, b in ((first, found[0]), (first, found[1]), (found[0], found[1])):
        assert all(x != y for x, y in zip(a[1:], b[1:], strict=True))


def test_a_mixture_goes_on_with_other_weights_only_if_that_is_said(numbers: Path, tmp_path: Path) -> None:
    def made(weights: tuple[int, int]) -> tuple[shardload.ShardLoader, shardload.Checkpointer]:
        dataset, model = shardload.open(numbers), nn.Linear(1, 1)
        sources = {"low": (dataset[:500], weights[0]), "high": (dataset[500:], weights[1])}
        loader = shardload.ShardLoader(shardload.Mixture(sources), 8, shuffle=True, seed=2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return loader, shardload.Checkpointer(tmp_path, model=model, optimizer=optimizer, loader=loader)

    loader, checkpointer = made((3, 1))
    seen = [number for _, batch in zip(range(5), loader, strict=False) for number in batch["number"].tolist()]
    checkpointer.save(5)
    checkpointer.close()
    loader.close()
    loader, checkpointer = made((1, 1))
    with pytest.raises(StateMismatchError, match="reweigh=True"):
        checkpointer.restore()
    assert checkpointer.restore(reweigh=True) == 5
    later = [number for _, batch in zip(range(5), loader, strict=False) for number in batch["number"].tolist()]
    loader.close()
    assert len(set(seen + later)) == 80
    assert sum(number < 500 for number in seen) == 30 and sum(number < 500 for number in later) == 20
