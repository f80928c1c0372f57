"""Packs in a permuted order: a true permutation, the same bytes however they come about, and classes that are mixed."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faults import in_child
from killing import Counted, FailsAt, KilledAt
from scenarios import every
from scipy import stats

import shardload
from shardload.errors import PackError
from shardload.importers import MAX_SEED
from shardload.order import Permutation
from shardload.packing import Progress, pack
from shardload.writer.prune import prune

pytestmark = pytest.mark.usefixtures("quick_workers")

LAST_EPOCH = 2**63 - 1


def permuted(samples: list[Any], seed: int) -> list[Any]:
    order = Permutation(len(samples), seed=seed, epoch=LAST_EPOCH).sample_ids(np.arange(len(samples)))
    return [samples[i] for i in order.tolist()]


@pytest.fixture(scope="module")
def many_kinds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A JSON Lines file with a value of every kind that JSON can give. Read only."""
    path = tmp_path_factory.mktemp("kinds") / "rows.jsonl"
    words = random.Random(5)
    with path.open("w") as file:
        for number in range(400):
            sample = {
                "id": number,
                "text": "wörd " * words.randrange(80),
                "tree": {"a": [number, None, 1.5e300, "é"], "b": {}} if number % 3 else None,
                "ids": [words.randrange(2**16) for _ in range(words.randrange(40))],
                "wide": [words.random() for _ in range(64)],
                "half": number % 250 / 8,
                "flag": bool(number % 2),
                "tags": ["a", "", "ü"][: number % 4],
            }
            file.write(json.dumps(sample) + "\n")
    return path


KINDS = {
    "id": "uint16",
    "text": "str",
    "tree": "json?",
    "ids": "uint16[*]",
    "wide": "float64[64]",
    "half": "bfloat16",
    "flag": "bool",
    "tags": "str[*]",
}


def comparable(sample: dict[str, Any]) -> dict[str, Any]:
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in sample.items()}


@pytest.mark.parametrize("compression", ["zstd:3", "none"])
def test_a_keyed_permutation_of_all_samples_for_any_number_of_workers(
    tmp_path: Path, many_kinds: Path, digests, compression: str
) -> None:
    options = {"schema": KINDS, "compression": compression, "unit_size": 90_000, "shard_size": "48KiB", "key": "id"}
    pack(many_kinds, tmp_path / "plain", workers=1, **options)
    taken = []
    for workers in (1, 2, 4) if compression == "none" else (1,):
        summary = pack(many_kinds, tmp_path / f"{workers}", workers=workers, shuffle=7, **options)
        taken.append(digests(tmp_path / f"{workers}"))
    assert all(one == taken[0] for one in taken) and not any(".work" in name for name in taken[0])
    plain, shuffled = shardload.open(tmp_path / "plain"), shardload.open(tmp_path / "1")
    expected = permuted([comparable(sample) for sample in plain], 7)
    assert [comparable(sample) for sample in shuffled] == expected
    assert [sample["id"] for sample in expected] != sorted(sample["id"] for sample in expected)
    assert shuffled.metadata == {"shuffle_seed_1": 7} and shuffled.schema == plain.schema
    assert shuffled.manifest.generations[-1].num_units >= 3
    assert shuffled.find(expected[5]["id"]) == 5
    assert summary.source_bytes == many_kinds.stat().st_size and summary.num_samples == 400
    assert summary.stored_bytes <= 1.1 * plain.manifest.num_bytes


def test_tokens_and_folders(tmp_path: Path, texts: Path) -> None:
    options = {"tokenizer": "bytes", "append_token": 256, "unit_size": 10_000, "workers": 1}
    plain = pack(texts, tmp_path / "plain", **options)
    told: list[Progress] = []
    shuffled = pack(texts, tmp_path / "shuffled", shuffle=MAX_SEED, progress=told.append, **options)
    assert shuffled.num_tokens == plain.num_tokens and shuffled.note == plain.note
    assert (shuffled.num_units, shuffled.source_bytes) == (plain.num_units, plain.source_bytes)
    expected = permuted([comparable(sample) for sample in shardload.open(tmp_path / "plain")], MAX_SEED)
    dataset = shardload.open(tmp_path / "shuffled")
    assert [comparable(sample) for sample in dataset] == expected
    assert dataset.metadata["classes"] == ["class0", "class1", "class2"] and dataset.metadata["tokenizer"] == "bytes"
    assert not [name for name in held_files() if "unshuffled" in name]
    stages = list(dict.fromkeys(progress.stage for progress in told))
    assert stages == ["packing", "shuffling"] and told[-1].fraction == 1 and told[-1].done.num_samples == 300


def held_files() -> list[str]:
    """Returns what this process has mapped and open: removed files among them still take their room."""
    links = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
    opened = [os.readlink(link) for link in links if os.path.lexists(link)]
    return [*Path("/proc/self/maps").read_text().splitlines(), *opened]


def test_class_sorted_input_is_mixed(tmp_path: Path) -> None:
    """Q3 of the design: distinct labels in a batch that is read in order, over those in one drawn at random."""
    classes, each, batch = 100, 40, 64
    path = tmp_path / "sorted.jsonl"
    path.write_text("".join(f'{{"label": {number // each}}}\n' for number in range(classes * each)))
    plain = pack(path, tmp_path / "plain", workers=1, compression="none")
    expected = classes * (1 - stats.hypergeom.pmf(0, classes * each, each, batch))
    assert distinct(tmp_path / "plain", batch) / expected < 0.1
    p_values = []
    for seed in range(6):
        summary = pack(path, tmp_path / f"{seed}", workers=1, compression="none", shuffle=seed)
        assert 0.97 <= distinct(tmp_path / f"{seed}", batch) / expected <= 1.03
        assert summary.stored_bytes <= 1.1 * plain.stored_bytes
        labels = shardload.open(tmp_path / f"{seed}").column("label")
        table = np.zeros((10, 10))
        np.add.at(table, (np.arange(len(labels)) * 10 // len(labels), labels // (classes // 10)), 1)
        p_values.append(stats.chi2_contingency(table).pvalue)
        p_values.append(stats.spearmanr(labels[1:], labels[:-1]).pvalue)
    assert stats.kstest(p_values, "uniform").pvalue > 1e-3


def distinct(target: Path, batch: int) -> float:
    labels = shardload.open(target).column("label")
    return float(np.mean([len(set(labels[start : start + batch])) for start in range(0, len(labels), batch)]))


NUM_SAMPLES, NUM_REJECTS = 21, 9


@pytest.fixture(scope="module")
def dirty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two units with rejects, each of which becomes several parts. Read only."""
    path = tmp_path_factory.mktemp("dirty") / "rows.jsonl"
    words = random.Random(4)
    with path.open("w") as file:
        for number in range(30):
            bad = {5: "{", 6: "[1]", 9: '{"a": "x", "text": ""}'}.get(number % 10)
            file.write((bad or json.dumps({"a": number, "text": words.randbytes(400).hex()})) + "\n")
    return path


def options(source: Path, **more: Any) -> dict[str, Any]:
    usual = {"unit_size": source.stat().st_size // 2 + 1, "shard_size": "9KiB", "compression": "none", "workers": 1}
    schema = {"a": "int64", "text": "str"}
    return usual | {"on_error": "reject", "schema": schema, "shuffle": 3, "operations": Counted()} | more


# tools/test --slow tests/packing/test_shuffle.py -k killed
@pytest.mark.parametrize("step", [43, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_at_operations_of_either_pass(tmp_path: Path, dirty: Path, digests, step: int) -> None:
    whole, operations = tmp_path / "whole", Counted()
    pack(dirty, whole, **options(dirty, operations=operations))
    expected = digests(whole)
    assert len(json.loads((whole / "packed.json").read_text())) and "rejects.jsonl" in expected
    kinds = set()
    for number in every(range(1, operations.count + 1), step):
        target = tmp_path / f"{number}"
        killed = lambda at=number, to=target: pack(dirty, to, **options(dirty, operations=KilledAt(at)))  # noqa: E731
        assert in_child(killed, group=True) == -signal.SIGKILL
        unshuffled = target / ".work" / "unshuffled"
        kinds.add((unshuffled / "manifest.json").exists() if unshuffled.exists() else None)
        workers = 2 if number % 50 == 0 else 1
        summary = pack(dirty, target, resume=True, **options(dirty, workers=workers))
        assert (summary.num_samples, summary.num_rejects) == (NUM_SAMPLES, NUM_REJECTS)
        assert digests(target) == expected, number
        shutil.rmtree(target)
    assert kinds == {True, False, None}, operations.count


def test_an_unfinished_one_is_continued_as_it_was_begun(tmp_path: Path, dirty: Path, digests) -> None:
    pack(dirty, tmp_path / "whole", **options(dirty))
    count = Counted()
    pack(dirty, tmp_path / "count", **options(dirty, operations=count))
    for number in (count.count // 3, 2 * count.count // 3):
        target = tmp_path / f"{number}"
        with pytest.raises(PackError, match="Input/output error") as caught:
            pack(dirty, target, **options(dirty, operations=FailsAt(number, errno.EIO)))
        assert str(caught.value).count("what was packed stays: go on with the same command and --continue") == 1
        with pytest.raises(
            PackError, match="exists and holds what an unfinished pack left: go on with the same command"
        ):
            pack(dirty, target, **options(dirty))
        with pytest.raises(PackError, match="option shuffle was 3 when it was begun and is 4 now"):
            pack(dirty, target, resume=True, **options(dirty, shuffle=4))
        with pytest.raises(PackError, match="option shuffle was 3 when it was begun and is null now"):
            pack(dirty, target, resume=True, **options(dirty, shuffle=None))
        with pytest.raises(PackError, match="rejects were set aside before: continue with --on-error reject"):
            pack(dirty, target, resume=True, **options(dirty, on_error="raise"))
        pack(dirty, target, resume=True, **options(dirty))
        assert digests(target) == digests(tmp_path / "whole")
        assert pack(dirty, target, resume=True, **options(dirty)).num_workers == 0


def test_rejects_are_those_of_the_source(tmp_path: Path, dirty: Path) -> None:
    plain = pack(dirty, tmp_path / "plain", **options(dirty, shuffle=None))
    shuffled = pack(dirty, tmp_path / "shuffled", **options(dirty))
    assert plain.num_rejects == shuffled.num_rejects == NUM_REJECTS
    assert (tmp_path / "plain" / "rejects.jsonl").read_bytes() == (tmp_path / "shuffled" / "rejects.jsonl").read_bytes()
    one_shard = {"shard_size": "256MiB", "unit_size": "1MiB"}
    with pytest.raises(PackError, match="line 6: broken JSON"):
        pack(dirty, tmp_path / "no", **options(dirty, on_error="raise", **one_shard))
    with pytest.raises(PackError, match="at most 4 may be set aside"):
        pack(dirty, tmp_path / "many", **options(dirty, max_rejects=4, **one_shard))
    empty = tmp_path / "empty.jsonl"
    empty.write_text("{\n")
    with pytest.raises(PackError, match="holds no sample to pack: everything in it was rejected"):
        pack(empty, tmp_path / "no", **options(empty))
    assert not (tmp_path / "no").exists()


def test_append_and_replace(tmp_path: Path, many_kinds: Path) -> None:
    target = tmp_path / "out"
    usual = {"schema": KINDS, "workers": 1, "unit_size": 150_000}
    pack(many_kinds, target, **usual)
    assert pack(many_kinds, target, append=True, shuffle=5, **usual).version == 2
    samples = [sample["id"] for sample in shardload.open(target)]
    assert samples[:400] == list(range(400)) and samples[400:] == permuted(list(range(400)), 5)
    pack(many_kinds, target, replace=True, shuffle=5, **usual)
    assert [sample["id"] for sample in shardload.open(target)] == permuted(list(range(400)), 5)
    assert shardload.open(target).metadata == {"shuffle_seed_3": 5}
    rows = tmp_path / "double.jsonl"
    rows.write_text('{"a": 1}\n' + '{"a": 2}\n' * 2)
    with pytest.raises(PackError, match="its key \\(field 'a'\\) is that of an earlier sample"):
        pack(rows, tmp_path / "double", shuffle=1, key="a", workers=1)
    assert not (tmp_path / "double").exists()


def test_a_copy_that_was_damaged_meanwhile_is_named(tmp_path: Path, dirty: Path) -> None:
    count = Counted()
    pack(dirty, tmp_path / "count", **options(dirty, operations=count))
    target = tmp_path / "out"
    with pytest.raises(PackError):
        pack(dirty, target, **options(dirty, operations=FailsAt(2 * count.count // 3, errno.EIO)))
    for shard in (target / ".work" / "unshuffled" / "shards").iterdir():
        data = bytearray(shard.read_bytes())
        data[4200] ^= 1
        shard.write_bytes(data)
    for workers in (1, 2):
        with pytest.raises(
            PackError, match=r"\(sample \d+\); .* begin again with --replace .*, or remove .*/\.work to give it up$"
        ):
            pack(dirty, target, resume=True, **options(dirty, workers=workers))
    shutil.rmtree(target / ".work" / "unshuffled" / "tables")
    with pytest.raises(PackError, match=r"tables/.* begin again with --replace .*, or remove .*/\.work to give it up$"):
        pack(dirty, target, resume=True, **options(dirty))
    assert not (target / "manifest.json").exists()
    shardload.pack(dirty, target, **options(dirty, replace=True))
    assert len(shardload.open(target)) == NUM_SAMPLES and os.listdir(target / "shards")


def test_prune_removes_an_unfinished_copy(tmp_path: Path, dirty: Path) -> None:
    target = tmp_path / "out"
    pack(dirty, target, **options(dirty))
    count = Counted()
    pack(dirty, tmp_path / "count", **options(dirty, operations=count))
    with pytest.raises(PackError):
        pack(dirty, target, replace=True, **options(dirty, operations=FailsAt(2 * count.count // 3, errno.EIO)))
    with pytest.raises(PackError, match="holds an unfinished pack"):
        prune(target)
    prune(target, unfinished=True)
    assert not (target / ".work").exists() and len(shardload.open(target)) == NUM_SAMPLES


@pytest.mark.parametrize("seed", [-1, MAX_SEED + 1, True, 1.5, "1"])
def test_seeds_that_cannot_be(tmp_path: Path, dirty: Path, seed: Any) -> None:
    with pytest.raises(ValueError, match=re.escape("shuffle must be ")):
        pack(dirty, tmp_path / "out", shuffle=seed)
