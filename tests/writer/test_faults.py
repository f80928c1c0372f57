"""Writers that are killed, or whose operations fail, at every point: the dataset before or the one after, whole."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from faults import (
    MUTATING,
    READING,
    TAKING_SPACE,
    Counting,
    FailAt,
    KillAt,
    NoDevice,
    NoLinks,
    Recording,
    ShortTransfers,
    files_below,
    in_child,
)
from power_loss import Disk, states
from scenarios import (
    AGAIN,
    APPEND,
    CREATE,
    NEXT,
    REPLACE,
    SCENARIOS,
    Repair,
    Scenario,
    Seen,
    check,
    every,
    operations_of,
    read,
)

import shardload
from shardload.errors import PackError
from shardload.storage import Operations
from shardload.writer import ShardWriter

scenarios = pytest.mark.parametrize(
    "scenario",
    [pytest.param(one, id=one.name, marks=[pytest.mark.slow] if one is AGAIN else []) for one in SCENARIOS],
)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "parent/set"


def fresh(scenario: Scenario, target: Path) -> dict[str, bytes | None]:
    """Makes what is there before the write, and nothing else; returns its files."""
    shutil.rmtree(target.parent, ignore_errors=True)
    scenario.prepare(target, NoDevice())
    return files_below(target)


# The instruments.


def test_the_instruments_know_every_operation() -> None:
    """An operation that is new to the product must not pass them by."""
    assert {name for name in vars(Operations) if not name.startswith("_")} == {*READING, *MUTATING}


def test_the_instruments_can_be_pickled(tmp_path: Path) -> None:
    # Not made as parameters: a recording begins with the bytes of all files that there are.
    recording = Recording(str(tmp_path))
    instruments = [Counting(), FailAt(3, errno.EIO), ShortTransfers(1), KillAt(2, "half", NoLinks()), NoDevice()]
    for instrument in (recording, *instruments):
        again = pickle.loads(pickle.dumps(instrument))
        made = tmp_path / type(instrument).__name__
        again.mkdir(str(made))
        assert type(again) is type(instrument) and made.is_dir()


# Kills.


def kill_everywhere(
    scenario: Scenario, target: Path, when: str, inner: type[Operations] = NoDevice, step: int = 1
) -> None:
    """Kills the write at every operation that changes something, looks, and writes again."""
    names = operations_of(scenario, target.parent.parent, inner).changing
    repair = Repair(scenario, target.parent.parent / "undisturbed")
    numbers = [number for number, name in enumerate(names, 1) if when != "half" or name == "write"]
    killed, opened = 0, set()
    for number in every(numbers, step):
        where = f"{scenario.name}, killed {when} operation {number} of {len(names)}, {names[number - 1]}"
        fresh(scenario, target)
        status = in_child(partial(scenario.write, target, KillAt(number, when, inner())))
        assert status == -signal.SIGKILL, f"{where}: it ended with {status}"
        killed += 1
        opened.add(check(scenario, target, False, where))
        repair.check(target, where)
    assert killed == len(every(numbers, step)) > 4
    fresh(scenario, target)
    one_more = in_child(partial(scenario.write, target, KillAt(len(names) + 1, inner=inner())))
    assert one_more == 0, "there are more operations than those it was killed at"
    if when != "half":
        assert opened == {scenario.before, scenario.after}, "kills on both sides of the commit are wanted"


@scenarios
@pytest.mark.parametrize("when", ["before", "half"])
def test_killed_at_every_other_operation(scenario: Scenario, target: Path, when: str) -> None:
    """All are for `test_killed_everywhere`; a disk cut off after any operation is also one of those of `test_power_loss`."""
    kill_everywhere(scenario, target, when, step=1 if when == "half" else 2)


@scenarios
def test_killed_after_operations(scenario: Scenario, target: Path) -> None:
    """What is on the disk after one operation is there before the next as well; so not all of them."""
    kill_everywhere(scenario, target, "after", step=5)


@pytest.mark.parametrize("when", ["before", "half"])
@pytest.mark.parametrize("scenario", [CREATE, REPLACE, APPEND], ids=lambda scenario: scenario.name)
def test_killed_without_hard_links(scenario: Scenario, target: Path, when: str) -> None:
    kill_everywhere(scenario, target, when, NoLinks, step=1 if when == "half" else 4)


@scenarios
def test_no_table_is_left_of_a_killed_write(scenario: Scenario, target: Path) -> None:
    number = operations_of(scenario, target.parent.parent).changing.index("link") + 1
    repair = Repair(scenario, target.parent.parent / "undisturbed")
    fresh(scenario, target)
    assert in_child(partial(scenario.write, target, KillAt(number, inner=NoDevice()))) == -signal.SIGKILL
    repair.check(target, scenario.name, tables=True)


@pytest.mark.slow  # tools/test --slow tests/writer/test_faults.py
@pytest.mark.parametrize("inner", [Operations, NoLinks])
@pytest.mark.parametrize("when", ["before", "half", "after"])
@scenarios
def test_killed_everywhere(scenario: Scenario, target: Path, when: str, inner: type[Operations]) -> None:
    """With the device, and after every operation too."""
    kill_everywhere(scenario, target, when, inner)


@pytest.mark.parametrize(
    ("scenario", "step"),
    [(CREATE, 12), *(pytest.param(one, 7, marks=pytest.mark.slow) for one in (CREATE, APPEND))],
    ids=lambda value: getattr(value, "name", None),
)
def test_killed_twice(scenario: Scenario, target: Path, step: int) -> None:
    """The second writer, which begins by tidying up, is killed as well."""
    names = operations_of(scenario, target.parent.parent).changing
    killed = 0
    for first in every(range(1, len(names) + 1), step):
        number = 0
        while True:
            number += 3
            where = f"{scenario.name}, killed before operation {first}, the next writer before operation {number}"
            fresh(scenario, target)
            assert in_child(partial(scenario.write, target, KillAt(first, inner=NoDevice()))) == -signal.SIGKILL, where
            again = partial(REPLACE.write, target, KillAt(number, inner=NoDevice()))
            if number > 20 or in_child(again) == 0:
                break
            killed += 1
            found = read(target)
            assert found in (scenario.before, scenario.after, REPLACE.after), where
            NEXT.write(target, NoDevice())
            assert check(NEXT, target, True, where) == NEXT.after
    assert killed > 20


# Operations that fail.

ERRORS = [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EINTR, errno.EACCES]


def fail_everywhere(scenario: Scenario, target: Path, code: int, lasting: bool, step: int, seed: int = 0) -> None:
    """Makes every operation fail in turn; all kinds, or for want of space those that take some."""
    full = code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    names = TAKING_SPACE if full else (*READING, *MUTATING)
    counting = operations_of(scenario, target.parent.parent)
    count = sum(name in names for name in counting.all)
    repair = Repair(scenario, target.parent.parent / "undisturbed")
    refused = 0
    for number in every(range(1 + seed % step, count + 1), step):
        before = fresh(scenario, target)
        failing = FailAt(number, code, lasting=lasting, names=names, inner=NoDevice())
        error: PackError | None = None
        try:
            scenario.write(target, failing)
        except PackError as caught:
            error = caught
        where = f"{scenario.name}, {errno.errorcode[code]} at operation {number} of {count}, {failing.first}: {error}"
        assert failing.fired >= 1, where
        found = check(scenario, target, error is None, where)
        if error is not None:
            refused += 1
            check_refusal(scenario, target, failing, error, where)
            if "nothing was published" in str(error) and not (lasting and not full):
                assert found == scenario.before, where
                left = files_below(target)
                assert {name: left.get(name) for name in before} == before, where
                # Where a close fails after the fsync, the whole file stays for the next writer to remove.
                if (full or not lasting) and failing.first[0] not in ("close", "unlink", "rmdir"):
                    assert left == before, where
                    assert target.exists() == bool(before) or failing.first[0] in READING, where
        repair.check(target, where)
    assert refused > 5


def check_refusal(scenario: Scenario, target: Path, failing: FailAt, error: PackError, where: str) -> None:
    """The message names the target and the cause, and says how it stands with the dataset."""
    message = str(error)
    assert str(target) in message and os.strerror(failing.code) in message, where
    told = ("nothing was published", f"version {scenario.version} is there whole", "cannot be told whether")
    assert any(words in message for words in told), where
    if failing.code in (errno.ENOSPC, errno.EDQUOT):
        assert "free)" in message, where


@scenarios
@pytest.mark.parametrize("lasting", [False, True], ids=["once", "lasting"])
@pytest.mark.parametrize("code", ERRORS, ids=errno.errorcode.get)
def test_failing_operations(scenario: Scenario, target: Path, code: int, lasting: bool) -> None:
    fail_everywhere(scenario, target, code, lasting, step=7, seed=ERRORS.index(code))


@pytest.mark.slow  # tools/test --slow tests/writer/test_faults.py
@scenarios
@pytest.mark.parametrize("lasting", [False, True], ids=["once", "lasting"])
@pytest.mark.parametrize("code", ERRORS, ids=errno.errorcode.get)
def test_failing_operations_everywhere(scenario: Scenario, target: Path, code: int, lasting: bool) -> None:
    fail_everywhere(scenario, target, code, lasting, step=1)


def test_a_device_that_goes_after_the_commit_is_not_said_to_hold_nothing(target: Path) -> None:
    names = operations_of(CREATE, target.parent.parent).all
    failing = FailAt(names.index("link") + 2, errno.EIO, lasting=True, inner=NoDevice())
    with pytest.raises(PackError) as caught:
        CREATE.write(target, failing)
    assert failing.fired and read(target) == CREATE.after
    assert "nothing was published" not in str(caught.value)


@scenarios
def test_short_writes_and_reads_leave_the_same_bytes(scenario: Scenario, target: Path) -> None:
    fresh(scenario, target)
    scenario.write(target, NoDevice())
    whole = files_below(target)
    for seed in range(5):
        fresh(scenario, target)
        short = ShortTransfers(seed, NoDevice())
        scenario.write(target, short)
        assert short.fired > 20 and files_below(target) == whole, f"seed {seed}"


class LyingDevice(FailAt):
    """Fails one fsync; from then on fsync says success and does nothing, as a kernel that has dropped the pages."""

    def __init__(self, number: int) -> None:
        super().__init__(number, errno.EIO, names=("fsync",), inner=NoDevice())


@pytest.mark.parametrize("step", [4, pytest.param(1, marks=pytest.mark.slow)])
@scenarios
def test_a_failed_fsync_is_never_trusted_again(scenario: Scenario, target: Path, step: int) -> None:
    """The disks that a power loss leaves: no dataset has bytes or names of which a failed fsync was the last word."""
    count = operations_of(scenario, target.parent.parent).all.count("fsync")
    assert count > 8
    seen = Seen()
    for number in every(range(1, count + 1), step):
        fresh(scenario, target)
        failing = LyingDevice(number)
        recording = Recording(target.parent.parent, failing)
        where = f"{scenario.name}, fsync {number} of {count} failed"
        with pytest.raises(PackError, match="Input/output error"):
            scenario.write(target, recording)
        assert failing.fired == 1, where
        disk = Disk(recording.before)
        for event in recording.events:
            disk.carry_out(event)
        elsewhere = target.parent.parent / "after"
        for label, files in states(disk, seed=number, num_random=2):
            if not seen.is_new(files):
                continue
            disk.write_to(elsewhere, files)
            check(scenario, elsewhere / target.relative_to(target.parent.parent), False, f"{where}; {label}")


# Real full disks.


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB, where mounting is allowed."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = shutil.which("mount")
    made = mount and subprocess.run([mount, "-t", "tmpfs", "-o", "size=2m", "tmpfs", path], capture_output=True)
    if not made or made.returncode:
        pytest.skip("mounting a small file system is not allowed here; the limit of file sizes is tested all the same")
    yield path
    subprocess.run(["umount", path], check=True)


@pytest.mark.parametrize("kilobytes", [5, 100, 1500])
def test_a_full_disk(small_disk: Path, kilobytes: int) -> None:
    """The old dataset stays as it is, the message tells what is free, and after making room the write succeeds."""
    target, filler = small_disk / "set", small_disk / "filler"
    REPLACE.prepare(target, Operations())
    before = files_below(target)
    facts = os.statvfs(small_disk)
    filler.write_bytes(bytes(max(0, facts.f_bavail * facts.f_frsize - kilobytes * 1000)))
    with (
        pytest.raises(PackError, match=r"No space left on device \(.* free\); nothing was published"),
        ShardWriter(target, {"data": "bytes"}, shard_size="256KiB", replace=True) as writer,
    ):
        for number in range(40):
            writer.write({"data": bytes([number]) * 100_000})
    assert files_below(target) == before and read(target) == REPLACE.before
    filler.unlink()
    REPLACE.write(target, Operations())
    assert check(REPLACE, target, True, "after the filler went") == REPLACE.after


LIMITED = """
import resource, signal, sys
import shardload
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
try:
    with shardload.ShardWriter(sys.argv[1], {"data": "bytes"}, replace=True) as writer:
        for number in range(40):
            writer.write({"data": bytes([number]) * 100_000})
except shardload.PackError as error:
    print(error)
    raise SystemExit(3) from None
"""


def test_the_limit_of_file_sizes(target: Path) -> None:
    REPLACE.prepare(target, Operations())
    before = files_below(target)
    done = subprocess.run([sys.executable, "-c", LIMITED, target], capture_output=True, text=True, timeout=60)
    assert done.returncode == 3, done.stderr
    assert "File too large; nothing was published" in done.stdout
    assert files_below(target) == before and read(target) == REPLACE.before
    assert shardload.open(target).manifest.version == 1
