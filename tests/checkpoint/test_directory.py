"""A directory of checkpoints under kills, power loss and failing disks: what is published is whole, and nothing whole is lost."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest
from faults import Counting, FailAt, KillAt, NoDevice, Recording, ShortTransfers, in_child
from hypothesis import given
from hypothesis import strategies as st
from power_loss import Disk, states

from shardload.checkpoint.directory import CheckpointDirectory
from shardload.checkpoint.manifest import CheckpointManifest, WrittenFile, decode_manifest, encode_manifest
from shardload.checkpoint.sums import Crc32c
from shardload.errors import FormatError, StateMismatchError, StorageError, UnsupportedVersionError
from shardload.storage import FileWriter, Operations

RANKS = 2


def content(step: int, rank: int) -> bytes:
    return f"step {step} of rank {rank} ".encode() * 500


def save(path: Path, step: int, known: int | None, operations: Operations, keep: int | None = 2) -> None:
    """Does what the ranks and the leading one do for a checkpoint."""
    directory = CheckpointDirectory(path, operations)
    hidden = None
    try:
        hidden = directory.begin(step, known)
        files = []
        for rank in range(RANKS):
            summed = Crc32c()
            with FileWriter(f"{directory.path}/{hidden}/data-{rank}", operations, summed) as writer:
                writer.write(content(step, rank))
                writer.finish()
            files.append(WrittenFile(f"data-{rank}", writer.num_bytes, summed.value))
        directory.publish(hidden, CheckpointManifest(step, RANKS, (), tuple(files)), known)
    except OSError:
        directory.abandon(hidden)
        raise
    directory.prune(keep)


def whole_steps(path: Path) -> list[int]:
    """Returns the published steps, newest first, and checks that each is whole and has what was saved under it."""
    directory = CheckpointDirectory(path)
    for step in directory.steps():
        manifest = directory.read_manifest(step)
        assert directory.find_damage(step, manifest.files, sums=True) == ""
        assert [Path(directory.path_of(step), file.name).read_bytes() for file in manifest.files] == [
            content(step, rank) for rank in range(RANKS)
        ]
    return directory.steps()


def newest(path: Path) -> int | None:
    """Returns what a restore would take: the newest that is whole."""
    directory = CheckpointDirectory(path)
    for step in directory.steps():
        try:
            manifest = directory.read_manifest(step)
        except (FormatError, StorageError):
            continue
        if not directory.find_damage(step, manifest.files, sums=True):
            return step
    return None


PREPARED = [(3, None), (6, 3)]
"""Step and the step known before, of what is there already."""

WRITES = {
    "first": ([], 3, None, [3]),
    "next": (PREPARED, 9, 6, [9, 6]),
    "after going back": (PREPARED, 5, 3, [5, 3]),
    "the same again after going back": (PREPARED, 6, 3, [6, 3]),
}
"""What is there, the step saved, the step known, and what is there afterwards."""


some_are_slow = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if i % 2 else []) for i, name in enumerate(WRITES)]
)


@some_are_slow
def test_killed_at_any_operation(tmp_path: Path, name: str) -> None:
    prepared, step, known, after = WRITES[name]
    place = tmp_path / "prepared"
    for one in prepared:
        save(place / "a", *one, NoDevice())
    place.mkdir(exist_ok=True)
    counting = Counting(NoDevice())
    shutil.copytree(place, tmp_path / "counted")
    save(tmp_path / "counted/a", step, known, counting)
    assert whole_steps(tmp_path / "counted/a") == after
    ends = set()
    for number, operation in enumerate(counting.changing, 1):
        for when in ("before", "half") if operation == "write" else ("before",):
            path = tmp_path / f"{number}-{when}"
            shutil.copytree(place, path)
            kill = KillAt(number, when, NoDevice())
            assert in_child(lambda path=path, kill=kill: save(path / "a", step, known, kill)) < 0
            steps = whole_steps(path / "a")
            # What was restored stays until the new one is there.
            assert not prepared or step in steps or known in steps
            ends.add(steps[0] if steps else None)
            # The next run clears up, and is not disturbed.
            save(path / "a", 20, steps[0] if steps else None, NoDevice())
            assert whole_steps(path / "a")[0] == 20
            assert not [one for one in path.glob("a/*") if one.name.startswith(".")]
    # Of a history that was left nothing comes after the new checkpoint, and before it the end of that history.
    assert ends == {step, known, max([one for one, _ in prepared], default=None)}


@pytest.mark.parametrize("name", WRITES)
def test_power_lost_at_any_operation(tmp_path: Path, name: str) -> None:
    prepared, step, known, _ = WRITES[name]
    base = tmp_path / "base"
    base.mkdir()
    for one in prepared:
        save(base / "a", *one, NoDevice())
    recording = Recording(base, NoDevice())
    save(base / "a", step, known, recording)
    disk, replayed = Disk(recording.before), tmp_path / "replayed"
    before = {max([one for one, _ in prepared], default=None), known, step}
    seen, found = set(), set()
    for event in recording.events:
        disk.carry_out(event)
        for label, files in states(disk, seed=1, num_random=2):
            key = hash(tuple(sorted(files.items(), key=str)))
            if key in seen:
                continue
            seen.add(key)
            disk.write_to(replayed, files)
            found.add(newest(replayed / "a"))
            assert found <= before, (event, label)
            if step not in dict(prepared) and (replayed / f"a/step-{step}").exists():
                # Where it has its name, it is the newest: no later one of a history that was left comes before it.
                assert CheckpointDirectory(replayed / "a").steps()[0] == step, (event, label)
    assert step in found
    # Once save has returned, it is certain.
    for label, files in states(disk, seed=2, num_random=5):
        disk.write_to(replayed, files)
        assert newest(replayed / "a") == step, label


def test_a_failing_disk_leaves_what_was_there(tmp_path: Path) -> None:
    names = ("open_new", "write", "fsync", "mkdir", "replace")
    number = 0
    while True:
        number += 1
        path = tmp_path / str(number)
        for one in PREPARED:
            save(path, *one, NoDevice())
        fault = FailAt(number, errno.ENOSPC, names=names, inner=NoDevice())
        try:
            save(path, 9, 6, fault)
        except OSError:
            assert whole_steps(path) == [6, 3] and sorted(one.name for one in path.iterdir()) == ["step-3", "step-6"]
            save(path, 9, 6, NoDevice())
            assert whole_steps(path) == [9, 6]
            continue
        # The last operations remove the old one: their failure is logged, and the next save removes it.
        assert whole_steps(path)[:2] == [9, 6]
        if not fault.fired:
            break
    assert number > 10


def test_short_transfers(tmp_path: Path) -> None:
    fault = ShortTransfers(3, NoDevice())
    save(tmp_path, 3, None, fault)
    assert fault.fired > 3 and whole_steps(tmp_path) == [3]


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    first = CheckpointDirectory(tmp_path / "a")
    hidden = first.begin(3, None)
    with pytest.raises(StorageError, match="another process is writing a checkpoint"):
        save(tmp_path / "a", 3, None, NoDevice())
    first.abandon(hidden)
    save(tmp_path / "a", 3, None, NoDevice())
    with pytest.raises(StateMismatchError, match="up to step 3, which this run does not go on from"):
        first.begin(4, None)
    first.abandon(None)
    save(tmp_path / "a", 4, 3, NoDevice())


def test_foreign_names_are_let_alone(tmp_path: Path) -> None:
    for name in ("step-x", "step-03", "step--1", "notes", ".hidden"):
        (tmp_path / name).mkdir()
    save(tmp_path, 3, None, NoDevice(), keep=1)
    save(tmp_path, 6, 3, NoDevice(), keep=1)
    assert whole_steps(tmp_path) == [6]
    assert len(list(tmp_path.iterdir())) == 6


MANIFEST = CheckpointManifest(7, 3, ("python",), (WrittenFile("__0_0.distcp", 12, 99), WrittenFile(".metadata", 3, 1)))


def test_a_manifest_is_what_it_was() -> None:
    assert decode_manifest(encode_manifest(MANIFEST), "here") == MANIFEST


@given(data=st.data())
def test_a_manifest_that_was_changed_is_refused(data: st.DataObject) -> None:
    encoded = bytearray(encode_manifest(MANIFEST).rstrip())
    if data.draw(st.booleans()):
        encoded[data.draw(st.integers(0, len(encoded) - 1))] ^= data.draw(st.integers(1, 255))
    else:
        del encoded[data.draw(st.integers(0, len(encoded) - 1)) :]
    with pytest.raises(FormatError, match=r"here: manifest.json"):
        decode_manifest(bytes(encoded), "here")


@pytest.mark.parametrize("name", ["../x", "a/b", "..", ".", "", "/etc/passwd", "x" * 121])
def test_a_manifest_names_nothing_outside(name: str) -> None:
    manifest = CheckpointManifest(7, 3, (), (WrittenFile(name, 1, 1),))
    with pytest.raises(FormatError, match="names files that cannot be"):
        decode_manifest(encode_manifest(manifest), "here")


def test_another_version_is_named() -> None:
    data = encode_manifest(MANIFEST).replace(b'"version":1', b'"version":2')
    with pytest.raises(UnsupportedVersionError, match="version 2"):
        decode_manifest(data, "here")
