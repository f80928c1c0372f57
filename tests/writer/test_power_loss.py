"""Writers and power loss: every disk that may be left at every point opens as the dataset before or the one after."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from faults import Event, NoDevice, NoLinks, Recording
from power_loss import Disk, states
from scenarios import AGAIN, APPEND, CREATE, REPLACE, SCENARIOS, Repair, Scenario, Seen, check, read

from shardload.storage import Operations

scenarios = pytest.mark.parametrize(
    "scenario",
    [pytest.param(one, id=one.name, marks=[pytest.mark.slow] if one is AGAIN else []) for one in SCENARIOS],
)
PLACE = "parent/set"


def recorded(scenario: Scenario, base: Path, inner: Callable[[], Operations] = NoDevice) -> Recording:
    """Writes once and returns the trace."""
    base.mkdir()
    scenario.prepare(base / PLACE, NoDevice())
    recording = Recording(base, inner())
    scenario.write(base / PLACE, recording)
    assert read(base / PLACE) == scenario.after
    return recording


# The model itself: what it says of the known mistakes.


def disk_after(*events: Event, before: dict[str, bytes | None] | None = None) -> Disk:
    disk = Disk(before or {})
    for event in events:
        disk.carry_out(event)
    return disk


def possible(disk: Disk) -> list[dict[str, bytes | None]]:
    return [files for _, files in states(disk, seed=0, num_random=20)]


WRITTEN = [Event("open_new", "new", file=1), Event("write", "new", file=1, data=b"data")]
SYNCED = [*WRITTEN, Event("fsync", "new", file=1)]


def test_data_without_fsync_may_be_lost_and_its_name_be_there() -> None:
    found = possible(disk_after(*WRITTEN, Event("fsync", ".")))
    assert all("new" in files for files in found)
    contents = {files["new"] for files in found}
    assert {b"data", b"", b"\0\0\0\0", b"da", b"dat"} <= contents


def test_a_name_without_fsync_of_its_directory_may_be_lost() -> None:
    found = possible(disk_after(*SYNCED))
    assert {} in found and {"new": b"data"} in found
    assert all(files.get("new", b"data") == b"data" for files in found)
    assert possible(disk_after(*SYNCED, Event("fsync", "."))) == [{"new": b"data"}] * len(found[:24])


def test_a_rename_over_a_file_leaves_the_old_or_the_new() -> None:
    disk = disk_after(*SYNCED, Event("fsync", "."), Event("replace", "new", "old"), before={"old": b"before"})
    assert {files["old"] for files in possible(disk)} == {b"before", b"data"}
    assert any("new" in files for files in possible(disk)) and any("new" not in files for files in possible(disk))


def test_without_the_name_of_a_directory_all_below_it_is_lost() -> None:
    inside = [
        Event("open_new", "d/new", file=2),
        Event("write", "d/new", file=2, data=b"1"),
        Event("fsync", "d/new", file=2),
    ]
    found = possible(disk_after(Event("mkdir", "d"), *inside, Event("fsync", "d")))
    assert {} in found and {"d": None, "d/new": b"1"} in found and {"d": None} not in found


def test_an_unlink_may_not_have_reached_the_disk() -> None:
    found = possible(disk_after(Event("unlink", "old"), before={"old": b"before"}))
    assert {} in found and {"old": b"before"} in found


def test_an_fsync_after_one_that_failed_makes_nothing_certain() -> None:
    found = possible(
        disk_after(*WRITTEN, Event("failed_fsync", "new", file=1), Event("fsync", "new", file=1), Event("fsync", "."))
    )
    assert b"" in {files["new"] for files in found}


# Writers.


def test_a_directory_that_a_killed_writer_made_is_made_certain_by_the_next(tmp_path: Path) -> None:
    """The same holds of one that `mkdir` made a moment ago."""
    base = tmp_path / "base"
    base.mkdir()
    recording = Recording(base, NoDevice())
    recording.mkdir(str(base / "parent"))
    recording.mkdir(str(base / PLACE))
    REPLACE.write(base / PLACE, recording)
    disk = Disk(recording.before)
    for event in recording.events:
        disk.carry_out(event)
    # Its parent is the business of who made that; the name of the target is the writer's.
    disk.carry_out(Event("fsync", "."))
    durable(CREATE, disk, tmp_path / "after", 1)


def lose_power_everywhere(
    scenario: Scenario,
    base: Path,
    seed: int,
    num_random: int,
    inner: Callable[[], Operations] = NoDevice,
    step: int = 1,
) -> int:
    """Looks at disks at every point of a write, and writes again on them; returns how many differed."""
    recording = recorded(scenario, base, inner)
    repair = Repair(scenario, base.parent / "undisturbed")
    disk, seen, opened = Disk(recording.before), Seen(), set()
    elsewhere = base.parent / "after"
    points = [None, *recording.events]
    for number, event in enumerate(points):
        if event is not None:
            disk.carry_out(event)
        if number % step:
            continue
        where = f"{scenario.name}, after operation {number} of {len(points) - 1} ({event and (event.name, event.path)})"
        for label, files in states(disk, seed=seed + number, num_random=num_random):
            if not seen.is_new(files):
                continue
            disk.write_to(elsewhere, files)
            place = f"{where}; {label}; seed {seed}"
            opened.add(check(scenario, elsewhere / PLACE, False, place))
            repair.check(elsewhere / PLACE, place)
    assert opened == {scenario.before, scenario.after}, "disks on both sides of the commit are wanted"
    durable(scenario, disk, elsewhere, seed)
    return len(seen)


def durable(scenario: Scenario, disk: Disk, elsewhere: Path, seed: int) -> None:
    """Once the write has returned, every disk that may be left opens as what was written."""
    for label, files in states(disk, seed=seed, num_random=20):
        disk.write_to(elsewhere, files)
        check(scenario, elsewhere / PLACE, True, f"{scenario.name}, closed; {label}; seed {seed}")


@scenarios
def test_power_loss_at_every_point(scenario: Scenario, tmp_path: Path) -> None:
    assert lose_power_everywhere(scenario, tmp_path / "base", seed=1, num_random=2) > 100


@pytest.mark.parametrize("scenario", [CREATE, REPLACE, APPEND], ids=lambda scenario: scenario.name)
def test_power_loss_without_hard_links(scenario: Scenario, tmp_path: Path) -> None:
    assert lose_power_everywhere(scenario, tmp_path / "base", seed=1, num_random=0, inner=NoLinks, step=4) > 20


@pytest.mark.slow  # tools/test --slow tests/writer/test_power_loss.py
@pytest.mark.parametrize("seed", range(100, 110))
@pytest.mark.parametrize("inner", [NoDevice, NoLinks])
@scenarios
def test_power_loss_at_random(scenario: Scenario, tmp_path: Path, inner: Callable[[], Operations], seed: int) -> None:
    assert lose_power_everywhere(scenario, tmp_path / "base", seed * 1000, 100, inner) > 120


@scenarios
def test_all_that_a_commit_names_is_certain_before_it(scenario: Scenario, tmp_path: Path) -> None:
    """A disk that has lost all it may lose, but got the name of the manifest: the whole version is there."""
    recording = recorded(scenario, tmp_path / "base")
    names = {f"{PLACE}/manifests/{scenario.version}", f"{PLACE}/manifest.json"}
    disk, commits = Disk(recording.before), 0
    for event in recording.events:
        disk.carry_out(event)
        if event.target not in names:
            continue
        commits += 1
        for number in range(disk.num_changes):
            lost = dict.fromkeys(disk.unsynced, b"")
            disk.write_to(tmp_path / "after", disk.files([number], lost))
            found = read(tmp_path / "after" / PLACE)
            assert found in scenario.allowed(False), f"{event.target}, change {number}"
        assert not disk.unsynced, f"{event.target}: data without fsync"
        disk.write_to(tmp_path / "after", disk.files(range(disk.num_changes), {}))
        assert read(tmp_path / "after" / PLACE, scenario.version) == scenario.after
    assert commits == 2
