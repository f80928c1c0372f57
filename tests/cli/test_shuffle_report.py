"""`shuffle-report`: the figures of the order that loaders have, in text, JSON and a picture."""

from __future__ import annotations

import json

import numpy as np
import pytest

import shardload
from shardload.cli import main


@pytest.fixture(scope="module")
def sorted_by_class(tmp_path_factory):
    """4,000 samples, sorted by one of 40 classes."""
    path = tmp_path_factory.mktemp("sorted") / "dataset"
    with shardload.ShardWriter(path, {"label": "str", "score": "float32"}, shard_size="16KiB") as writer:
        for i in range(4000):
            writer.write({"label": f"class {i // 100}", "score": 0.5})
    return path


def report(capsys, *words):
    assert main(["shuffle-report", *map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_figures_are_those_of_the_loader(sorted_by_class, capsys):
    words = ["--batch-size", 50, "--seed", 4, "--num-replicas", 2, "--label", "label", "--shuffle", "100x4"]
    facts = report(capsys, sorted_by_class, *words)
    assert facts["shuffle"] == "block(100x4)" and facts["num_positions"] == 4000
    found = []
    for rank in range(2):
        how = {"rank": rank, "num_replicas": 2, "shuffle": shardload.BlockShuffle(100, 4)}
        found += [
            len(set(batch["label"]))
            for batch in shardload.ShardLoader(shardload.open(sorted_by_class), 50, seed=4, **how)
        ]
    in_a_batch = facts["order"]["mixing"]["labels"] / facts["true_permutation"]["mixing"]["labels"]
    true = np.mean([len(np.unique(np.random.default_rng(i).permutation(4000)[:50] // 100)) for i in range(300)])
    assert in_a_batch == pytest.approx(np.mean(found) / true, rel=0.02)
    assert facts["order"]["num_missing"] == facts["order"]["num_repeated"] == 0
    assert facts["order"]["mixing"]["labels"] < 0.2 and facts["order"]["mixing"]["shards"] < 0.8
    assert 0.97 < facts["true_permutation"]["mixing"]["shards"] < 1.03


def test_text_for_people(sorted_by_class, capsys):
    assert main(["shuffle-report", str(sorted_by_class), "--shuffle", "none", "--max-positions", "1000"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "shuffle none, 4,000 samples, batches of 256" in lines[0]
    assert lines[1].split() == ["this", "order", "a", "true", "permutation"]
    assert not any("missing" in line for line in lines), "of a part of an epoch nobody knows"
    assert next(line for line in lines if "neighbours" in line).split()[-2] == "+1.0000"


def test_what_no_whole_batch_tells_is_left_out(sorted_by_class, capsys):
    assert main(["shuffle-report", str(sorted_by_class), "--max-positions", "100", "--batch-size", "1000"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "different shards" in line)
    assert line.split()[-2:] == ["-", "-"]


def test_a_picture(sorted_by_class, capsys, tmp_path):
    pytest.importorskip("matplotlib")
    assert (
        main(["shuffle-report", str(sorted_by_class), "--shuffle", "block", "--plot", str(tmp_path / "mixed.png")]) == 0
    )
    assert (tmp_path / "mixed.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["--shuffle", "random"], 2, "--shuffle must be full, block, none or sizes such as 1024x64, not 'random'"),
        (["--shuffle", "0x4"], 2, "--shuffle must be"),
        (["--label", "score"], 1, "'score' is no field of integers, bytes or str"),
        (["--label", "nothing"], 1, "'nothing' is no field"),
        (["--batch-size", "0"], 2, "0 is not in the range"),
    ],
)
def test_what_cannot_be(sorted_by_class, capsys, words, status, message):
    assert main(["shuffle-report", str(sorted_by_class), *words]) == status
    assert message in capsys.readouterr().err


def test_a_dataset_of_one_sample(tmp_path, capsys):
    with shardload.ShardWriter(tmp_path / "one", {"a": "int8"}) as writer:
        writer.write({"a": 1})
    assert main(["shuffle-report", str(tmp_path / "one")]) == 2
    assert "nothing to mix" in capsys.readouterr().err
