"""One rank's run over an epoch of the global order."""

from __future__ import annotations

from shardload.loader.hints import forecast_of
from shardload.loader.progress import Progress
from shardload.loader.run import Entered
from shardload.loader.state import Place
from shardload.order.cursor import Partition
from shardload.run_log import append_start


class EpochRun:
    """One rank's run over an epoch, or what is left of it."""

    def __init__(self, progress: Progress, partition: Partition, rank: int, run_log: str | None = None) -> None:
        """Describes it.

        Args:
            progress: the place of the run, which moves with this.
            partition: how the epoch is split.
            rank: the rank.
            run_log: file that the first rank tells of the start; None for nobody.
        """
        self.rank = rank
        self._run_log = run_log if rank == 0 else None
        self._progress = progress
        self._partition = partition
        self._turn = 0

    def begin(self) -> Entered:
        """Enters the epoch."""
        progress, partition = self._progress, self._partition
        if self._run_log is not None:
            append_start(self._run_log, progress.recorded(partition))
        place, self._turn = progress.begin(partition), progress.turn
        batches = progress.batches(partition, self.rank, place)
        after = progress.batches(partition, self.rank, Place(place.epoch + 1))
        facts = place.epoch, progress.seed, progress.key.num_samples
        return Entered(
            *facts, batches, after, progress.windows(place.epoch), lambda: forecast_of(progress, partition, self.rank)
        )

    def deliver(self, cursor: int) -> None:
        """Notes that the training loop was given what ends at `cursor`."""
        self._progress.deliver(cursor, self._turn, self._partition)
