"""Retries with clock, chance and answers given: what is done, when, and what it says. See test_faults for real servers."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, get_args

import pytest

from shardload.errors import FormatError, LoaderClosedError, StorageError
from shardload.storage import LocalStorage
from shardload.storage.answers import AnswerError, Kind
from shardload.storage.retrying import Retries, RetryingStorage
from shardload.storage.schedule import RetryBudget, RetryPolicy
from shardload.storage.stopping import Stop, attempt_seconds, current_stop, heed, heeding

DATA = bytes(range(256))
PLACE = {"dataset": "s3://b/d", "shard": "file", "start": 3, "stop": 9}


class Time:
    """A clock that goes on only while somebody waits."""

    def __init__(self) -> None:
        self.now, self.waits = 100.0, list[float]()

    def clock(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.waits.append(round(seconds, 6))
        self.now += seconds


class Scripted:
    """Answers as told: a kind fails, None gives what is asked for. The last answer stays."""

    def __init__(self, *answers: Any, time: Time | None = None, seconds: float = 0.0) -> None:
        self.answers, self.num_asked, self.time, self.seconds = list(answers), 0, time, seconds
        self.bounds: list[float | None] = []

    def __call__(self) -> str:
        self.num_asked += 1
        self.bounds.append(attempt_seconds())
        if self.time is not None:
            self.time.now += min(self.seconds, attempt_seconds() or self.seconds)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if answer is None:
            return "right"
        if isinstance(answer, str):
            answer = AnswerError(f"s3://b/d: file is {answer}", kind=answer, **PLACE)
        raise answer


def made(time: Time, renew: Callable[[], None] | None = None, draw: float = 1.0, **policy: Any) -> Retries:
    return Retries(RetryPolicy(**policy), renew, clock=time.clock, draw=lambda: draw, wait=time.wait)


MENDED: list[Kind] = [kind for kind in get_args(Kind) if kind not in ("missing", "changed", "refused", "access")]


@pytest.mark.parametrize("kind", MENDED)
def test_what_may_be_mended_is_tried_again(kind: Kind) -> None:
    for num_failures in (0, 1, 2, 5):
        time = Time()
        retries, asked = made(time), Scripted(*[kind] * num_failures, None)
        assert retries.call(asked) == "right" and asked.num_asked == num_failures + 1
        assert retries.counts == ({kind: num_failures} if num_failures else {})
        assert time.waits == pytest.approx([0.1, 0.3, 0.9, 2.7, 8.1][:num_failures])


@pytest.mark.parametrize("kind", [kind for kind in MENDED if kind != "unreachable"])
def test_what_never_mends_is_an_error(kind: Kind) -> None:
    time = Time()
    retries, asked = made(time), Scripted(kind)
    with pytest.raises(StorageError, match=rf"file is {kind}; gave up after 6 attempts in 12.1 s$") as caught:
        retries.call(asked)
    assert asked.num_asked == 6 and retries.counts == {kind: 5}
    error = caught.value
    assert isinstance(error, AnswerError) and error.kind == kind
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error) and again.kind == kind and vars(again) == vars(error)
    assert {name: getattr(error, name) for name in PLACE} == PLACE


@pytest.mark.parametrize("kind", ["missing", "changed", "refused", "access"])
def test_what_is_final_is_an_error_at_once(kind: Kind) -> None:
    time = Time()
    retries, asked = made(time), Scripted(kind)
    with pytest.raises(AnswerError, match=f"file is {kind}$") as caught:
        retries.call(asked)
    assert asked.num_asked == 1 and not time.waits and retries.counts == {} and caught.value.__cause__ is None
    for other in (FormatError("damaged"), OSError("broken"), KeyboardInterrupt()):
        asked = Scripted(other)
        with pytest.raises(type(other)):
            retries.call(asked)
        assert asked.num_asked == 1


def test_a_server_that_is_gone_is_waited_for_until_the_deadline() -> None:
    for draw in (0.01, 0.5, 1.0):
        time = Time()
        asked = Scripted("unreachable")
        retries = made(time, draw=draw)
        with pytest.raises(AnswerError, match=r"unreachable; gave up after .* in [0-9.]+ s$"):
            retries.call(asked)
        assert 150 < time.now <= 160.0 and asked.num_asked < 130
        # Come back in time, and it is right.
        time = Time()

        def gone(time: Time = time) -> str:
            if time.now < 145:
                raise AnswerError("gone", kind="unreachable")
            return "right"

        assert made(time, draw=draw).call(gone) == "right"


@pytest.mark.parametrize("seconds", [0.0, 0.4, 10.0, 29.0, 1e9])
@pytest.mark.parametrize("kind", ["stalled", "throttled"])
def test_the_deadline_bounds_all(kind: Kind, seconds: float) -> None:
    """However long attempts take: each is told what is left, and none begins after the end."""
    time = Time()
    asked = Scripted(kind, time=time, seconds=seconds)
    with pytest.raises(AnswerError, match=kind):
        made(time).call(asked)
    assert time.now <= 160.0 + 0.001 and asked.num_asked <= 6
    assert asked.bounds[0] == 60.0 and all(left is not None and 0 < left <= 60.0 for left in asked.bounds)
    assert asked.bounds == sorted(asked.bounds, key=lambda left: -(left or 0)) and attempt_seconds() is None


def test_what_the_store_asks_for() -> None:
    time = Time()
    busy = AnswerError("busy", kind="throttled", retry_after_seconds=7.0)
    assert made(time).call(Scripted(busy, None)) == "right" and time.waits == [7.1]
    time = Time()
    with pytest.raises(AnswerError, match=r"busy$"):
        made(time).call(Scripted(AnswerError("busy", kind="throttled", retry_after_seconds=3600.0)))
    assert not time.waits


def test_credentials_are_read_anew_once() -> None:
    renewed: list[int] = []
    time = Time()
    retries = made(time, lambda: renewed.append(1))
    assert retries.call(Scripted("access", None)) == "right"
    assert len(renewed) == 1 and time.waits == [0.0] and retries.counts == {"access": 1}
    asked = Scripted("access")
    with pytest.raises(AnswerError, match=r"access; gave up after 2 attempts in 0.0 s$"):
        retries.call(asked)
    assert asked.num_asked == 2 and len(renewed) == 2

    # Of several that fail together one reads them.
    renewed.clear()
    together, done = threading.Barrier(4), list[str]()

    def denied_once(tried: list[int]) -> str:
        if not tried:
            tried.append(1)
            together.wait(20)
            raise AnswerError("denied", kind="access")
        return "right"

    threads = [
        threading.Thread(target=lambda tried=[]: done.append(retries.call(lambda: denied_once(tried))))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert done == ["right"] * 4 and len(renewed) == 1


def test_all_readers_share_a_budget() -> None:
    time = Time()
    budget = RetryBudget(share=0.1, always=3, window_seconds=10.0)
    retries = Retries(RetryPolicy(), clock=time.clock, draw=lambda: 0.0, wait=time.wait, budget=budget)
    for _ in range(3):
        assert retries.call(Scripted("transient", None)) == "right"
    assert time.now == 100.0
    # The next one waits until the first is ten seconds old.
    assert retries.call(Scripted("transient", None)) == "right" and time.now == 110.0
    short = Retries(RetryPolicy(deadline_seconds=5), clock=time.clock, draw=lambda: 0.0, wait=time.wait, budget=budget)
    budget.take(time.now), budget.take(time.now)
    asked = Scripted("transient")
    with pytest.raises(AnswerError, match=r"transient$"):
        short.call(asked)
    assert asked.num_asked == 1 and time.now == 110.0


def test_ranks_do_not_retry_in_step() -> None:
    def waits() -> list[float]:
        time = Time()
        retries = Retries(RetryPolicy(), clock=time.clock, wait=time.wait)
        with pytest.raises(AnswerError):
            retries.call(Scripted("throttled"))
        return time.waits

    found = [waits() for _ in range(20)]
    firsts = {some[0] for some in found}
    assert len(firsts) > 15 and all(0 <= first <= 0.1 for first in firsts)


def test_a_wait_ends_when_nobody_wants_the_answer() -> None:
    stop, asked = Stop(), Scripted("unreachable")
    ended = list[BaseException]()
    waits = threading.Event()

    def read() -> None:
        heed(stop)
        try:
            Retries(RetryPolicy(deadline_seconds=3000, first_wait_seconds=1000), draw=lambda: 1.0).call(asked)
        except BaseException as error:
            ended.append(error)

    def called() -> None:
        waits.set()

    thread = threading.Thread(target=read)
    thread.start()
    while not asked.num_asked:
        pass
    stop.set()
    thread.join(20)
    assert not thread.is_alive() and isinstance(ended[0], LoaderClosedError)
    # What waits in another way is called, also if it comes later.
    with stop.calling(called):
        assert waits.is_set()
    waits.clear()
    other = Stop()
    with heeding(other), current_stop().calling(called):
        other.set()
        assert waits.is_set() and current_stop().is_set()
    assert not current_stop().is_set()


class OnlyRetries(RetryingStorage):
    """For a local directory whose first so many answers fail."""

    def __init__(self, root: Path, failures: Iterable[Kind]) -> None:
        self.failures = list(failures)
        outer = self

        class Failing(LocalStorage):
            def _fail(self) -> None:
                if outer.failures:
                    raise AnswerError("not now", kind=outer.failures.pop(0))

            def open(self, name: str, num_bytes: int | None = None) -> Any:
                self._fail()
                file = super().open(name, num_bytes)
                whole = file.read_into

                def read_into(buffer: memoryview, start: int) -> None:
                    # Half of it comes, and then nothing.
                    whole(buffer[: len(buffer) // 2], start)
                    self._fail()
                    whole(buffer, start)

                file.read_into = read_into  # type: ignore[method-assign]
                return file

            def exists(self, name: str) -> bool:
                self._fail()
                return super().exists(name)

            def list(self, name: str) -> list[str]:
                self._fail()
                return super().list(name)

        time = Time()
        super().__init__(Failing(str(root)), retries=made(time))


def test_every_request_of_a_storage_is_made_again(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(DATA)
    storage = OnlyRetries(tmp_path, [])
    asked: list[Callable[[], Any]] = [
        lambda: storage.open("file", 256).read(0, 256),
        lambda: storage.read_small("file", 256),
        lambda: storage.exists("file"),
        lambda: storage.list(""),
    ]
    for ask in asked:
        right = ask()
        storage.failures += ["transient", "stalled"]
        assert ask() == right and not storage.failures
    buffer = bytearray(256)
    file = storage.open("file")
    storage.failures += ["wrong"] * 3
    file.read_into(memoryview(buffer), 0)
    assert buffer == DATA and storage.num_retries == {"transient": 4, "stalled": 4, "wrong": 3}
    assert (file.dataset, file.name, file.num_bytes) == (str(tmp_path), "file", 256) and storage.root == str(tmp_path)


def test_a_pickle_carries_the_policy_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(DATA)
    storage = RetryingStorage(LocalStorage(str(tmp_path)), RetryPolicy(max_retries=2))
    again = pickle.loads(pickle.dumps(storage))
    assert again.policy == RetryPolicy(max_retries=2) and again.open("file").read(0, 9) == DATA[:9]
    assert again.num_retries == {}
