"""One process that packs for several that do the steps: enough where those take most of the time.

Then the others need not load all that packing takes, no core does it twice, and no process ends long before the others.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from shardload.importers import preparing
from shardload.packing.progress import Count
from shardload.packing.unit import Job, Step, Task, pack_unit

LOOK_SECONDS = 1.0
"""After what time of the first unit it is looked at whether one is enough; once more after as long again."""
MIN_WAITING = 0.25
"""Part of its time that it waits for the others if it is."""


class _OvertaxedError(Exception):
    """One process does not keep the others busy."""


class _Watch:
    """How much of its time this process waits for those that do the steps."""

    def __init__(self, job: Job) -> None:
        self._readers = list(preparing(job.reader))
        self._looks = 2
        self._restart()

    def look(self) -> bool:
        """Tells whether one process is enough, as far as was looked."""
        if not self._looks or time.monotonic() - self._started < LOOK_SECONDS:
            return True
        self._looks -= 1
        return self.enough()

    def enough(self) -> bool:
        """Tells whether one process was enough since this was asked last."""
        started, before = self._started, self._before
        self._restart()
        return self._before - before >= MIN_WAITING * (self._started - started)

    def _restart(self) -> None:
        self._started, self._before = time.monotonic(), sum(reader.waited_seconds or 0.0 for reader in self._readers)


def pack_alone(
    job: Job, tasks: Sequence[Task], take: Callable[[int, Step | Count], None], num_workers: int
) -> Sequence[Task]:
    """Packs units in this process, as long as others would not be faster.

    Args:
        job: what the units are a part of.
        tasks: the units.
        take: called with the number of a unit and what is told of it.
        num_workers: how many processes could pack.

    Returns:
        The units that are left to the others: none, or several.

    Raises:
        PackError: as of `pack_unit`.
    """
    for reader in preparing(job.reader):
        reader.expect([(task.unit, task.num_items) for task in tasks])
    watch = _Watch(job)
    for number, task in enumerate(tasks):
        num_left = len(tasks) - number
        # Only as long as nothing of the unit is on the device: it is packed from its start then.
        untouched = number == 0 and num_left > 1 and num_workers > 1

        def tell(news: Step | Count) -> None:
            nonlocal untouched
            take(task.unit.number, news)  # noqa: B023
            untouched &= isinstance(news, Count)
            if untouched and not watch.look():
                raise _OvertaxedError

        try:
            pack_unit(job, task, tell)
        except _OvertaxedError:
            return tasks[number:]
        if num_workers > 1 and num_left > 2 and not watch.enough():
            return tasks[number + 1 :]
    return ()
