"""Texts packed as tokens: the same bytes for any number of workers, and never two tokenizers in one dataset."""

from __future__ import annotations

import errno
import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
from killing import FailsAt
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

import shardload
from shardload.errors import PackError
from shardload.importers import tokens
from shardload.packing import pack

pytestmark = pytest.mark.usefixtures("quick_workers")


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of byte pairs with an end-of-text token, and beside it another one. Read only."""
    root = tmp_path_factory.mktemp("tokenizers")
    for name, size in (("words.json", 300), ("others.json", 310)):
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=["<end>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        made.train_from_iterator([" ".join(f"wörd{number}" for number in range(500))], trainer)
        made.save(str(root / name))
    return root / "words.json"


@pytest.mark.parametrize("kind", ["folder", "jsonl"])
def test_all_files_are_the_same_for_any_number_of_workers(
    tmp_path: Path, texts, rows, words, digests, kind: str
) -> None:
    source, unit_size = (texts, 20_000) if kind == "folder" else (rows, 60_000)
    options = {"tokenizer": words, "append_token": "<end>", "unit_size": unit_size, "shard_size": "24KiB"}
    numbers = (1, 2, 4) if kind == "folder" else (1, 4)
    summaries = [pack(source, tmp_path / f"{workers}", workers=workers, **options) for workers in numbers]
    taken = [digests(tmp_path / f"{workers}") for workers in numbers]
    assert all(one == taken[0] for one in taken) and summaries[0].num_units >= 4
    dataset = shardload.open(tmp_path / "4")
    reference = Tokenizer.from_file(str(words))
    if kind == "folder":
        expected = [(texts / path).read_text() for path in [sample["path"] for sample in dataset]]
    else:
        expected = [json.loads(line)["text"] for line in rows.read_text().splitlines()]
    ids = [[*reference.encode(text).ids, 0] for text in expected]
    assert [sample["tokens"].tolist() for sample in dataset] == ids
    assert dataset[0]["tokens"].dtype == np.uint16 and dataset.schema["tokens"].streamed
    assert summaries[0].num_tokens == sum(map(len, ids))
    assert summaries[0].note == f"uint16 by {words}, ids below 300, token 0 after each document"


def test_another_tokenizer_is_refused_in_a_continuation_and_an_append(tmp_path: Path, rows, words) -> None:
    tokenizer = tmp_path / "mine.json"
    tokenizer.write_bytes(words.read_bytes())
    options = {"tokenizer": tokenizer, "unit_size": 60_000, "shard_size": "24KiB", "workers": 1}
    target = tmp_path / "out"
    with pytest.raises(PackError, match="what was packed stays"):
        pack(rows, target, operations=FailsAt(60, errno.EIO), **options)
    tokenizer.write_bytes(words.with_name("others.json").read_bytes())
    with pytest.raises(
        PackError, match=r'option tokenizer was "sha256:[0-9a-f]{64}" when it was begun and is "sha256:'
    ):
        pack(rows, target, resume=True, **options)
    tokenizer.write_bytes(words.read_bytes())
    with pytest.raises(PackError, match='option append_token was "none" when it was begun and is 0 now'):
        pack(rows, target, resume=True, append_token=0, **options)
    with pytest.raises(PackError, match=r"option tokenizer was "):
        pack(rows, target, resume=True, **{**options, "tokenizer": "bytes"})
    assert pack(rows, target, resume=True, **options).num_samples == 2000
    whole = pack(rows, tmp_path / "whole", **options)
    assert shardload.open(target).fingerprint == whole.fingerprint
    assert pack(rows, target, append=True, **options).version == 2
    for wrong in ({"tokenizer": words.with_name("others.json")}, {"append_token": 0}):
        with pytest.raises(PackError, match="so that its samples would mean something else"):
            pack(rows, target, append=True, **{**options, **wrong})
    assert len(shardload.open(target)) == 4000


def test_metadata_tells_the_tokenizer(tmp_path: Path, texts, words) -> None:
    pack(texts, tmp_path / "out", tokenizer=words, append_token="<end>", workers=1)
    assert shardload.open(tmp_path / "out").metadata == {
        "append_token": 0,
        "classes": ["class0", "class1", "class2"],
        "prepend_token": "none",
        "tokenizer": f"sha256:{hashlib.sha256(words.read_bytes()).hexdigest()}",
        "vocabulary_size": 300,
    }


def test_bad_documents_are_set_aside(tmp_path: Path) -> None:
    source = tmp_path / "texts"
    source.mkdir()
    (source / "a.txt").write_bytes(b"good")
    (source / "b.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(PackError, match=r"b\.txt is not UTF-8: byte 0 is 0xff"):
        pack(source, tmp_path / "out", tokenizer="bytes", workers=1)
    assert not (tmp_path / "out").exists()
    summary = pack(source, tmp_path / "out", tokenizer="bytes", workers=1, on_error="reject")
    assert (summary.num_samples, summary.num_rejects, summary.num_tokens) == (1, 1, 4)
    (line,) = (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()
    assert json.loads(line)["place"] == f"{source}/b.txt"


def test_the_dictionary_of_what_stands_beside_needs_no_tokens(tmp_path: Path, rows, words, monkeypatch) -> None:
    """A first unit that is tokenized twice would double the time of a small pack."""
    read = []
    ids = tokens.TextEncoder.ids
    monkeypatch.setattr(
        tokens.TextEncoder, "ids", lambda self, text, dtype: read.append(text) or ids(self, text, dtype)
    )
    pack(rows, tmp_path / "out", tokenizer=words, workers=1)
    assert len(read) == 2000
    read.clear()
    schema = {"tokens": {"type": "uint16[*]", "compression": "zstd"}}
    pack(rows, tmp_path / "compressed", tokenizer=words, workers=1, schema=schema)
    assert len(read) == 4000 and not shardload.open(tmp_path / "compressed").schema["tokens"].streamed


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"append_token": 1}, ValueError, "append_token goes with tokenizer"),
        ({"text_key": "a"}, ValueError, "text_key goes with tokenizer"),
        (
            {"tokenizer": "bytes", "append_token": True},
            ValueError,
            "append_token must be the text of a token or its id",
        ),
        ({"tokenizer": "none.json"}, PackError, "the tokenizer none.json does not exist"),
    ],
)
def test_options_that_cannot_be(tmp_path: Path, texts, options, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=re.escape(message)):
        pack(texts, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
