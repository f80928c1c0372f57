"""The comparison with other loaders counts nothing that did not deliver every sample, and picks the best packaged peer."""

from __future__ import annotations

import gc
import types

import pytest

from bench import case_p4, own_arms, peers
from bench.peer_form import Arm, Samples

COUNT = 150


@pytest.fixture(params=[("tokens", None), ("text", None), ("text", 3), ("jpeg", None)], ids=lambda p: f"{p[0]}-{p[1]}")
def stored(request, tmp_path, monkeypatch):
    monkeypatch.setattr(case_p4, "source_text", lambda: [f"line {number}\n" * 100 for number in range(7)])
    samples = Samples(tmp_path / "raw", *request.param)
    return samples, case_p4.store(samples, COUNT)


# webdataset leaves its tars to be closed by the collector.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", own_arms.ARMS)
def test_an_arm_delivers_every_sample(name, stored, tmp_path):
    samples, expected = stored
    arm, target = own_arms.ARMS[name], str(tmp_path / "form")
    assert peers.write(arm, samples, target)["stored_bytes"] > 0
    loader = arm.loader(samples, target, 0)
    found = peers.check(loader, samples)
    assert {key: found[key] for key in expected} == expected
    assert found["full_batches"] == COUNT // samples.batch_size
    timed = peers.run(loader, samples.kind, 0)
    assert timed["numbers"] == expected["numbers"] and timed["microseconds"] > 0
    del loader
    gc.collect()


def test_another_byte_or_a_sample_twice_is_noticed(stored):
    samples, expected = stored
    if samples.level is not None:
        pytest.skip("the same samples as raw text")
    batch = list(samples.values())
    if samples.kind == "tokens":
        import torch

        batch = torch.stack([torch.from_numpy(row) for row in batch])
    assert {key: peers.check([batch], samples)[key] for key in expected} == expected
    changed = batch.clone() if samples.kind == "tokens" else [*batch]
    changed[5] = changed[5] + 1 if samples.kind == "tokens" else changed[5][:-1] + b"\xff"
    assert peers.check([changed], samples)["bytes"] != expected["bytes"]
    changed[5] = changed[6]
    assert peers.run([changed], samples.kind, 0)["numbers"] != expected["numbers"]


def test_an_epoch_read_ahead_of_its_clock_is_no_figure():
    with pytest.raises(ValueError, match="read ahead"):
        peers.run([[b"00000000"], [b"00000001"]], "text", 2)


def measured(arm: str, workers: int, microseconds: list[float]) -> case_p4.Measured:
    one = case_p4.Measured(arm, workers, None, "some 1.0", 100)
    one.microseconds, one.start_up = microseconds, [0.1] * len(microseconds)
    return one


def bench_of(*arms: case_p4.Measured) -> types.SimpleNamespace:
    return types.SimpleNamespace(arms=list(arms), missing={"x, 0 workers": "not there"}, facts=dict)


def test_the_best_is_a_packaged_peer_with_any_number_of_workers():
    ours = [measured("path 2", 0, [2.0] * 5), measured("path 1", 0, [4.0] * 5)]
    peer = [measured("np.memmap", 0, [1.0] * 5), measured("datasets", 0, [9.0] * 5), measured("datasets", 2, [6.0] * 5)]
    first, second = case_p4.lines_of("tokens", bench_of(*ours, *peer), 100)
    assert first["ratio"] == 3.0 and list(first["microseconds"]) == ["path 2", "datasets, 2 workers"] and first["claim"]
    assert second["ratio"] == 0.5
    shown = case_p4.text(first, lambda line: "head")
    assert "MISSING x, 0 workers: not there" in shown and "by hand" in shown


@pytest.mark.parametrize("times", [[6.0] * 4, [6.0, 6.0, 6.0, 9.0, 9.0]], ids=["few", "unsteady"])
def test_no_claim_from_few_or_unsteady_epochs(times):
    ours = [measured("path 2", 0, [2.0] * len(times)), measured("path 1", 0, [2.0] * len(times))]
    first, _ = case_p4.lines_of("tokens", bench_of(*ours, measured("datasets", 0, times)), 100)
    assert not first["claim"]


def test_without_a_packaged_peer_there_is_no_ratio():
    ours = [measured("path 2", 0, [2.0] * 5), measured("path 1", 0, [2.0] * 5)]
    first, _ = case_p4.lines_of("zstd text", bench_of(*ours, measured("np.memmap", 0, [9.0] * 5)), 100)
    assert "ratio" not in first and "no packaged peer" in case_p4.text(first, str)


def test_a_peer_that_is_not_there_is_named(stored, tmp_path, monkeypatch):
    class Absent(Arm):
        module = "no_such_loader"

    monkeypatch.setitem(case_p4.ARMS, "absent", Absent())
    with case_p4.Bench(tmp_path, *stored, []) as bench:
        with pytest.raises(case_p4.ArmError, match=r"no no_such_loader here: give --peers"):
            bench.start("absent", 0)
        bench.drop("absent", 0, case_p4.ArmError("why"))
    assert bench.missing == {"absent, 0 workers": "why"}
