"""What every source gives: units that can be read alone, and what is known before the first is read."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

from shardload.errors import PackError
from shardload.format.manifest import Metadata
from shardload.writer.external import Outside


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file of a source as it was when the source was scanned; one that differs later is refused."""

    path: str
    """Path below the source's folder, with `/`."""
    num_bytes: int
    modified_ns: int
    """Time of the last change in nanoseconds: tells a file rewritten while it is packed, and goes nowhere else."""
    problem: str = ""
    """Why it cannot be packed, such as `is a FIFO`; its reader yields a reject in its place."""
    tag: str = ""
    """Of a file of a URL, in the place of a time: what changes with its content, or nothing where the store has none."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A half-open range of bytes of a file."""

    file: SourceFile
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Unit:
    """A piece of the source that one worker packs alone; its number goes into the names of its shards."""

    number: int
    pieces: tuple[Piece, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of the source in this unit."""
        return sum(piece.stop - piece.start for piece in self.pieces)

    def __str__(self) -> str:
        first, last = self.pieces[0].file.path, self.pieces[-1].file.path
        return f"unit {self.number} ({first})" if first == last else f"unit {self.number} ({first} to {last})"


class Sample(NamedTuple):
    """One sample as a source gives it."""

    values: dict[str, Any]
    """Field name -> value."""
    place: object
    """Where it comes from: `str()` names it. Text is made only when it is asked for, as finding a line number costs."""
    num_bytes: int
    """Bytes of the source it was made from, as stored there."""
    outside: Outside | None = None
    """Where values of it lie in a file, if they are to stay there rather than be copied."""


class Reject(NamedTuple):
    """Something in a source that should be a sample and is not one; what comes after it can be read all the same."""

    place: object
    """Where it is: `str()` names it."""
    reason: str
    """What is wrong, without the place."""
    num_bytes: int
    """Bytes of the source it takes, as stored there."""
    joint: str = ": "
    """What stands between place and reason in a sentence: a space where the reason is its predicate."""

    @property
    def message(self) -> str:
        """The sentence that says what is wrong and where."""
        return f"{self.place}{self.joint}{self.reason}"


class Outcome(NamedTuple):
    """What became of one sample of a source on the way, where that is not one sample."""

    items: tuple[Sample | Reject, ...]
    """Several where it was split; none where it was dropped."""
    num_bytes: int
    """Bytes of the source it takes, if it was dropped; else those of `items` count."""


Item = Sample | Reject | Outcome
"""What a reader yields."""


class UnitReader(Protocol):
    """Reads units. Small and picklable, so that it can be sent to any process."""

    def read(self, unit: Unit) -> Generator[Item, None, None]:
        """Yields what a unit holds, in order: the same at every call, as long as the source does not change.

        What is no sample, but leaves the rest readable, is yielded as a `Reject`: whoever packs decides what follows.

        Raises:
            PackError: what comes after cannot be read either, such as behind a cut compressed stream; names file and place.
        """
        ...


@runtime_checkable
class SkippingReader(UnitReader, Protocol):
    """A reader that works on what another one reads, and need not do so for what is passed over."""

    def read_from(self, unit: Unit, first: int) -> Generator[Item, None, None]:
        """Yields what `read` would from item number `first` on; raises as of the function `read_from`."""
        ...


@runtime_checkable
class PreparingReader(SkippingReader, Protocol):
    """A reader that changes what another one reads, at some cost, and may hold processes for it."""

    @property
    def map_seconds(self) -> float:
        """Time that the changes have taken in this process so far."""
        ...

    @property
    def map_cpu_seconds(self) -> float:
        """CPU time that they have taken in other processes."""
        ...

    @property
    def waited_seconds(self) -> float | None:
        """Time that this process has waited for the others so far; None where it does the changes itself."""
        ...

    def start(self) -> None:
        """Starts the processes that it will need, if they are not there yet."""
        ...

    def expect(self, wanted: Sequence[tuple[Unit, int]]) -> None:
        """Takes note of what will be read next: units in order, each from an item on, to its end.

        Its processes go on with the next unit while the last items of one are on their way.
        """
        ...

    def share(self, num_workers: int) -> None:
        """Ends the processes that it holds; when it reads again, it takes its share of those that so many workers have.

        At first it takes all.
        """
        ...


def preparing(reader: UnitReader | None) -> Iterator[PreparingReader]:
    """Yields the readers that change what is read among those that stand one on top of another."""
    while reader is not None:
        if isinstance(reader, PreparingReader):
            yield reader
        reader = getattr(reader, "inner", None)


def read_from(reader: UnitReader, unit: Unit, first: int) -> Generator[Item, None, None]:
    """Yields what a unit holds from its item number `first` on.

    Raises:
        PackError: as of `UnitReader.read`, or there are fewer items.
    """
    if isinstance(reader, SkippingReader):
        return reader.read_from(unit, first)
    items = reader.read(unit)
    num_passed = sum(1 for _ in itertools.islice(items, first))
    if num_passed < first:
        raise PackError(
            f"{unit} had at least {first} samples before and has {num_passed} now: the source has changed; pack it again "
            "from the start"
        )
    return items


def flattened(items: Iterable[Item]) -> Iterator[Sample | Reject]:
    """Yields samples and rejects, those of an outcome one by one."""
    for item in items:
        if isinstance(item, Outcome):
            yield from item.items
        else:
            yield item


@dataclass(frozen=True, slots=True)
class SourcePlan:
    """A source as it will be packed."""

    reader: UnitReader
    units: list[Unit]
    types: dict[str, str]
    """Field name -> type, in order."""
    metadata: Metadata
    """What goes into the manifest beside the schema."""
    hint: str = ""
    """What to do about a sample that does not fit, or nothing."""
    reject: Reject | None = None
    """The first thing that is no sample, as far as planning came across one."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What decides the samples beside the files and their types, by name: a pack with another is another pack."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Versions of packages that decide the samples, by name."""
    note: str = ""
    """What the user is told of the tokens, or nothing."""
    tokens: str = ""
    """Name of the field that holds tokens, or nothing."""
    in_place: bool = False
    """Whether the samples stay in the files of the source, which are not copied."""
    untokenized: UnitReader | None = None
    """Reads the same samples with that field empty, where filling it takes long."""

    @property
    def num_bytes(self) -> int:
        """Bytes of the source in all units."""
        return sum(unit.num_bytes for unit in self.units)


class Source(Protocol):
    """Something to pack."""

    location: str
    """What the user called it."""
    skipped: dict[str, int]
    """What was left out: reason -> number."""

    def plan(self, types: Mapping[str, str] | None, unit_size: int | None) -> SourcePlan:
        """Returns units and types. The units depend on the source and these arguments only, never on who packs.

        Args:
            types: types that the user gave, or None.
            unit_size: bytes of a unit; None for a size that follows from the source.

        Raises:
            PackError: the source cannot be packed so.
        """
        ...
