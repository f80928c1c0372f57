from __future__ import annotations

import gzip
import io
import json
import pickle
import re
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import zstandard
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

from shardload.errors import PackError
from shardload.importers import Reject, Tokenization, open_source, tokenizer, whole

TEXTS = {"a.txt": "one two two", "b/c.py": "def f():\n    return 'é'\n", "d.md": "", "e.txt": "<end> three"}
WORDS = ["<unk>", "one", "two", "three", "def", "f", "():", "return", "'", "é", "<start>"]


def word_tokenizer(path: Path, last_id: int = 20, **model: object) -> Tokenizer:
    """Writes a file with all that would spoil a stream: truncation, padding and a template. Returns what it is without."""
    vocabulary = {word: number for number, word in enumerate(WORDS)} | {"rare": last_id}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_special_tokens([AddedToken("<end>", special=True), AddedToken("<start>", special=True)])
    clean = Tokenizer.from_str(made.to_str())
    special = [(name, made.token_to_id(name)) for name in ("<start>", "<end>")]
    made.post_processor = processors.TemplateProcessing(single="<start> $A <end>", special_tokens=special)
    made.enable_truncation(2)
    made.enable_padding(length=9)
    stored = json.loads(made.to_str())
    stored["model"] |= model
    path.write_text(json.dumps(stored))
    return clean


@pytest.fixture
def read(tree):
    """Reads a whole source as tokens: the plan, and all items."""

    def take(*paths, tokenizer="bytes", types=None, unit_size=None, token_field="", include=(), **wanted):
        source = open_source(paths, include, (), Tokenization(str(tokenizer), **wanted), token_field)
        plan = source.plan(types, unit_size)
        reader = pickle.loads(pickle.dumps(plan.reader))
        return plan, [item for unit in plan.units for item in reader.read(unit)]

    return take


def texts_of(root: str) -> list[str]:
    return [str(path.relative_to(root)) for path in sorted(Path(root).rglob("*")) if path.is_file()]


def test_bytes_of_utf_8(tree, read) -> None:
    root = tree({name: text.encode() for name, text in TEXTS.items()})
    plan, items = read(root)
    assert plan.types == {"tokens": "uint8[*]", "path": "str"} and plan.versions == {}
    assert plan.metadata == {
        "append_token": "none",
        "prepend_token": "none",
        "tokenizer": "bytes",
        "vocabulary_size": 256,
    }
    for item, name in zip(items, sorted(TEXTS), strict=True):
        assert item.values["path"] == name and item.values["tokens"].dtype == np.uint8
        assert bytes(item.values["tokens"]).decode() == TEXTS[name]
    plan, items = read(root, append_token=256, prepend_token=7)
    assert plan.types["tokens"] == "uint16[*]" and "token 7 before each document and token 256 after" in plan.note
    assert [item.values["tokens"].tolist() for item in items] == [
        [7, *TEXTS[name].encode(), 256] for name in sorted(TEXTS)
    ]


def test_a_tokenizer_file_gives_the_library_s_ids_of_whole_texts(tmp_path: Path, tree, read) -> None:
    clean = word_tokenizer(tmp_path / "words.json")
    root = tree({name: text.encode() for name, text in TEXTS.items()})
    plan, items = read(root, tokenizer=tmp_path / "words.json", append_token="<end>", prepend_token=10, unit_size=9)
    assert plan.types == {"tokens": "uint16[*]", "path": "str"} and len(plan.units) > 2
    end = clean.token_to_id("<end>")
    assert plan.metadata["vocabulary_size"] == 21 and plan.metadata["append_token"] == end
    for item, name in zip(items, sorted(TEXTS), strict=True):
        assert item.values["tokens"].dtype == np.uint16
        assert item.values["tokens"].tolist() == [10, *clean.encode(TEXTS[name]).ids, end]
    # What stands in a text like a special token is one, as everywhere with this library.
    assert end in items[3].values["tokens"][:-1]


@pytest.mark.parametrize(("last_id", "type_text"), [(65_535, "uint16[*]"), (65_536, "uint32[*]")])
def test_type_by_the_highest_id(tmp_path: Path, tree, read, last_id: int, type_text: str) -> None:
    path = tmp_path / "words.json"
    word_tokenizer(path, last_id)
    stored = json.loads(path.read_text())
    stored["added_tokens"] = []
    path.write_text(json.dumps(stored | {"post_processor": None}))
    plan, items = read(tree({"a.txt": b"one rare"}), tokenizer=path)
    assert plan.types["tokens"] == type_text and items[0].values["tokens"].tolist() == [1, last_id]


def test_json_lines_keep_what_stands_beside_the_text(tree, read) -> None:
    rows = [{"url": "a", "text": "one", "n": 1}, {"url": "b", "text": "é", "n": 2}]
    root = tree({"a.jsonl": b"".join(json.dumps(row).encode() + b"\n" for row in rows)})
    plan, items = read(root)
    assert list(plan.types.items()) == [("url", "str"), ("tokens", "uint8[*]"), ("n", "int64")]
    assert [item.values["url"] for item in items] == ["a", "b"]
    assert [bytes(item.values["tokens"]).decode() for item in items] == ["one", "é"]
    plan, items = read(root, types={"ids": "int32[*]"}, token_field="ids", text_key="url")
    assert plan.types == {"ids": "int32[*]"}
    assert [{name: value.tolist() for name, value in item.values.items()} for item in items] == [
        {"ids": [97]},
        {"ids": [98]},
    ]
    plan, items = read(root, types={"tokens": "uint8[*]", "text": "str"})
    assert [item.values.keys() for item in items] == [{"tokens", "text"}] * 2 and items[1].values["text"] == "é"
    plan, items = read(root, token_field="text")
    assert plan.types["text"] == "uint8[*]" and items[0].values["text"].tolist() == list(b"one")


def test_tars_give_the_text_of_their_txt_members(tmp_path: Path, read) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, text in {"1.txt": "one", "1.json": "{}", "2.txt": "two", "2.json": "{}"}.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    plan, items = read(str(tmp_path / "a.tar"))
    assert plan.types == {"key": "str", "json": "json", "tokens": "uint8[*]"}
    assert [bytes(item.values["tokens"]) for item in items] == [b"one", b"two"]


def test_compressed_and_single_documents(tree, read, monkeypatch) -> None:
    text = b"one two " * 1000
    root = tree(
        {
            "a.txt": text,
            "b.txt.gz": gzip.compress(text[:3000]) + gzip.compress(text[3000:]),
            "c.py.zst": zstandard.ZstdCompressor().compress(text),
            "d.txt.gz": gzip.compress(text)[:-9],
            "e.txt.zst": zstandard.ZstdCompressor().compress(text)[:-4],
            "f.gz": b"no gzip",
            "g.gz": b"",
        }
    )
    plan, items = read(root)
    assert [bytes(item.values["tokens"]) for item in items[:3]] == [text] * 3
    assert all(isinstance(item, Reject) for item in items[3:])
    for item, name in zip(items[3:], ("d.txt.gz", "e.txt.zst", "f.gz", "g.gz"), strict=True):
        assert item.message.startswith(f"{root}/{name} is damaged or was cut short: ")
    assert (
        plan.num_bytes == sum(item.num_bytes for item in items) == sum(p.stat().st_size for p in Path(root).iterdir())
    )
    monkeypatch.chdir(root)
    plan, items = read("c.py.zst", "a.txt")
    assert [(item.values["path"], bytes(item.values["tokens"])) for item in items] == [
        ("c.py.zst", text),
        ("a.txt", text),
    ]
    monkeypatch.setattr(whole.layout, "MAX_RECORD_BYTES", 7000)
    _, items = read("b.txt.gz", "a.txt")
    assert "has more than 7000 bytes when it is unpacked" in items[0].message and "has 8000 bytes" in items[1].message


def test_labels_stay_and_texts_of_any_suffix_are_taken(tree, read) -> None:
    plan, items = read(tree({"x/a.txt": b"1", "y/b": b"2", "y/c.jpg": b"3"}))
    assert plan.types == {"tokens": "uint8[*]", "label": "int64", "path": "str"}
    assert plan.metadata["classes"] == ["x", "y"] and [item.values["label"] for item in items] == [0, 1, 1]


def test_documents_that_are_no_text_are_named(tmp_path: Path, tree, read, monkeypatch) -> None:
    rows = [
        '{"text": "ok"}',
        '{"text": null}',
        '{"other": 1}',
        '{"text": 5}',
        '{"text": "\\ud800"}',
        '{"text": ["a"]}',
        "{",
    ]
    root = tree({"a.jsonl": "\n".join(rows).encode()})
    word_tokenizer(tmp_path / "words.json")
    for name in ("bytes", tmp_path / "words.json"):
        _, items = read(root, tokenizer=name, types={"tokens": "uint32[*]"})
        assert [isinstance(item, Reject) for item in items] == [False] + [True] * 6
        for number, (item, reason) in enumerate(
            zip(
                items[1:],
                (
                    " has no text in field 'text'",
                    " has no text in field 'text'",
                    " has a int for text in field 'text'",
                    " holds what UTF-8 cannot hold, at character 0",
                    " has a list for text in field 'text'",
                    ": broken JSON",
                ),
                strict=True,
            ),
            2,
        ):
            assert item.message.startswith(f"{root}/a.jsonl line {number}{reason}")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.txt").write_bytes(b"good\xff")
    _, items = read(str(tmp_path / "bad"))
    assert (
        items[0].message
        == f"{tmp_path}/bad/a.txt is not UTF-8: byte 4 is 0xff; if it is no text, leave it out with include or exclude patterns"
    )
    monkeypatch.setattr(tokenizer, "MAX_TEXT_BYTES", 3)
    _, items = read(tree({"a.jsonl": b'{"text": "abcd"}'}), tokenizer=tmp_path / "words.json")
    assert "line 1 has 4 B of text, and at most 3 B go through a tokenizer at once" in items[0].message
    assert isinstance(read(tree({}), tokenizer="bytes")[1][0].values, dict)


class Panicking:
    """A tokenizer whose library panics, which is no `Exception`, or is interrupted."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def encode(self, text: str, add_special_tokens: bool) -> None:
        raise self.error


def test_a_panic_of_the_library_is_that_text_s_fault(tmp_path: Path, tree, read, monkeypatch) -> None:
    word_tokenizer(tmp_path / "words.json")
    plan, _ = read(tree({"a.txt": b"a"}), tokenizer=tmp_path / "words.json")
    panic = type("PanicException", (BaseException,), {})
    monkeypatch.setattr(tokenizer, "_load", lambda definition, name: Panicking(panic("index out of bounds")))
    (item,) = plan.reader.read(plan.units[0])
    assert item.message.endswith("words.json: index out of bounds") and "a.txt cannot be tokenized with" in item.message
    monkeypatch.setattr(tokenizer, "_load", lambda definition, name: Panicking(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        list(plan.reader.read(plan.units[0]))


def refused(read, *paths, **wanted) -> str:
    with pytest.raises(PackError) as caught:
        read(*paths, **wanted)
    return str(caught.value)


def test_what_cannot_be_is_refused_before_packing(tmp_path: Path, tree, read) -> None:
    root = tree({"a.jsonl": b'{"text": "a", "tokens": 1, "n": 2}\n'})
    words = tmp_path / "words.json"
    word_tokenizer(words, 70_000)
    refuse = lambda **wanted: refused(read, root, **wanted)  # noqa: E731
    assert "there is a field 'tokens' in it already: name that of the tokens with --token-field" in refuse()
    assert "it has no field 'body'; its fields are text: str, tokens: int64, n: int64: name" in refuse(text_key="body")
    assert "its field 'n' is int64, not text" in refuse(text_key="n")
    assert "the schema names n, but no field 'tokens'" in refuse(types={"n": "int64"})
    for type_text in ("uint16", "float32[*]", "uint16[*,2]", "str", "bool[*]", "bfloat16[*]"):
        assert f"takes tokens and cannot be {type_text}: give it uint8[*]" in refuse(types={"tokens": type_text})
    assert "cannot be uint16[*]: the highest token is 70,0" in refuse(types={"tokens": "uint16[*]"}, tokenizer=words)
    assert "cannot be int8[*]: the highest token is 255" in refuse(types={"tokens": "int8[*]"})
    assert "has no token '<eos>'; its special tokens are '<start>', '<end>'" in refuse(
        tokenizer=words, append_token="<eos>"
    )
    assert "has no token of id 69999: its highest is 70,0" in refuse(tokenizer=words, append_token=69_999)
    assert "has no token of id -1" in refuse(tokenizer=words, prepend_token=-1)
    assert "bytes have no token 'x': give a number" in refuse(append_token="x")
    assert "token 65536 of the tokenizer 'bytes' must be 0 to 65,535" in refuse(append_token=65_536)
    folder = tree({"t/a.txt": b""}) + "/t"
    assert "whole texts, which have no field 'body'" in refused(read, folder, text_key="body")
    assert "JSON Lines files and whole texts are different sources" in refused(
        read, f"{folder}/a.txt", f"{root}/a.jsonl"
    )
    with pytest.raises(PackError, match="gives no tokens that could be named 'ids': give a tokenizer too"):
        open_source([root], include=["*.jsonl"], token_field="ids")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist: give the path of a tokenizer.json, or bytes"),
        ("folder", "is not a file"),
        (b"{", "is no tokenizer.json of Hugging Face's tokenizers"),
        (b"\xff", "is no tokenizer.json of Hugging Face's tokenizers"),
        (b"[" * 100_000, "is no tokenizer.json of Hugging Face's tokenizers"),
        (b'{"model": {"type": "Unheard"}}', "is no tokenizer that this version of tokenizers reads: "),
        (b'{"model": {"type": "BPE", "vocab": {}, "merges": []}}', "has no tokens"),
        (b'{"model": {"dropout": 0.1}}', "tokenizes at random (dropout is 0.1), so that no pack could be repeated"),
    ],
)
def test_files_that_are_no_tokenizer(tmp_path: Path, tree, read, content, message: str) -> None:
    path = tmp_path / "words.json"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    found = refused(read, tree({"a.txt": b""}), tokenizer=path)
    assert str(path) in found and message in found


def test_without_the_package_the_extra_is_named(tmp_path: Path, tree, read, monkeypatch) -> None:
    word_tokenizer(tmp_path / "words.json")
    tokenizer._load.cache_clear()
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    root = tree({"a.txt": b"a"})
    with pytest.raises(PackError, match=re.escape("pip install 'shardload[text]'")):
        read(root, tokenizer=tmp_path / "words.json")
    assert read(root)[1][0].values["tokens"].tolist() == [97]
