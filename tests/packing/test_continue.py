"""Packs that are cut off at any moment and continued: in the end every file is as if nothing had happened."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from faults import in_child
from killing import Counted, FailsAt, KilledAt
from scenarios import every

import shardload
from shardload.errors import PackError
from shardload.packing import pack
from shardload.reader.verify import verify_dataset
from shardload.storage import Operations

pytestmark = pytest.mark.usefixtures("quick_workers")

ROOT = str(Path(shardload.__file__).parents[1])
NUM_SAMPLES, NUM_REJECTS = 21, 9
DIRTY: dict[str, Any] = {"on_error": "reject", "schema": {"a": "int64", "text": "str"}}


@pytest.fixture(scope="module")
def dirty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three units of JSON Lines, each of which becomes several parts; rejects stand inside of parts and between them. Read only."""
    path = tmp_path_factory.mktemp("dirty") / "rows.jsonl"
    words = random.Random(4)
    with path.open("w") as file:
        for number in range(30):
            bad = {5: "{", 6: "[1]", 9: '{"a": "x", "text": ""}'}.get(number % 10)
            text = words.randbytes(400).hex()
            file.write((bad or json.dumps({"a": number, "text": text})) + "\n")
    return path


def options(source: Path, **more: Any) -> dict[str, Any]:
    size = source.stat().st_size // 3 + 1
    usual = {"unit_size": size, "shard_size": "9KiB", "compression": "none", "workers": 1, "operations": Counted()}
    return DIRTY | usual | more


def until_done(source: Path, target: Path, **more: Any) -> None:
    """Continues a pack as a user would who does not know what happened."""
    summary = pack(source, target, resume=True, **options(source, **more))
    assert summary.num_samples == NUM_SAMPLES and summary.num_rejects == NUM_REJECTS
    assert not (target / ".work").exists()


def check_at(tmp_path: Path, source: Path, expected: dict[str, str], digests, number: int, **more: Any) -> bool:
    """Kills a pack at its nth operation and continues it; tells whether it came so far."""
    target = tmp_path / f"{number}"
    if (tmp_path / "before").exists():
        shutil.copytree(tmp_path / "before", target)
    status = in_child(lambda: pack(source, target, **options(source, operations=KilledAt(number), **more)), group=True)
    assert status in (0, -signal.SIGKILL)
    if (target / "manifest.json").exists():
        assert not [damage for damage in verify_dataset(target) if damage.file != "manifest.json"]
    until_done(source, target, **more)
    assert digests(target) == expected, number
    shutil.rmtree(target)
    return status != 0


def put_before(path: Path) -> None:
    """Writes the dataset that is replaced: with rejects of its own."""
    source = path.parent / "before.jsonl"
    source.write_text('{"b": 1}\n{\n')
    pack(source, path, on_error="reject", workers=1)


# tools/test --slow tests/packing/test_continue.py -k killed_at_operations
each_step = pytest.mark.parametrize("step", [7, pytest.param(1, marks=pytest.mark.slow)])


@each_step
@pytest.mark.parametrize("replace", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_killed_at_operations(tmp_path: Path, dirty: Path, digests, replace: bool, step: int) -> None:
    whole = tmp_path / "whole"
    if replace:
        put_before(tmp_path / "before")
        shutil.copytree(tmp_path / "before", whole)
    operations = Counted()
    pack(dirty, whole, **options(dirty, replace=replace, operations=operations))
    expected = digests(whole)
    assert any(name.startswith("rejects") for name in expected) and len(expected) > 10
    numbers = every(range(1, operations.count + 1), step)
    assert all(check_at(tmp_path, dirty, expected, digests, n, replace=replace) for n in numbers)
    assert not check_at(tmp_path, dirty, expected, digests, operations.count + 1, replace=replace)


@each_step
def test_killed_at_operations_of_the_continuation(tmp_path: Path, dirty: Path, digests, step: int) -> None:
    pack(dirty, tmp_path / "whole", **options(dirty))
    expected = digests(tmp_path / "whole")
    in_child(lambda: pack(dirty, tmp_path / "half", **options(dirty, operations=KilledAt(60))), group=True)
    number, status = 1 - step, -1
    while status:
        number += step
        target = tmp_path / f"{number}"
        shutil.copytree(tmp_path / "half", target)
        again = KilledAt(number)
        status = in_child(lambda: pack(dirty, target, resume=True, **options(dirty, operations=again)), group=True)  # noqa: B023
        until_done(dirty, target)
        assert digests(target) == expected, number
        shutil.rmtree(target)
    assert number > 60


def check_with_two(tmp_path: Path, source: Path, digests, numbers: list[int], **more: Any) -> None:
    whole = tmp_path / "whole"
    if (tmp_path / "before").exists():
        shutil.copytree(tmp_path / "before", whole)
    pack(source, whole, **options(source, **more))
    expected = digests(whole)
    for number in numbers:
        check_at(tmp_path, source, expected, digests, number, workers=2, **more)


@pytest.mark.parametrize("replace", [False, True])
def test_killed_at_some_operations_with_two_workers(tmp_path: Path, dirty: Path, digests, replace: bool) -> None:
    if replace:
        put_before(tmp_path / "before")
    check_with_two(tmp_path, dirty, digests, [9, 23, 48] if replace else [5, 14, 33, 57, 71], replace=replace)


@pytest.mark.slow  # tools/test --slow tests/packing/test_continue.py -k every_operation_with_two
@pytest.mark.parametrize("replace", [False, True])
def test_killed_at_every_operation_with_two_workers(tmp_path: Path, dirty: Path, digests, replace: bool) -> None:
    if replace:
        put_before(tmp_path / "before")
    check_with_two(tmp_path, dirty, digests, list(range(1, 120)), replace=replace)


LIBRARY = """
import sys
import shardload
print("started", flush=True)
shardload.pack(sys.argv[1], sys.argv[2], workers=2, include=sys.argv[3].split(), unit_size=400_000,
               shard_size="64KiB", resume=True, on_error="reject")
"""


def kill_at_random(tmp_path: Path, digests, kills: int, patterns: str, longest: float) -> int:
    """Kills packs of the standard library at random moments until so many kills have hit; returns the number of packs."""
    source = sysconfig.get_paths()["stdlib"]
    command = [sys.executable, "-c", LIBRARY, source]
    environment = os.environ | {"PYTHONPATH": ROOT}
    subprocess.run([*command, str(tmp_path / "whole"), patterns], check=True, timeout=300, env=environment)
    expected = digests(tmp_path / "whole")
    moments, hit, packs = random.Random(kills), 0, 0
    while hit < kills or packs == 0:
        target, packs, done = tmp_path / f"{packs}", packs + 1, False
        while not done:
            process = subprocess.Popen(
                [*command, str(target), patterns], stdout=subprocess.PIPE, env=environment, start_new_session=True
            )
            assert process.stdout is not None and process.stdout.readline() == b"started\n"
            try:
                # Not a wait for something: the moment itself is what is drawn.
                process.wait(moments.uniform(0, longest) if hit < kills else 300)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                hit += 1
            done = process.wait(60) == 0
            process.stdout.close()
        assert digests(target) == expected
        shutil.rmtree(target)
    return packs


def test_killed_at_three_random_moments(tmp_path: Path, digests) -> None:
    kill_at_random(tmp_path, digests, 3, "json/*.py email/*.py", 1.2)


@pytest.mark.slow  # tools/test --slow tests/packing/test_continue.py -k hundred_random_moments
def test_killed_at_a_hundred_random_moments(tmp_path: Path, digests) -> None:
    kill_at_random(tmp_path, digests, 100, "*.py", 4.0)


# What may not be continued.


def half(source: Path, target: Path, at: int = 60, **more: Any) -> None:
    """Leaves a pack that was killed in the midst."""
    work = lambda: pack(source, target, **options(source, operations=KilledAt(at), **more))  # noqa: E731
    assert in_child(work, group=True) == -signal.SIGKILL
    assert (target / ".work/job.json").exists()


CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"compression": "zstd:3"}, 'option compression was "none" when it was begun and is "zstd:3" now'),
    ({"shard_size": "16KiB"}, "option shard_size was 9216 when it was begun and is 16384 now"),
    ({"unit_size": 1000}, "option unit_size was "),
    (
        {"schema": {"a": "int32", "text": "str"}},
        'option schema was [["a","int64"],["text","str"]] when it was begun and',
    ),
    ({"append": True}, "holds no dataset to append to"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES, ids=[str(change) for change, _ in CHANGES])
def test_another_option_is_refused_by_name(tmp_path: Path, dirty: Path, digests, change, message: str) -> None:
    target = tmp_path / "out"
    half(dirty, target)
    before = digests(target)
    with pytest.raises(PackError) as caught:
        pack(dirty, target, resume=True, **options(dirty, **change))
    if "append" not in change:
        assert f"cannot be continued: {message}" in str(caught.value) and "--replace" in str(caught.value)
    assert digests(target) == before
    until_done(dirty, target)


def test_another_version_is_refused_by_name(tmp_path: Path, dirty: Path, monkeypatch) -> None:
    half(dirty, tmp_path / "out")
    with monkeypatch.context() as patched:
        patched.setattr("numpy.__version__", "9.9")
        with pytest.raises(PackError, match=r'version of numpy was "[\d.]+" when it was begun and is "9\.9" now'):
            until_done(dirty, tmp_path / "out")
    until_done(dirty, tmp_path / "out")


@pytest.mark.parametrize("change", ["time", "content", "more", "less"])
def test_a_changed_source_is_refused_with_its_place(tmp_path: Path, digests, change: str) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for number in range(40):
        (source / f"{number:02d}.txt").write_text("text " * 100)
    more: dict[str, Any] = {"unit_size": 5000, "shard_size": 8192, "workers": 1}
    target = tmp_path / "out"
    assert in_child(lambda: pack(source, target, operations=KilledAt(60), **more), group=True) == -signal.SIGKILL
    file = source / "25.txt"
    if change == "time":
        os.utime(file, ns=(1, 1))
    elif change == "content":
        file.write_text("text " * 99)
    elif change == "less":
        file.unlink()
    else:
        (source / "25x.txt").write_text("text")
    before = digests(target)
    with pytest.raises(PackError, match=r"the source has changed since it was begun, at first in unit 2 \(20\.txt to"):
        pack(source, target, resume=True, **more)
    assert digests(target) == before
    pack(source, target, replace=True, **more)
    assert len(shardload.open(target)) == len(os.listdir(source)) and not verify_dataset(target)


def test_without_continue_it_is_refused_and_replaced(tmp_path: Path, dirty: Path, digests) -> None:
    pack(dirty, tmp_path / "whole", **options(dirty))
    target = tmp_path / "out"
    half(dirty, target)
    before = digests(target)
    with pytest.raises(
        PackError, match=r"an unfinished pack left: go on with the same command and --continue .* or repl"
    ):
        pack(dirty, target, **options(dirty))
    with pytest.raises(PackError, match="holds what an unfinished pack left"):
        shardload.ShardWriter(target, {"a": "int64"}).write({"a": 1})
    assert digests(target) == before
    pack(dirty, target, replace=True, **options(dirty))
    assert digests(target) == digests(tmp_path / "whole")


def test_a_writer_may_replace_an_unfinished_pack(tmp_path: Path, dirty: Path) -> None:
    half(dirty, tmp_path)
    with shardload.ShardWriter(tmp_path, {"a": "int64"}, replace=True) as writer:
        writer.write({"a": 1})
    assert len(shardload.open(tmp_path)) == 1 and sorted(os.listdir(tmp_path)) == [
        *("manifest.json", "manifests", "shards", "tables")
    ]


def test_a_damaged_job_is_named(tmp_path: Path, dirty: Path) -> None:
    half(dirty, tmp_path)
    (tmp_path / ".work/job.json").write_bytes(b'{"units": []}')
    with pytest.raises(
        PackError, match=r"\.work/job\.json is damaged, so that the unfinished pack cannot be continued"
    ):
        pack(dirty, tmp_path, resume=True, **options(dirty))


# What is not believed.


def damage_shard(target: Path, change: Callable[[Path], object]) -> None:
    shards = sorted((target / "shards").iterdir())
    change(shards[1])


@pytest.mark.parametrize(
    "change",
    [
        os.unlink,
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(path.read_bytes()[:-200] + bytes(200)),
        lambda path: (path.unlink(), path.mkdir()),
    ],
    ids=["gone", "cut", "zeroed", "directory"],
)
def test_a_shard_that_is_not_as_it_was_is_packed_again(tmp_path: Path, dirty: Path, digests, change) -> None:
    pack(dirty, tmp_path / "whole", **options(dirty))
    target = tmp_path / "out"
    half(dirty, target)
    damage_shard(target, change)
    if (sorted((target / "shards").iterdir())[1]).is_dir():
        with pytest.raises(PackError, match="cannot be written"):
            until_done(dirty, target)
        sorted((target / "shards").iterdir())[1].rmdir()
    until_done(dirty, target)
    assert digests(target) == digests(tmp_path / "whole")


@pytest.mark.parametrize("kind", ["cut", "flipped", "garbage", "empty"])
def test_a_torn_journal_is_believed_up_to_the_tear(tmp_path: Path, dirty: Path, digests, kind: str) -> None:
    pack(dirty, tmp_path / "whole", **options(dirty))
    target = tmp_path / "out"
    half(dirty, target, at=70)
    journal = target / ".work/journal"
    data = bytearray(journal.read_bytes())
    places = range(0, len(data), 97) if kind in ("cut", "flipped") else [0]
    for place in places:
        copy = tmp_path / "copy"
        shutil.copytree(target, copy)
        changed = bytearray(data)
        if kind == "cut":
            del changed[place:]
        elif kind == "flipped":
            changed[place] ^= 4
        elif kind == "garbage":
            changed += b"\n\0garbage"
        else:
            changed.clear()
        (copy / ".work/journal").write_bytes(changed)
        until_done(dirty, copy)
        assert digests(copy) == digests(tmp_path / "whole")
        shutil.rmtree(copy)


def test_finished_parts_are_not_packed_again(tmp_path: Path, dirty: Path) -> None:
    half(dirty, tmp_path, at=70)
    lines = (tmp_path / ".work/journal").read_bytes().splitlines()
    there = {json.loads(line[9:])["shard"][2] for line in lines if json.loads(line[9:])["shard"]}
    assert there
    kept = [path.stat().st_ino for path in sorted((tmp_path / "shards").iterdir())][: len(lines) // 2]
    until_done(dirty, tmp_path)
    assert kept == [path.stat().st_ino for path in sorted((tmp_path / "shards").iterdir())][: len(kept)]


# What is complete, and what was never begun.


def test_a_complete_pack_is_told_and_left_alone(tmp_path: Path, dirty: Path, digests) -> None:
    for replace in (False, True):
        first = pack(dirty, tmp_path / "out", **options(dirty, replace=replace))
        before = digests(tmp_path / "out")
        again = pack(dirty, tmp_path / "out", resume=True, **options(dirty, replace=replace))
        assert digests(tmp_path / "out") == before
        assert again.num_workers == 0 and again.version == 1 + replace
        facts = ("fingerprint", "num_samples", "num_shards", "num_rejects", "stored_bytes", "source_bytes", "types")
        assert [getattr(again, name) for name in facts] == [getattr(first, name) for name in facts]


def test_something_else_is_not_told_to_be_complete(tmp_path: Path, dirty: Path) -> None:
    pack(dirty, tmp_path / "out", **options(dirty))
    with pytest.raises(PackError, match="exists and holds a dataset"):
        pack(dirty, tmp_path / "out", resume=True, **options(dirty, compression="zstd:1"))
    assert pack(dirty, tmp_path / "out", resume=True, replace=True, **options(dirty, compression="zstd:1")).version == 2
    with shardload.ShardWriter(tmp_path / "out", {"a": "int64"}, replace=True) as writer:
        writer.write({"a": 1})
    with pytest.raises(PackError, match="exists and holds a dataset"):
        pack(dirty, tmp_path / "out", resume=True, **options(dirty, compression="zstd:1"))


def test_continue_begins_where_nothing_was_begun(tmp_path: Path, dirty: Path, digests) -> None:
    pack(dirty, tmp_path / "whole", **options(dirty))
    (tmp_path / "empty").mkdir()
    (tmp_path / "rest/shards").mkdir(parents=True)
    (tmp_path / "rest/shards/0001-000000-00000.shard").write_bytes(b"half")
    (tmp_path / "rest/.work").mkdir()
    for name in ("new", "empty", "rest"):
        until_done(dirty, tmp_path / name)
        assert digests(tmp_path / name) == digests(tmp_path / "whole")


# Errors.


@pytest.mark.parametrize("step", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_operations_that_fail_once(tmp_path: Path, dirty: Path, digests, step: int) -> None:
    """Full, then with room again: told as an error, and continued to the same bytes."""
    operations = Counted()
    pack(dirty, tmp_path / "whole", **options(dirty, operations=operations))
    expected, num_kept = digests(tmp_path / "whole"), 0
    numbers = every(range(1, operations.count + 1), step)
    for number in numbers:
        target = tmp_path / f"{number}"
        try:
            pack(dirty, target, **options(dirty, operations=FailsAt(number, errno.ENOSPC)))
        except PackError as error:
            stays = "what was packed stays: go on with the same command and --continue" in str(error)
            num_kept += stays
            assert stays == (target / ".work/job.json").exists(), (number, str(error))
            assert "No space left on device" in str(error) or "cannot be read" in str(error)
        until_done(dirty, target)
        assert digests(target) == expected, number
        shutil.rmtree(target)
    assert num_kept > len(numbers) // 2


class Small(Operations):
    """A device with room for so many bytes altogether."""

    def __init__(self, num_bytes: int) -> None:
        self.left = num_bytes

    def write(self, descriptor: int, data: memoryview) -> int:
        if not self.left:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        done = super().write(descriptor, data[: self.left])
        self.left -= done
        return done


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_device_keeps_what_is_whole_and_nothing_else(tmp_path: Path, dirty: Path, digests, workers: int) -> None:
    pack(dirty, tmp_path / "whole", **options(dirty))
    target = tmp_path / "out"
    with pytest.raises(PackError, match=r"No space left on device \(.* free\).* what was packed stays"):
        pack(dirty, target, **options(dirty, workers=workers, operations=Small(20_000)))
    told = [json.loads(line[9:])["shard"] for line in (target / ".work/journal").read_bytes().splitlines()]
    names = {f"{generation:04d}-{unit:06d}-{part:05d}.shard" for generation, unit, part, *_ in filter(None, told)}
    assert set(os.listdir(target / "shards")) == names
    until_done(dirty, target, workers=workers)
    assert digests(target) == digests(tmp_path / "whole")


@pytest.fixture
def small_device(tmp_path: Path):
    """A file system of 512 KiB, and how to make it larger."""
    place = tmp_path / "device"
    place.mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(place)]
    if os.geteuid() or subprocess.run(mounted, capture_output=True).returncode:
        pytest.skip("file systems can be mounted here by nobody, or only by root")
    try:
        grown = ["mount", "-o", "remount,size=64m", str(place)]
        yield place, lambda: subprocess.run(grown, check=True)
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_file_system_that_is_full_and_then_is_not(tmp_path: Path, small_device, digests, workers: int) -> None:
    source, (place, grow) = tmp_path / "rows.jsonl", small_device
    source.write_text("".join(json.dumps({"n": n, "text": "x" * 1000}) + "\n" for n in range(1500)))
    more: dict[str, Any] = {"compression": "none", "shard_size": "64KiB", "unit_size": 400_000, "workers": workers}
    with pytest.raises(
        PackError, match=r"out: cannot be written.*: No space left on device \(.* free\).*stays: go on wi"
    ):
        pack(source, place / "out", **more)
    with pytest.raises(PackError, match="No space left on device"):
        pack(source, place / "out", resume=True, **more)
    grow()
    pack(source, place / "out", resume=True, **more)
    pack(source, tmp_path / "whole", **more)
    assert digests(place / "out") == digests(tmp_path / "whole")


def test_an_error_before_the_first_shard_leaves_nothing(tmp_path: Path, dirty: Path) -> None:
    with pytest.raises(PackError, match="No space left on device") as caught:
        pack(dirty, tmp_path / "out", **options(dirty, operations=Small(5000)))
    assert "--continue" not in str(caught.value) and os.listdir(tmp_path) == []


def test_an_interrupt_says_what_stays(tmp_path: Path, dirty: Path, digests, monkeypatch) -> None:
    monkeypatch.setattr("shardload.packing.progress.REPORT_SECONDS", 0)
    pack(dirty, tmp_path / "whole", **options(dirty))

    def interrupt(progress: shardload.packing.Progress) -> None:
        if progress.done.num_samples > 10:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as caught:
        pack(dirty, tmp_path / "out", progress=interrupt, **options(dirty))
    assert "what was packed stays" in caught.value.__notes__[0]
    told: list[shardload.packing.Progress] = []
    summary = pack(dirty, tmp_path / "out", resume=True, progress=told.append, **options(dirty))
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")
    assert 0 < told[0].done.num_samples == told[0].before.num_samples < told[-1].done.num_samples == NUM_SAMPLES
    assert told[-1].done.source_bytes == summary.source_bytes and told[-1].done.num_rejects == summary.num_rejects
    assert told[-1].done.stored_bytes == summary.stored_bytes


# Appending, up to where it is not there yet.


def test_append_needs_a_dataset(tmp_path: Path, dirty: Path) -> None:
    with pytest.raises(PackError, match=r"holds no dataset to append to: pack without --append"):
        pack(dirty, tmp_path / "out", append=True, **options(dirty))
    assert os.listdir(tmp_path) == []
    with pytest.raises(ValueError, match="exclude each other"):
        pack(dirty, tmp_path / "out", append=True, replace=True)


def test_append_to_a_dataset_whose_manifest_was_not_copied_yet(tmp_path: Path, dirty: Path) -> None:
    pack(dirty, tmp_path, **options(dirty))
    (tmp_path / "manifest.json").unlink()
    summary = pack(dirty, tmp_path, **options(dirty, append=True))
    assert summary.version == 2 and len(shardload.open(tmp_path)) == 2 * NUM_SAMPLES


def test_append_takes_the_schema_that_is_there_and_is_continued(tmp_path: Path, dirty: Path, digests) -> None:
    """Killed at each of many operations and continued, an append gives the bytes of one that was left alone."""
    whole, target = tmp_path / "whole", tmp_path / "out"
    more = options(dirty, append=True) | {"schema": None}
    for path in (whole, target):
        pack(dirty, path, **options(dirty))
    before = digests(target)
    pack(dirty, whole, **more)
    assert len(shardload.open(whole)) == 2 * NUM_SAMPLES and shardload.open(whole).manifest.version == 2
    kills = 0
    for at in range(1, 400, 23):
        once = more | {"operations": KilledAt(at), "resume": True}
        if in_child(lambda once=once: pack(dirty, target, **once), group=True) != -signal.SIGKILL:  # type: ignore[misc]
            break
        kills += 1
        assert len(shardload.open(target, version=1)) == NUM_SAMPLES
    assert kills > 3
    pack(dirty, target, resume=True, **more)
    assert digests(target) == digests(whole) and before.items() - digests(target).items() == {
        item for item in before.items() if item[0] in ("manifest.json", "rejects.jsonl", "packed.json")
    }
