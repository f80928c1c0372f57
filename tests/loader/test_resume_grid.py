"""Stop anywhere, go on elsewhere: the joined record equals the one of a run that was never stopped.

97 samples, batches of 4 on 3 ranks: nothing divides anything. A run stops after any number of batches, in every way that a
loop can end, and goes on with a dataset, sampler and loader made anew from nothing but the state's text.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from programs import Program
from training import BATCH_SIZE, WORLD, Loop, Row, SamplerLoop, TorchLoop, record, write_content

from shardload.order.cursor import Tail

NUM_SAMPLES, EPOCHS = 97, 3
TESTS = Path(__file__).parent.parent
TAILS = get_args(Tail)

Make = Callable[[int], Loop]


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read only."""
    return write_content(tmp_path_factory.mktemp("content") / "dataset", NUM_SAMPLES)


@pytest.fixture(scope="module")
def whole(content: Path) -> dict[str, list[list[Row]]]:
    """By tail and rank, the record of three epochs without a stop."""
    return {
        tail: [record(Loop(content, rank, tail, prefetch_batches=0), EPOCHS) for rank in range(WORLD)] for tail in TAILS
    }


def places(rows: list[Row]) -> list[tuple[int, int, bool]]:
    """All stops in two epochs: (epoch, batches done in it, whether the loop went on to ask for one more and got none)."""
    lengths = [sum(1 for row in rows if row.epoch == epoch) for epoch in range(2)]
    stops = [(epoch, done, False) for epoch in range(2) for done in range(lengths[epoch] + 1)]
    return stops + [(epoch, lengths[epoch], True) for epoch in range(2)]


def fewer(stops: list[tuple[int, int, bool]]) -> list[tuple[int, int, bool]]:
    """All in the first epoch; in the second, which is like it, those at its ends and one between."""
    last = max(done for _, done, _ in stops)
    return [stop for stop in stops if stop[0] == 0 or stop[1] in (0, 4, last)]


both_epochs = pytest.mark.parametrize("chosen", [fewer, pytest.param(list, marks=pytest.mark.slow)])


def stopped(
    loop: Loop, stop: tuple[int, int, bool], start: tuple[int, int] = (0, 0)
) -> tuple[list[Row], dict[str, str]]:
    """Trains up to a stop; returns the record and the state there, as a file would bring it back."""
    rows: list[Row] = []
    last, done, asked_more = stop
    for epoch in range(start[0], last):
        rows += loop.epoch(epoch, start[1] if epoch == start[0] else 0)
    first = start[1] if last == start[0] else 0
    if done == first and not asked_more:
        # Before the first batch: no iterator is there yet.
        return rows, json.loads(json.dumps(loop.order.state_dict()))
    for row in loop.epoch(last, first):
        rows.append(row)
        if row.step + 1 == done and not asked_more:
            break
    return rows, json.loads(json.dumps(loop.state(done)))


def check(make: Make, rank: int, expected: list[Row], stop: tuple[int, int, bool]) -> dict[str, str]:
    """Stops once, goes on with a new loop over the end of the next epoch, and returns the state at the stop."""
    loop = make(rank)
    rows, state = stopped(loop, stop)
    del loop
    again = make(rank)
    again.order.load_state_dict(state)
    assert again.order.state_dict() == state, "a state that was loaded is the state"
    # A full epoch behind the loop is no epoch to go on with.
    length = sum(1 for row in expected if row.epoch == stop[0])
    place = (stop[0], stop[1]) if stop[1] < length else (stop[0] + 1, 0)
    left = sum(1 for row in expected if row.epoch == place[0]) - place[1]
    if isinstance(again, SamplerLoop):
        assert -(-len(again.order) // BATCH_SIZE) == left + place[1]
    else:
        assert again.order.remaining == left > 0
    epochs = stop[0] + 2
    assert rows + record(again, epochs, place) == [row for row in expected if row.epoch < epochs]
    return state


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("kind", [Loop, TorchLoop])
@both_epochs
def test_every_stop(content: Path, whole, tail: str, kind: type[Loop], chosen: Any) -> None:
    """Ranks take turns; a loader reads ahead in a thread and in the loop's own, in turns too."""
    for number, stop in enumerate(chosen(places(whole[tail][0]))):
        options = {"prefetch_batches": 4 * (number % 2)} if kind is Loop else {}
        rank = number % WORLD
        check(lambda rank, options=options: kind(content, rank, tail, **options), rank, whole[tail][rank], stop)


@pytest.mark.parametrize("tail", ["drop", "pad"])
@both_epochs
def test_every_stop_of_the_plain_sampler(content: Path, whole, tail: str, chosen: Any) -> None:
    """It has torch's two tails, and of 97 samples drops or repeats what whole batches do."""
    for number, stop in enumerate(chosen(places(whole[tail][0]))):
        rank = number % WORLD
        check(lambda rank: SamplerLoop(content, rank, tail), rank, whole[tail][rank], stop)


@pytest.mark.parametrize("tail", TAILS)
def test_states_do_not_tell_ranks_or_paths_apart(content: Path, whole, tail: str) -> None:
    for stop in places(whole[tail][0])[::7]:
        loops = [kind(content, rank, tail) for rank in range(WORLD) for kind in (Loop, TorchLoop)]
        states = [stopped(loop, stop)[1] for loop in loops]
        assert all(state == states[0] for state in states)


def test_the_uninterrupted_record_is_the_promised_one(whole) -> None:
    """So that the rest of this file compares with something right."""
    for tail, ranks in whole.items():
        steps = [[(row.epoch, row.step) for row in rows] for rows in ranks]
        assert steps[0] == steps[1] == steps[2]
        for epoch in range(EPOCHS):
            ids = [i for rows in ranks for row in rows if row.epoch == epoch for i in row.ids]
            if tail in ("short", "mask"):
                assert sorted(ids) == list(range(NUM_SAMPLES))
            elif tail == "pad":
                assert set(ids) == set(range(NUM_SAMPLES)) and len(ids) == 99
            else:
                assert len(ids) % 12 == 0 and len(ids) >= 96


def workers(num_workers: int, persistent: bool = False, **options: Any) -> dict[str, Any]:
    more = {"persistent_workers": persistent, "timeout": 60} if num_workers else {}
    return {"num_workers": num_workers, **more, **options}


FEW_STOPS = [(0, 0, False), (0, 1, False), (0, 5, False), (0, 9, False), (0, 9, True), (1, 0, False), (1, 4, False)]


many_workers = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")


@many_workers
@pytest.mark.parametrize(
    ("options", "rank", "stop"),
    [
        (workers(1), 0, (0, 5, False)),
        (workers(1, True), 1, (0, 9, True)),
        (workers(4), 2, (1, 4, False)),
        (workers(4, True), 0, (0, 1, False)),
    ],
)
def test_stops_under_worker_processes(content: Path, whole, options: dict[str, Any], rank: int, stop: Any) -> None:
    """They are given batches ahead of the loop, which must not count."""
    check(lambda rank: TorchLoop(content, rank, "pad", **options), rank, whole["pad"][rank], stop)


@many_workers
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("num_workers", [1, 4])
@pytest.mark.parametrize("persistent", [False, True])
def test_every_stop_under_worker_processes(content: Path, whole, tail: str, num_workers: int, persistent: bool) -> None:
    for number, stop in enumerate(places(whole[tail][0])):
        rank = number % WORLD
        check(
            lambda rank: TorchLoop(content, rank, tail, **workers(num_workers, persistent)),
            rank,
            whole[tail][rank],
            stop,
        )


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_stops_under_each_start_method(content: Path, whole, method: str) -> None:
    for number, stop in enumerate(FEW_STOPS[2:6]):
        rank = number % WORLD
        options = workers(2, True, multiprocessing_context=method)
        check(
            lambda rank, options=options: TorchLoop(content, rank, "mask", **options), rank, whole["mask"][rank], stop
        )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_stops_of_a_loader_with_child_processes(content: Path, whole) -> None:
    for number, stop in enumerate(FEW_STOPS[1:5]):
        rank = number % WORLD
        check(lambda rank: Loop(content, rank, "carry", num_processes=1), rank, whole["carry"][rank], stop)


@pytest.mark.parametrize("kind", [Loop, TorchLoop])
def test_a_resume_of_resumes_is_one_resume(content: Path, whole, kind: type[Loop]) -> None:
    """A stop after every single batch, each in a loop made anew: nothing is zeroed by loading."""
    for tail in TAILS:
        expected = [row for row in whole[tail][1] if row.epoch < 2]
        state, rows = None, []
        for number, row in enumerate(expected):
            loop = kind(content, 1, tail)
            if state is not None:
                loop.order.load_state_dict(state)
            more = loop.epoch(row.epoch, row.step)
            rows.append(next(more))
            more.close()
            state = json.loads(json.dumps(loop.state(row.step + 1)))
            assert rows[-1] == expected[number]


PROGRAM = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[4])
from training import Loop, TorchLoop, record

for kind, rank, tail, place, state in json.loads(sys.argv[2]):
    loop = {"Loop": Loop, "TorchLoop": TorchLoop}[kind](Path(sys.argv[1]), rank, tail)
    loop.order.load_state_dict(state)
    print(json.dumps(record(loop, int(sys.argv[3]), tuple(place))))
"""


def test_in_a_fresh_process(content: Path, whole) -> None:
    """Which has nothing but the text of the states: one process for all of them."""
    cases, expected = [], []
    for number, tail in enumerate(TAILS):
        for kind in (Loop, TorchLoop):
            rank = number % WORLD
            for stop in [(0, 0, False), (0, 7, False), (1, 3, False)]:
                rows, state = stopped(kind(content, rank, tail), stop)
                cases.append((kind.__name__, rank, tail, stop[:2], state))
                expected.append(whole[tail][rank][len(rows) :])
    process = Program(PROGRAM, content, json.dumps(cases), EPOCHS, TESTS)
    output, errors = process.communicate(timeout=90)
    assert process.returncode == 0, errors
    found = [
        [Row(epoch, step, rank, tuple(ids), text) for epoch, step, rank, ids, text in json.loads(line)]
        for line in output.splitlines()
    ]
    assert found == expected
