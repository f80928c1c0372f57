"""A source whose samples go through steps before they are packed."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from shardload.errors import FormatError, PackError
from shardload.format.schema import parse_schema
from shardload.importers import (
    TOKEN_FIELD,
    Item,
    Outcome,
    Reject,
    Sample,
    Source,
    SourcePlan,
    Unit,
    UnitReader,
    open_source,
    read_from,
)
from shardload.importers.jsonl import JsonlSource
from shardload.packing.call import Call, Preparation
from shardload.preparation import Refusal, Result, StepPool, run_steps
from shardload.preparation.functions import FunctionStep
from shardload.preparation.images import EncodeImage
from shardload.preparation.inference import infer_types

INFERRED_SAMPLES = 256
"""Samples that come out of the steps from which types are inferred, ..."""
INFERRED_ITEMS = 4096
"""... or fewer, where these many go in before."""


_END = Outcome((), 0)
"""Stands at the end of a unit that is read ahead."""


class PreparedSource:
    """A source whose samples go through steps."""

    def __init__(self, inner: Source, wanted: Preparation, num_processes: int) -> None:
        """Describes the source.

        Args:
            inner: the source of the samples.
            wanted: the steps.
            num_processes: how many do them, those of all workers together.
        """
        self.location = inner.location
        self.skipped = inner.skipped
        self._inner = inner
        self._wanted = wanted
        self._reader: PreparedReader | None = None
        self._num_processes = num_processes

    def plan(self, types: Mapping[str, str] | None, unit_size: int | None) -> SourcePlan:
        """Returns units and types: those given, those of the steps, or what the first samples show.

        Raises:
            PackError: as of the source, or a function cannot be imported, or there is no sample to infer types from.
        """
        steps = self._wanted.steps
        plan = self._inner.plan(self._inner_types(types), unit_size)
        functions, timeout_seconds = self._wanted.functions, self._wanted.timeout_seconds
        pool = StepPool(steps, self._num_processes, timeout_seconds) if functions else None
        reader = PreparedReader(plan.reader, self._wanted, pool)
        options = {**plan.options, "steps": [*plan.options.get("steps", ()), *(step.label for step in steps)]}
        self._reader = reader
        if pool is not None:
            options |= {f"steps, source of {name}": digest for name, digest in pool.digests.items()}
        planned = replace(plan, reader=reader, options=options, versions={**plan.versions, **self._versions()})
        return self._typed(planned, reader, plan.types, types)

    def release(self) -> None:
        """Ends the processes that its reader holds in this process."""
        if self._reader is not None:
            self._reader.release()

    def _inner_types(self, types: Mapping[str, str] | None) -> Mapping[str, str] | None:
        """Returns the types that the source itself is asked for."""
        if not any(isinstance(step, FunctionStep) and step.kind == "map" for step in self._wanted.steps):
            encoded = {step.field for step in self._wanted.steps if isinstance(step, EncodeImage)}
            # What is encoded anew may be another kind of image before.
            return types and {name: _as_bytes(text) if name in encoded else text for name, text in types.items()}
        # A schema is that of what a map gives. Of JSON the types decide nothing before: fields may have any names there.
        return {} if isinstance(self._inner, JsonlSource) else None

    def _versions(self) -> dict[str, str]:
        return {name: text for step in self._wanted.steps for name, text in step.versions.items()}

    def _typed(
        self, plan: SourcePlan, reader: PreparedReader, before: Mapping[str, str], given: Mapping[str, str] | None
    ) -> SourcePlan:
        """Returns the plan with the types of what comes out."""
        # Of JSON nothing is known before a map.
        found: Mapping[str, str] | None = before or None
        for step in self._wanted.steps:
            found = None if found is None else step.types(found, self.location)
        if given is not None:
            return replace(plan, types=dict(given), hint="")
        if found is not None:
            return replace(plan, types=dict(found))
        types, reject = self._infer(plan, reader, before)
        hint = f"the types were inferred from the first {INFERRED_SAMPLES} samples that the steps gave; give others with --schema"
        return replace(plan, types=types, hint=hint, reject=plan.reject or reject)

    def _infer(
        self, plan: SourcePlan, reader: PreparedReader, before: Mapping[str, str]
    ) -> tuple[dict[str, str], Reject | None]:
        samples: list[Sample] = []
        reject = None
        items = itertools.islice(itertools.chain.from_iterable(map(reader.inner.read, plan.units)), INFERRED_ITEMS)
        while len(samples) < INFERRED_SAMPLES and (some := list(itertools.islice(items, INFERRED_SAMPLES))):
            for item in reader.prepared(some):
                for one in item.items if isinstance(item, Outcome) else (item,):
                    if isinstance(one, Reject):
                        reject = reject or one
                    else:
                        samples.append(one)
        if not samples:
            if reject is not None:
                raise PackError(reject.message)
            raise PackError(
                f"{self.location}: the steps dropped all of the first samples, so that their types cannot be inferred: give "
                "them with --schema (schema=)"
            )
        types = infer_types([sample.values for sample in samples], before)
        try:
            parse_schema(types)
        except FormatError as error:
            raise PackError(f"{samples[0].place}: what the steps gave: {error}") from None
        return types, reject


@dataclass
class PreparedReader:
    """Reads units through steps. The processes for them start when the first sample is read."""

    inner: UnitReader
    wanted: Preparation
    pool: StepPool | None
    """Processes for the steps; None where this one does them."""
    map_seconds: float = field(default=0.0, init=False)
    _expected: deque[tuple[Unit, int]] = field(default_factory=deque, init=False)
    """What will be read, ..."""
    _ahead: Generator[Item, None, None] | None = field(default=None, init=False)
    """... and what comes of it, with a mark at the end of each."""

    @property
    def waited_seconds(self) -> float | None:
        """Time that this process has waited for those of the steps."""
        return None if self.pool is None else self.pool.waited_seconds

    @property
    def map_cpu_seconds(self) -> float:
        """CPU time of the processes so far."""
        return 0.0 if self.pool is None else self.pool.cpu_seconds

    def read(self, unit: Unit) -> Generator[Item, None, None]:
        """Yields what becomes of each sample of a unit."""
        return self.read_from(unit, 0)

    def read_from(self, unit: Unit, first: int) -> Generator[Item, None, None]:
        """Yields the same from item number `first` on."""
        if self._expected and self._expected[0] == (unit, first):
            yield from self._next_expected()
            return
        with contextlib.closing(read_from(self.inner, unit, first)) as items:
            yield from self.prepared(items)

    def expect(self, wanted: Sequence[tuple[Unit, int]]) -> None:
        """Takes note of what will be read next: units in order, each from an item on, to its end."""
        self._forget()
        if self.pool is not None:
            self._expected.extend(wanted)
            self._ahead = self.prepared(self._items_of(list(wanted)))

    def _items_of(self, wanted: Sequence[tuple[Unit, int]]) -> Iterator[Item]:
        for unit, first in wanted:
            with contextlib.closing(read_from(self.inner, unit, first)) as items:
                yield from items
            yield _END

    def _next_expected(self) -> Iterator[Item]:
        assert self._ahead is not None
        self._expected.popleft()
        ended = False
        try:
            for item in self._ahead:
                if item is _END:
                    ended = True
                    return
                yield item
        finally:
            if not ended:
                # Not to its end: what comes is not what will be asked for.
                self._forget()

    def _forget(self) -> None:
        ahead, self._ahead = self._ahead, None
        self._expected.clear()
        if ahead is not None:
            ahead.close()

    def prepared(self, items: Iterator[Item] | list[Item]) -> Generator[Item, None, None]:
        """Yields what becomes of items of the source."""
        if self.pool is None:
            for item in items:
                started = time.perf_counter()
                done = self._done(item)
                self.map_seconds += time.perf_counter() - started
                yield done
            return
        yield from self._in_processes(iter(items), self.pool)

    def start(self) -> None:
        """Starts the processes."""
        if self.pool is not None:
            self.pool.start()

    def share(self, num_workers: int) -> None:
        """Ends the processes; when they are needed again, there is a worker's share of them, at least one."""
        self._forget()
        if self.pool is not None:
            self.pool.close()
            self.pool.num_processes = max(1, self.pool.num_processes // num_workers)

    def release(self) -> None:
        """Ends the processes; they start again when they are needed."""
        self._forget()
        if self.pool is not None:
            self.pool.close()

    def _done(self, item: Item) -> Item:
        if isinstance(item, Outcome):
            parts = [self._done(one) for one in item.items]
            return Outcome(
                tuple(one for part in parts for one in (part.items if isinstance(part, Outcome) else (part,))),
                item.num_bytes,
            )
        return _outcome(item, run_steps(self.wanted.steps, item.values)) if isinstance(item, Sample) else item

    def _in_processes(self, items: Iterator[Item], pool: StepPool) -> Iterator[Item]:
        reading = 0.0

        def entries() -> Iterator[tuple[Item, dict[str, Any] | None]]:
            nonlocal reading
            while True:
                started = time.perf_counter()
                item = next(items, None)
                reading += time.perf_counter() - started
                if item is None:
                    return
                yield item, item.values if isinstance(item, Sample) else None

        with contextlib.closing(pool.run(entries())) as results:
            while True:
                started = time.perf_counter()
                entry = next(results, None)
                self.map_seconds += time.perf_counter() - started - reading
                reading = 0.0
                if entry is None:
                    return
                item, result = entry
                yield item if result is None or not isinstance(item, Sample) else _outcome(item, result)


def open_prepared(call: Call, held: contextlib.ExitStack) -> Source:
    """Returns the source with all steps: those on the field of tokens, which a tokenizer fills, come after it.

    Args:
        call: what to open.
        held: ends the processes for the steps when it is left.
    """
    name = (call.token_field or TOKEN_FIELD) if call.tokenization is not None else ""
    before, after = (call.preparation.of_field(name, others=others) for others in (True, False))

    def prepare(source: Source, wanted: Preparation) -> Source:
        if not wanted.steps:
            return source
        prepared = PreparedSource(source, wanted, call.settings.wanted_workers)
        held.callback(prepared.release)
        return prepared

    source = open_source(
        *(call.paths, call.include, call.exclude, call.tokenization, call.token_field, call.storage_options),
        prepare=lambda source: prepare(source, before),
    )
    return prepare(source, after)


def _as_bytes(text: str) -> str:
    return "bytes" + ("?" if text.endswith("?") else "")


def _outcome(sample: Sample, result: Result) -> Item:
    """Returns what became of a sample."""
    if len(result) == 1:
        return _item(sample, result[0], sample.place, sample.num_bytes)
    return Outcome(
        tuple(
            _item(sample, one, _Part(sample.place, number, len(result)), sample.num_bytes if number == 1 else 0)
            for number, one in enumerate(result, 1)
        ),
        sample.num_bytes,
    )


def _item(sample: Sample, one: dict[str, Any] | Refusal, place: object, num_bytes: int) -> Sample | Reject:
    return (
        Reject(place, one.reason, num_bytes) if isinstance(one, Refusal) else sample._replace(
            values=one, place=place, num_bytes=num_bytes
        )
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Part:
    """The place of one of several samples that came from one; text is made when it is asked for."""

    place: object
    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.place}, sample {self.number} of {self.count} made of it"
