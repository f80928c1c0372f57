"""What is no sample or does not fit the schema, set aside and told."""

from __future__ import annotations

import json
import os
import random
import re
import socket
from pathlib import Path
from typing import Any

import pytest
import tars

import shardload
from shardload.errors import PackError
from shardload.packing import Progress, pack
from shardload.packing.journal import Journal
from shardload.packing.progress import Count
from shardload.packing.rejects import prepare_rejects
from shardload.packing.unit import Step
from shardload.reader.verify import verify_dataset
from shardload.storage import LocalStorage

pytestmark = pytest.mark.usefixtures("quick_workers")


def rejects(target: Path) -> list[dict[str, Any]]:
    """The lines of rejects.jsonl, each of them canonical."""
    lines = (target / "rejects.jsonl").read_bytes().splitlines(keepends=True)
    told = [json.loads(line) for line in lines]
    for line, facts in zip(lines, told, strict=True):
        assert list(facts) == ["generation", "place", "reason", "source", "unit"]
        assert line == json.dumps(facts, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"
    return told


BAD = [
    (b'{"a": 1, "text":', "broken JSON: Expecting value at column 17"),
    (b'{"a": 1, "text": "\xff"}', "is not UTF-8: byte 18 of the line is 0xff"),
    (b"[1]", "expected an object, got an array"),
    (b'{"a": 1, "a": 2, "text": ""}', "field 'a' stands in an object twice"),
    (b'{"a": "one", "text": ""}', "field 'a': expected int64, got str of length 3"),
    (
        b'{"a": 1}',
        "field 'text': expected str, got no such field in the sample; if it may be missing, its type is str?",
    ),
    (b'{"a": 1, "text": "", "b": 2}', "field 'b' is not in the schema {a: int64, text: str}"),
]


@pytest.mark.parametrize("workers", [1, 2])
def test_two_in_a_hundred_bad_lines(tmp_path: Path, workers: int) -> None:
    source, words = tmp_path / "rows.jsonl", random.Random(5)
    bad = {number: words.choice(BAD) for number in words.sample(range(1000), 20)}
    good = [json.dumps({"a": number, "text": words.randbytes(50).hex()}) for number in range(1000)]
    source.write_bytes(b"".join(bad[n][0] + b"\n" if n in bad else good[n].encode() + b"\n" for n in range(1000)))
    told: list[Progress] = []
    summary = pack(
        *(source, tmp_path / "out"), on_error="reject", workers=workers, unit_size=30_000, shard_size="16KiB",
        schema={"a": "int64", "text": "str"}, progress=told.append,
    )  # fmt: skip
    assert (summary.num_samples, summary.num_rejects) == (980, 20) and told[-1].done.num_rejects == 20
    assert told[-1].done.source_bytes == summary.source_bytes and summary.num_units > 3
    assert shardload.open(tmp_path / "out").column("a").tolist() == [n for n in range(1000) if n not in bad]
    found = rejects(tmp_path / "out")
    assert [facts["place"] for facts in found] == [f"{source} line {n + 1}" for n in sorted(bad)]
    assert [facts["reason"] for facts in found] == [bad[n][1] for n in sorted(bad)]
    assert {facts["source"] for facts in found} == {str(source)} and {facts["generation"] for facts in found} == {1}
    assert [facts["unit"] for facts in found] == sorted(facts["unit"] for facts in found)
    assert not verify_dataset(tmp_path / "out")


def test_raise_is_the_default_and_goes_on_as_reject(tmp_path: Path, digests) -> None:
    """What was packed before the first bad line is the same under either policy."""
    source = tmp_path / "rows.jsonl"
    source.write_text('{"a": 1}\n' * 5000 + "{\n" + '{"a": 2}\n' * 100)
    more: dict[str, Any] = {"unit_size": 9000, "workers": 1}
    pack(source, tmp_path / "whole", on_error="reject", **more)
    with pytest.raises(PackError, match=r"rows\.jsonl line 5001: broken JSON.* what was packed stays"):
        pack(source, tmp_path / "out", **more)
    with pytest.raises(PackError, match="line 5001: broken JSON"):
        pack(source, tmp_path / "out", resume=True, **more)
    pack(source, tmp_path / "out", resume=True, on_error="reject", **more)
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")


def test_reject_does_not_go_on_as_raise(tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text("{\n" + '{"a": 1}\n' * 5000 + "{\n")
    more: dict[str, Any] = {"unit_size": 9000, "workers": 1}
    with pytest.raises(PackError, match="2 rejects so far, and at most 1 may be set aside"):
        pack(source, tmp_path / "out", on_error="reject", max_rejects=1, **more)
    with pytest.raises(PackError, match=r"rows\.jsonl line 1: broken JSON"):
        pack(source, tmp_path / "out", resume=True, **more)
    with pytest.raises(PackError, match="2 rejects were set aside before: continue with --on-error reject"):
        pack(source, tmp_path / "out", resume=True, schema={"a": "int64"}, **more)


@pytest.mark.parametrize(
    ("limit", "workers"),
    # What each limit does is decided in one place, whoever packs.
    [(0, 1), (3, 1), (9, 1), (10, 1), (3, 2), *(pytest.param(n, 2, marks=pytest.mark.slow) for n in (0, 9, 10))],
)
def test_max_rejects(tmp_path: Path, workers: int, limit: int, digests) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text(('{"a": 1}\n' * 500 + "{\n") * 10)
    more: dict[str, Any] = {"on_error": "reject", "unit_size": 9000, "workers": workers}
    if limit < 10:
        with pytest.raises(
            PackError, match=rf"rejects so far, and at most {limit} may .*rows\.jsonl line \d+: broken J"
        ):
            pack(source, tmp_path / "out", max_rejects=limit, **more)
        with pytest.raises(PackError, match=f"at most {limit} may be set aside"):
            pack(source, tmp_path / "out", max_rejects=limit, resume=True, **more)
        assert not (tmp_path / "out/manifest.json").exists()
    assert pack(source, tmp_path / "out", resume=True, max_rejects=10, **more).num_rejects == 10
    pack(source, tmp_path / "whole", **more)
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")


def test_a_source_of_rejects_only(tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text("[]\n" * 5000)
    with pytest.raises(
        PackError, match=r"holds no sample to pack: everything in it was rejected, at first .* line 1: exp"
    ):
        pack(source, tmp_path / "out", schema={"a": "int64"}, on_error="reject")
    assert os.listdir(tmp_path) == ["rows.jsonl"]


def test_many_rejects_are_told_in_bundles(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("shardload.packing.unit._TOLD_REJECTS", 10)
    source = tmp_path / "rows.jsonl"
    source.write_text("[]\n" * 95 + '{"a": 1}\n' + "{\n" * 7)
    summary = pack(source, tmp_path / "out", schema={"a": "int64"}, on_error="reject", workers=1)
    assert summary.num_rejects == len(rejects(tmp_path / "out")) == 102
    assert [facts["place"].rpartition(" ")[2] for facts in rejects(tmp_path / "out")] == [
        str(n) for n in range(1, 104) if n != 96
    ]


def test_appended_rejects_come_after_those_that_are_there_and_once(tmp_path: Path) -> None:
    """Also where a commit that was cut off has put them there already."""
    (tmp_path / ".work").mkdir()
    storage, journal = LocalStorage(str(tmp_path)), Journal(LocalStorage(str(tmp_path)), 2)
    journal.add(Step(3, 2, Count(num_rejects=2), (("line 1", "no"), ("line 2", "no"))))
    journal.add(Step(0, 1, Count(num_rejects=1), (("line 0", "no"),), finished=True))
    before = b'{"generation":1,"place":"a","reason":"b","source":"c","unit":0}\n'
    (tmp_path / "rejects.jsonl").write_bytes(before)
    for _ in range(2):
        assert prepare_rejects(storage, journal.rejects(), 2, "source", keep=storage) == ".work/rejects"
        os.replace(tmp_path / ".work/rejects", tmp_path / "rejects.jsonl")
        found = rejects(tmp_path)
        assert [(facts["generation"], facts["unit"], facts["place"]) for facts in found] == [
            *((1, 0, "a"), (2, 0, "line 0"), (2, 3, "line 1"), (2, 3, "line 2"))
        ]
    journal.close()


def test_no_file_without_rejects_and_a_stale_one_goes(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    good.write_text('{"a": 1}\n')
    bad.write_text('{"a": 1}\n{\n')
    target = tmp_path / "out"
    pack(good, target, on_error="reject")
    assert not (target / "rejects.jsonl").exists()
    pack(bad, target, on_error="reject", replace=True)
    assert [facts["generation"] for facts in rejects(target)] == [2]
    with pytest.raises(PackError):
        pack(bad, target, replace=True)
    assert len(rejects(target)) == 1
    pack(good, target, replace=True)
    assert not (target / "rejects.jsonl").exists()
    pack(bad, target, on_error="reject", replace=True)
    with shardload.ShardWriter(target, {"a": "int64"}, replace=True) as writer:
        writer.write({"a": 1})
    assert not (target / "rejects.jsonl").exists() and not (target / "packed.json").exists()


def test_policies_that_cannot_be(tmp_path: Path) -> None:
    for more, message in (
        ({"on_error": "skip"}, "on_error must be 'raise' or 'reject', not 'skip'"),
        ({"max_rejects": 3}, "max_rejects goes with on_error='reject'"),
        ({"on_error": "reject", "max_rejects": -1}, "max_rejects must be at least 0, not -1"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            pack(tmp_path, tmp_path / "out", **more)


# A source tree as it may be found.

JPEG = b"\xff\xd8\xff\xe0"


def make_socket(path: Path) -> None:
    before = Path.cwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(path.name)
    finally:
        os.chdir(before)


def raw_name(path: Path) -> None:
    Path(os.fsdecode(os.fsencode(path.parent) + b"/g\xff.jpg")).write_bytes(JPEG)


FOUND: list[tuple[str, Any, str]] = [
    ("a.jpg", lambda path: path.symlink_to("a.jpg"), "is a link in a loop of links"),
    ("b.jpg", os.mkfifo, "is a FIFO; only regular files can be packed"),
    ("c.jpg", make_socket, "is a socket; only regular files can be packed"),
    ("d.jpg", lambda path: path.symlink_to("gone"), "is a link that leads nowhere"),
    ("e.jpg", lambda path: path.symlink_to("/proc/self/mem"), "cannot be read: Input/output error"),
    (
        "f\n.jpg",
        lambda path: path.write_bytes(b"GIF8"),
        "field 'image': expected jpeg, got bytes that start with b'GIF8'",
    ),
    ("b'g\\xff.jpg'", raw_name, "is a file name that is not UTF-8; rename it, or leave it out with exclude patterns"),
]
LATER: list[tuple[str, Any, str]] = [
    ("h.jpg", lambda path: path.unlink(), "vanished while it was being packed"),
    (
        "i.jpg",
        lambda path: path.write_bytes(JPEG * 2),
        "changed while it was being packed: it had 4 bytes and now has 8",
    ),
    (
        "j.jpg",
        lambda path: (path.unlink(), path.write_bytes(JPEG), os.utime(path, ns=(1, 1))),
        "changed while it was being packed: it was written to after the source was scanned",
    ),
]


def found_tree(root: Path, rows: list[tuple[str, Any, str]]) -> None:
    root.mkdir()
    for name in ("0.jpg", "dd.jpg", "z.jpg", "a new\nline.jpg"):
        (root / name).write_bytes(JPEG)
    for name, make, _ in rows:
        make(root / name)


@pytest.mark.parametrize("row", FOUND + LATER, ids=[name for name, *_ in FOUND + LATER])
def test_each_such_file_is_an_error_by_name(tmp_path: Path, row) -> None:
    name, make, reason = row
    source = tmp_path / "source"
    found_tree(source, [])
    if row in LATER:
        (source / name).write_bytes(JPEG)
        more = {"progress": lambda progress: progress.done.num_samples or make(source / name)}
    else:
        make(source / name)
        more = {}
    joint = ": " if reason.startswith("field") else " "
    with pytest.raises(PackError) as caught:
        pack(source, tmp_path / "out", workers=1, **more)
    assert str(caught.value).startswith(f"{source}/{name}{joint}{reason}")
    assert os.listdir(tmp_path) == ["source"]


@pytest.mark.parametrize("workers", [1, 2])
def test_all_such_files_are_set_aside_by_name(tmp_path: Path, workers: int) -> None:
    source = tmp_path / "source"
    # The times of files below /proc differ from process to process.
    found = [row for row in FOUND if row[0] != "e.jpg" or workers == 1]
    found_tree(source, found)
    for name, *_ in LATER:
        (source / name).write_bytes(JPEG)

    def change(progress: Progress) -> None:
        if not progress.seconds:
            for name, make, _ in LATER:
                make(source / name)

    summary = pack(source, tmp_path / "out", on_error="reject", unit_size=12, workers=workers, progress=change)
    expected = {f"{source}/{name}": reason for name, _, reason in found + LATER}
    told = rejects(tmp_path / "out")
    assert {facts["place"]: facts["reason"] for facts in told} == expected
    assert [facts["place"] for facts in told] == sorted(expected, key=os.fsencode)
    assert summary.num_rejects == len(expected) and summary.num_samples == 4
    paths = [sample["path"] for sample in shardload.open(tmp_path / "out")]
    assert paths == ["0.jpg", "a new\nline.jpg", "dd.jpg", "z.jpg"]


def test_a_source_that_is_gone_is_no_heap_of_rejects(tmp_path: Path) -> None:
    source = tmp_path / "source"
    found_tree(source, [])

    def vanish(progress: Progress) -> None:
        if source.exists():
            source.rename(tmp_path / "elsewhere")

    with pytest.raises(PackError, match="vanished while it was being packed, and so did"):
        pack(source, tmp_path / "out", on_error="reject", workers=1, progress=vanish)


@pytest.mark.parametrize("workers", [1, 2])
def test_tars(tmp_path: Path, workers: int) -> None:
    """A 2 % dirty set of tars: the good samples are packed, each reject is told with tar and key; keys that repeat too."""
    source = tmp_path / "tars"
    source.mkdir()
    for number in range(4):
        members = []
        for i in range(100):
            label = b"seven" if i == 40 else b"%d" % i
            members += [tars.member(f"{i:03d}.txt", b"text %d" % i), tars.member(f"{i:03d}.cls", label)]
        members.append(tars.header("link.txt", kind=b"2", linkname="/etc/passwd"))
        (source / f"{number}.tar").write_bytes(b"".join(members) + tars.END)
    schema = {"txt": "str", "cls": "int64"}
    with pytest.raises(PackError, match=r"0\.tar.*040.*cls"):
        pack(source, tmp_path / "raised", schema=schema, workers=workers)
    summary = pack(source, tmp_path / "out", schema=schema, workers=workers, unit_size=1, on_error="reject")
    assert (summary.num_samples, summary.num_rejects) == (396, 8)
    told = [reject["place"] for reject in rejects(tmp_path / "out")]
    assert [re.search(r"(\d)\.tar.*(040|link)", place).groups() for place in told] == [  # type: ignore[union-attr]
        (str(number), key) for number in range(4) for key in ("040", "link")
    ]
    assert sorted({sample["cls"] for sample in shardload.open(tmp_path / "out")}) == [i for i in range(100) if i != 40]
    keyed = {"key": "str", **schema}
    with pytest.raises(PackError, match="has the same key"):
        pack(source, tmp_path / "keyed", schema=keyed, key="key", workers=workers, unit_size=1, on_error="reject")
    assert not (tmp_path / "keyed" / "manifest.json").exists()


def test_a_key_that_repeats_in_a_shard_is_a_reject(tmp_path: Path) -> None:
    lines = [json.dumps({"id": i % 90, "text": "x" * i}) for i in range(100)]
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    with pytest.raises(PackError, match=r"line 91: its key \(field 'id'\) is that of an earlier sample"):
        pack(tmp_path / "data.jsonl", tmp_path / "raised", key="id", workers=1)
    summary = pack(tmp_path / "data.jsonl", tmp_path / "out", key="id", workers=1, on_error="reject")
    assert (summary.num_samples, summary.num_rejects) == (90, 10)
    assert [re.search(r"line (\d+)$", reject["place"])[1] for reject in rejects(tmp_path / "out")] == [  # type: ignore[index]
        str(line) for line in range(91, 101)
    ]
    assert shardload.open(tmp_path / "out").find(42) == 42
