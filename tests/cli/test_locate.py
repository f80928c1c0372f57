"""`locate` against what real loaders delivered, and the bytes that it tells against the files."""

from __future__ import annotations

import json
import struct
from collections import defaultdict

import pytest
from samples import expected_everything, write_everything
from states import rewritten

import shardload
from shardload.cli import main

BLOCKS = shardload.BlockShuffle(10, 5)


def located(capsys, *words):
    assert main(["locate", *map(str, words), "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def seats(facts):
    names = ("step", "epoch", "position", "rank", "slot", "sample_id")
    return [tuple(one[name] for name in names) for one in facts["samples"]]


class Training:
    """Ranks that train in turn, and all that they were given, by step; a resume takes back what came after its state."""

    def __init__(self, dataset, log, **how):
        self.dataset, self.log, self.how = dataset, log, how
        self.steps = []

    def go(self, num_steps, batch_size, num_replicas, state=None, at=None, **resumed):
        """Trains so many steps, over ends of epochs, and returns the state after them."""
        loaders = [
            shardload.ShardLoader(
                self.dataset, batch_size, rank=rank, num_replicas=num_replicas, with_ids=True, **self.how
            )
            for rank in range(num_replicas)
        ]
        if state is not None:
            for loader in loaders:
                loader.load_state_dict(state, **resumed)
            self.steps = self.steps[:at]
        for loader in loaders:
            loader.log_to(self.log)
        end = len(self.steps) + num_steps
        while len(self.steps) < end:
            for batches in zip(*loaders, strict=True):
                here = []
                for rank, batch in enumerate(batches):
                    columns = (batch[name].tolist() for name in ("_epoch", "_position", "_sample_id"))
                    rows = [row for row in zip(*columns, strict=True) if row[2] >= 0]
                    here += [(e, p, rank, slot, i) for slot, (e, p, i) in enumerate(rows)]
                names = ("epoch", "position", "rank", "slot", "sample_id")
                told = loaders[0].locate(len(loaders[0]) - loaders[0].remaining - 1)
                assert list(zip(*(told[name].tolist() for name in names), strict=True)) == here
                self.steps.append(here)
                if len(self.steps) == end:
                    break
        state = loaders[2 % num_replicas].state_dict()
        for loader in loaders:
            loader.close()
        return state

    def check_log(self, capsys):
        """Compares all steps with what `locate` says of the run log."""
        facts = located(capsys, self.dataset.location, "--run-log", self.log, "--step", f"0:{len(self.steps)}")
        expected = [(n, e, p, r, s, i) for n, step in enumerate(self.steps) for e, p, r, s, i in step]
        assert seats(facts) == expected
        by_sample = defaultdict(list)
        for row in expected:
            by_sample[row[-1]].append(row)
        for sample_id in (0, 17, 500, 1002):
            seen = seats(located(capsys, self.dataset.location, "--run-log", self.log, "--sample", sample_id))
            # The epoch under way is told to its end.
            assert [row for row in seen if row[0] < len(self.steps)] == by_sample[sample_id]
        return facts


@pytest.mark.parametrize(
    ("shuffle", "tail"), [(True, "drop"), (BLOCKS, "carry"), (False, "pad"), (True, "mask"), (BLOCKS, "short")], ids=str
)
def test_steps_of_three_ranks_and_of_resumes(numbers, tmp_path, capsys, shuffle, tail):
    dataset, file = shardload.open(numbers), tmp_path / "state.json"
    training = Training(dataset, tmp_path / "run.jsonl", shuffle=shuffle, seed=5, tail=tail)
    # 1,003 samples are 27 batches of 36 and a rest.
    state = training.go(40, 12, 3)
    file.write_text(json.dumps({"model": [1], "data": [{"loader": state, "shardload": 7}]}))
    training.go(30, 50, 2, state)
    # The loss went up: back to the state, over the stretch, with another seed, on one rank.
    skipped = len(training.steps[40]) + len(training.steps[41])
    training.go(25, 64, 1, state, at=40, skip_samples=skipped, reseed=9)
    facts = training.check_log(capsys)
    assert {one["tail"] for one in facts["stretches"]} == {tail} and facts["stretches"][-1]["reseeds"][0]["seed"] == 9
    # From the state alone, and from nothing but the numbers, what a run has that never stopped.
    plain = Training(dataset, tmp_path / "plain.jsonl", shuffle=shuffle, seed=5, tail=tail)
    plain.go(100, 12, 3)
    split = ["--batch-size", 12, "--num-replicas", 3, "--tail", tail]
    ahead = [(n, *seat) for n, step in enumerate(plain.steps[40:]) for seat in step]
    whole = [(n, *seat) for n, step in enumerate(plain.steps) for seat in step]
    assert seats(located(capsys, numbers, "--state", file, *split, "--step", "0:60")) == ahead
    some = located(capsys, numbers, "--state", file, *split, "--step", 7, "--rank", 1)
    assert seats(some) == [seat for seat in ahead if seat[0] == 7 and seat[3] == 1]
    name = "10x5" if shuffle == BLOCKS else "full" if shuffle else "none"
    split += ["--shuffle", name, "--seed", 5]
    assert seats(located(capsys, numbers, *split, "--step", "0:100")) == whole
    for sample_id in (3, 700):
        first = next(row for row in whole if row[-1] == sample_id)
        assert seats(located(capsys, numbers, *split, "--sample", sample_id))[0] == first
        first = next(row for row in ahead if row[-1] == sample_id)
        assert seats(located(capsys, numbers, "--state", file, *split[:6], "--sample", sample_id))[0] == first


def test_the_bytes_are_those_of_the_sample(tmp_path, capsys):
    """Of two generations: what lies at the ranges is what the values are made of."""
    path = write_everything(tmp_path / "dataset", shard_size="16KiB")
    facts = located(capsys, path, "--shuffle", "none", "--step", 0, "--batch-size", 28)
    assert [one["key"] for one in facts["samples"]] == [f"sample-{i}" for i in range(28)]
    assert len({one["shard"] for one in facts["samples"]}) > 2
    for one, sample in zip(facts["samples"], expected_everything(), strict=True):
        data = (path / one["shard"]).read_bytes()
        found = {
            (r["kind"], *r["fields"][: r["kind"] in ("wide", "stream")]): data[r["start"] : r["stop"]]
            for r in one["ranges"]
        }
        assert struct.pack("<h", sample["label"]) in found["row",]
        for name in ("image", "data"):
            assert (sample[name] or b"") in found["record",]
        for name in ("tokens", "frames", "words"):
            expected = b"" if sample[name] is None else sample[name].tobytes()
            assert found.get(("stream", name), b"") == expected
        if sample["vector"] is not None:
            assert found["wide", "vector"] == sample["vector"].tobytes()
        assert ("wide", "vector") in found or one["sample_id"] < 14
        inside = {name for r in one["ranges"] for name in r["fields"]}
        empty = {name for name in ("tokens", "frames", "words") if not len(found.get(("stream", name), b""))}
        assert inside | empty >= (
            set(shardload.open(path).schema) if one["sample_id"] >= 14 else {"id", "label", "box"}
        )
    assert [place.sample_id for place in shardload.open(path).places([9, 2, 9, -1])] == [9, 2, 9, 27]
    assert shardload.open(path).places([]) == []


def test_text_for_people(tmp_path, capsys):
    path = write_everything(tmp_path / "dataset")
    words = ["--seed", "3", "--step", "1", "--batch-size", "3", "--num-replicas", "2"]
    assert main(["locate", str(path), *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("dataset: 28 samples")
    assert lines[1] == "steps 0 on: from epoch 0, position 0: shuffle full, seed 3, batches of 3 on 2 ranks, tail drop"
    assert lines[2].split() == ["step", "epoch", "position", "rank", "slot", "sample", "key", "shard", "bytes"]
    assert len(lines) == 9 and all(
        line.split()[0] == "1" and "sample-" in line and "row " in line for line in lines[3:]
    )
    ids = shardload.ShardLoader(shardload.open(path), 3, shuffle=True, seed=3, num_replicas=2, rank=0).locate(1)
    assert [int(line.split()[5]) for line in lines[3:]] == ids["sample_id"].tolist()
    assert main(["locate", str(path), "--key", "sample-17", "--json"]) == 0
    assert [one["sample_id"] for one in json.loads(capsys.readouterr().out)["samples"]] == [17]
    assert main(["locate", str(path), "--key", "sample-99"]) == 2
    assert "no sample with the key 'sample-99'" in capsys.readouterr().err
    # Of a damaged sample everything is told but its key.
    first = shardload.open(path).places([0])[0]
    record = next(one for one in first.ranges if one.kind == "record")
    data = bytearray((path / first.shard).read_bytes())
    data[record.stop - 1] ^= 1
    (path / first.shard).write_bytes(data)
    assert main(["locate", str(path), "--sample", "0", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["samples"][0]["key"] is None and facts["samples"][0]["local_id"] == 0


def test_keys_that_are_numbers(tmp_path, capsys):
    with shardload.ShardWriter(tmp_path / "keyed", {"id": "int16", "text": "str"}, key="id") as writer:
        for i in range(20):
            writer.write({"id": 100 - i, "text": "a"})
    assert main(["locate", str(tmp_path / "keyed"), "--key", "93", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["samples"][0]
    assert (found["sample_id"], found["key"]) == (7, 93)
    for wrong, message in (
        ("9x", "is no key: the field id is int16"),
        ("99999", "is no key"),
        ("3", "no sample with the key"),
    ):
        assert main(["locate", str(tmp_path / "keyed"), "--key", wrong]) == 2
        assert message in capsys.readouterr().err


def test_a_dataset_that_was_added_to(tmp_path, capsys):
    path, file = tmp_path / "dataset", tmp_path / "state.json"
    for first in (0, 20):
        with shardload.ShardWriter(path, None if first else {"id": "int16"}, append=bool(first)) as writer:
            for i in range(20):
                writer.write({"id": first + i})
        if not first:
            file.write_text(json.dumps(shardload.ShardLoader(shardload.open(path), 4, shuffle=True).state_dict()))
    words = ["--state", file, "--batch-size", 4, "--step", 2]
    assert main(["locate", str(path), *map(str, words)]) == 1
    assert "another version of it (--version)" in capsys.readouterr().err
    loader = shardload.ShardLoader(shardload.open(path, version=1), 4, shuffle=True)
    found = [one["sample_id"] for one in located(capsys, path, *words, "--version", 1)["samples"]]
    assert found == loader.locate(2)["sample_id"].tolist()


def test_a_sample_that_never_comes(numbers, capsys):
    words = ["--shuffle", "none", "--batch-size", "100", "--tail", "drop", "--sample", "1002"]
    assert main(["locate", str(numbers), *words]) == 0
    assert "sample 1002 is in no step of 16 epochs from there on" in capsys.readouterr().out
    assert main(["locate", str(numbers), *words[:-1], "17", "--position", "18", "--json"]) == 0
    # The place is past it in this epoch: it comes in the next one.
    assert [(one["epoch"], one["step"]) for one in json.loads(capsys.readouterr().out)["samples"]] == [(1, 9)]


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["--step", "3"], 2, "say --batch-size too"),
        (["--step", "5:5", "--batch-size", "4"], 2, "has no step"),
        (["--step", "-1", "--batch-size", "4"], 2, "must be a number from 0, or START:STOP, not '-1'"),
        (["--step", "1", "--sample", "4"], 2, "leave all but one out"),
        (["--key", "4"], 2, "was written without a key: say --sample"),
        (["--epoch", str(1 << 61)], 2, "is not in the range"),
        (["--num-replicas", str(1 << 40), "--tail", "pad", "--sample", "4"], 2, "is not in the range"),
        (["--step", "0:999999999999", "--batch-size", "400"], 2, "more than 1,000,000 samples"),
        (["--sample", "1003"], 2, "there is no sample 1003"),
        (["--position", "1003"], 2, "--position 1003 is not in an epoch of 1,003 samples"),
        (["--batch-size", "2000"], 1, "do not fill one global batch"),
        (["--rank", "2", "--num-replicas", "2"], 2, "there is no rank 2 of 2 ranks"),
        (["--shuffle", "none", "--num-replicas", "2"], 2, "say --tail"),
        (["--shuffle", "some"], 2, "--shuffle must be full"),
        (["--state", "STATE", "--run-log", "LOG"], 2, "both tell the order"),
        (["--state", "STATE", "--seed", "1"], 2, "--state tells what --seed tells"),
        (["--run-log", "LOG", "--batch-size", "4"], 2, "--run-log tells what --batch-size tells"),
        (["--state", "/nowhere"], 1, "/nowhere: No such file"),
        (["--run-log", "/nowhere"], 1, "/nowhere: No such file"),
    ],
)
def test_what_cannot_be(numbers, capsys, words, status, message):
    assert main(["locate", str(numbers), *words]) == status
    assert message in capsys.readouterr().err


def test_states_that_cannot_be(numbers, mixed, tmp_path, capsys):
    file = tmp_path / "state"
    dataset = shardload.open(numbers)

    def told(content):
        file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        assert main(["locate", str(numbers), "--state", str(file)]) == 1
        return capsys.readouterr().err

    good = shardload.ShardLoader(dataset, 4, shuffle=True).state_dict()
    assert "is no JSON: of a checkpoint, save the state alone" in told(b"PK\x03\x04")
    assert "is no JSON" in told(b"[" * 100_000)
    assert "has no states of shardload" in told({"step": 4})
    assert "has 2 states" in told([good, shardload.ShardLoader(dataset, 4, shuffle=False).state_dict()])
    assert "changed after it was saved" in told({"shardload": good["shardload"].replace('"epoch": 0', '"epoch": 1')})
    assert "larger than any state" in told(b" " * (2 << 20))
    assert "or a view?" in told(shardload.ShardLoader(dataset[:500], 4, shuffle=True).state_dict())
    assert "fingerprint" in told(shardload.ShardLoader(shardload.open(mixed), 4, shuffle=True).state_dict())
    other = rewritten(good, shuffle="packed(2048x64)")
    assert "kind 'packed(2048x64)' is none of single samples" in told(other)
    assert "does not exist" in told(rewritten(good, position=2000))


def test_a_log_that_a_crash_cut(numbers, tmp_path, capsys):
    log = tmp_path / "run.jsonl"
    training = Training(shardload.open(numbers), log, shuffle=True, seed=1)
    state = training.go(5, 10, 2)
    with log.open("ab") as file:
        file.write(b'{"run_log": 1, "shardl')
    assert main(["locate", str(numbers), "--run-log", str(log), "--step", "4"]) == 0
    output = capsys.readouterr()
    assert output.err == f"shardload: warning: {log}: line 2 is not whole and is passed over\n"
    assert len(output.out.splitlines()) == 3 + 20
    # What is written after it is a line of its own.
    training.go(5, 4, 2, state)
    assert [json.loads(line)["after"] for i, line in enumerate(log.read_bytes().splitlines()) if i != 1] == [
        None,
        [0, 100],
    ]
    training.check_log(capsys)


def test_logs_that_cannot_be(numbers, mixed, tmp_path, capsys):
    log = tmp_path / "run.jsonl"
    state = Training(shardload.open(numbers), log, shuffle=True).go(3, 10, 1)
    line = json.loads(log.read_text())

    def told(*lines):
        log.write_text("".join(json.dumps(one) + "\n" for one in lines))
        assert main(["locate", str(numbers), "--run-log", str(log)]) == 1
        return capsys.readouterr().err

    assert "there is no start in it" in told()
    assert "line 1 is no line of a run log" in told(state)
    assert "is of version 2" in told(line | {"run_log": 2})
    for name, value in (
        ("batch_size", 0),
        ("position", 2000),
        ("tail", "all"),
        ("after", [1]),
        ("seed", -1),
        ("reseeds", [[1]]),
    ):
        assert "line 2 does not say what a start says" in told(line, line | {name: value})
    assert "line 2: it goes on from position 7 of epoch 0" in told(line, line | {"after": [0, 7]})
    assert "do two runs share this file" in told(line, line | {"after": [0, 10], "shuffle": False})
    assert "or a view?" in told(line | {"fingerprint": "0" * 64})
    assert "kind 'mixture'" in told(line | {"shuffle": "mixture"})
    # A run that began anew does not care for what came before it.
    assert "kind 'mixture'" in told(line | {"after": [3, 7]}, line | {"shuffle": "mixture"})
    assert "no sample 1003" in told(line | {"exclude": [{"ids": [[1000, 1004]]}]})
    assert "what is left out is" in told(line | {"exclude": [[3]]})


def test_a_run_log_is_one_line_a_start(numbers, tmp_path):
    log = tmp_path / "run.jsonl"
    loader = shardload.ShardLoader(shardload.open(numbers), 100, shuffle=True)
    loader.log_to(log)
    for _ in loader:
        pass
    for _ in loader:
        break
    loader.load_state_dict(loader.state_dict(), skip_samples=50, reseed=4)
    next(iter(loader))
    loader.close()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(one["epoch"], one["position"], one["after"]) for one in lines] == [
        (0, 0, None),
        (1, 0, [0, 1003]),
        (1, 150, [1, 100]),
    ]
    assert lines[0] == lines[1] | {"epoch": 0, "position": 0, "after": None} and lines[2]["reseeds"] == [[1, 150, 4]]
    assert lines[0]["shardload"] == shardload.__version__ and lines[0]["batch_size"] == 100
