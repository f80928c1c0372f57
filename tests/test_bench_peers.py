"""The comparison with other loaders counts nothing that did not deliver every sample, and picks the best packaged peer."""

from __future__ import annotations

import gc

import pytest

from bench import case_p4, own_arms, peers, workloads
from bench.__main__ import measure, text
from bench.peer_form import Arm, Samples

COUNT = 150


@pytest.fixture(params=[("tokens", None), ("text", None), ("text", 3), ("jpeg", None)], ids=lambda p: f"{p[0]}-{p[1]}")
def stored(request, tmp_path, monkeypatch):
    monkeypatch.setattr(workloads, "source_text", lambda: [f"line {number}\n" * 100 for number in range(7)])
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
    assert timed["numbers"] == expected["numbers"] and timed["seconds_a_sample"] > 0
    del loader
    gc.collect()


def test_another_byte_or_a_sample_twice_is_noticed(stored):
    samples, expected = stored
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


class Answers:
    """A process that gives these microseconds in turn, and fails when there are no more."""

    def __init__(self, *microseconds: float) -> None:
        self._left = list(microseconds)

    def ask(self, do: str) -> dict:
        assert do == "run"
        if not self._left:
            raise case_p4.ArmError("it stopped")
        facts = {"samples": 9, "numbers": "all", "first_seconds": 0.1}
        return facts | {"seconds_a_sample": self._left.pop(0) / 1e6}


def measured(arm: str, workers: int, *microseconds: float) -> case_p4.Measured:
    return case_p4.Measured(arm, workers, Answers(*microseconds), {"samples": 9, "numbers": "all"}, "some 1.0", 100)


def lines(tmp_path, *arms: case_p4.Measured) -> list[dict]:
    """The lines of tokens as the runner gives them."""
    (tmp_path / "samples.bin").write_bytes(bytes(100))
    made = case_p4.lines_of("tokens", list(arms), {"x, 0 workers": "not there"}, Samples(tmp_path, "tokens", None))
    return [{"case": "P4", "line": line.name} | measure(line, line.limits, 5) for line in made]


def test_the_best_is_a_packaged_peer_with_any_number_of_workers(tmp_path):
    ours = [measured("path 2", 0, *[2.0] * 10), measured("path 1", 0, *[4.0] * 10)]
    peers_ = [measured("datasets", 0, *[9.0] * 5), measured("datasets", 2, *[6.0] * 5)]
    first, second = lines(tmp_path, *ours, measured("np.memmap", 0, *[1.0] * 5), *peers_)
    assert (first["value"], first["facts"]["best"], first["at_least"]) == (3.0, "datasets, 2 workers", 5.0)
    assert first["arms"]["np.memmap, 0 workers"] == 1.0
    assert (second["line"], second["value"], second["at_least"]) == ("tokens, path 1 / 2", 0.5, 0.5)
    shown = text(first)
    assert "path 2 beside datasets, 2 workers" in shown
    assert "MISSING x, 0 workers: not there" in shown and "by hand" in shown


def test_a_peer_that_stops_in_the_middle_is_named_and_another_is_the_best(tmp_path):
    ours = [measured("path 2", 0, *[2.0] * 10), measured("path 1", 0, *[4.0] * 10)]
    first, _ = lines(tmp_path, *ours, measured("datasets", 0, *[9.0] * 5), measured("datasets", 2, *[6.0] * 4))
    assert (first["value"], first["facts"]["best"]) == (4.5, "datasets, 0 workers")
    assert first["facts"]["missing"] == {"x, 0 workers": "not there", "datasets, 2 workers": "it stopped"}


def test_our_own_arm_must_not_stop(tmp_path):
    with pytest.raises(case_p4.ArmError, match="it stopped"):
        lines(tmp_path, measured("path 2", 0, 2.0), measured("path 1", 0, *[4.0] * 10))


def test_an_epoch_that_lacks_a_sample_is_no_figure():
    one = measured("datasets", 0, 2.0)
    one.expected = {"samples": 9, "numbers": "others"}
    with pytest.raises(case_p4.ArmError, match="not each once"):
        one.run()


def test_without_a_packaged_peer_there_is_no_limit(tmp_path):
    ours = [measured("path 2", 0, *[2.0] * 10), measured("path 1", 0, *[3.0] * 10)]
    first, second = lines(tmp_path, *ours, measured("np.memmap", 0, *[9.0] * 5))
    assert (first["value"], first["at_least"], first["facts"]["best"]) == (1.5, None, None)
    assert "beside no packaged peer" in text(first)
    assert second["at_least"] == 0.5


def test_a_peer_that_is_not_there_is_named(stored, tmp_path, monkeypatch):
    class Absent(Arm):
        module = "no_such_loader"

    monkeypatch.setitem(case_p4.ARMS, "absent", Absent())
    with case_p4.Bench(tmp_path, *stored, []) as bench:
        with pytest.raises(case_p4.ArmError, match=r"no no_such_loader here: give --peers"):
            bench.start("absent", 0)
        bench.drop("absent", 0, case_p4.ArmError("why"))
    assert bench.missing == {"absent, 0 workers": "why"}
