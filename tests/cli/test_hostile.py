"""`head` of datasets whose values, under right checksums, are none: one sentence, no traceback."""

from __future__ import annotations

import json

import pytest
from reader.hostile import write_raw


@pytest.mark.parametrize("words", [(), ("--json",)], ids=["text", "json"])
@pytest.mark.parametrize(
    ("kind", "data", "told"),
    [
        ("str", b"\xff\xfe", "field 'value' of sample 1 is no UTF-8"),
        ("json", b"{", "field 'value' of sample 1 is no JSON"),
        ("json", b"[" * 200_000, "field 'value' of sample 1 is JSON nested too deeply"),
    ],
)
def test_head_of_a_value_that_cannot_be_decoded(run, tmp_path, monkeypatch, kind, data, told, words):
    path = write_raw(tmp_path / "d", monkeypatch, kind, [b'"good"', data])
    status, output, errors = run("head", path, *words)
    assert status == 1
    assert len(errors) == 1 and errors[0].startswith(f"shardload: error: {path}: ") and told in errors[0]
    assert ("good" in output) == (not words)


@pytest.mark.parametrize("words", [(), ("--json",)], ids=["text", "json"])
def test_head_near_the_end_of_the_stack(run, tmp_path, monkeypatch, words):
    """What can still be read may be too deep to be printed: there is no depth at which a traceback comes."""
    depths = range(900, 1000, 3)
    path = write_raw(tmp_path / "d", monkeypatch, "json", [b"[" * depth + b"]" * depth for depth in depths])
    status, _, errors = run("head", path, "-n", len(depths), *words)
    assert status == 1
    assert len(errors) == 1 and "nested too deeply" in errors[0] and str(path) in errors[0]


def test_numbers_that_become_infinite(run, tmp_path, monkeypatch):
    path = write_raw(tmp_path / "d", monkeypatch, "json", [b"[1e999]"])
    assert run("head", path)[0] == 0
    status, output, errors = run("head", path, "--json")
    assert (status, output) == (1, "")
    assert len(errors) == 1 and str(path) in errors[0]


def test_text_that_no_encoding_holds_is_escaped(run, tmp_path, monkeypatch):
    path = write_raw(tmp_path / "d", monkeypatch, "json", [b'"\\ud800"'])
    status, output, _ = run("head", path, "--json")
    assert status == 0
    assert json.loads(output)["samples"][0]["value"] == "\ud800"
