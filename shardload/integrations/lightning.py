"""Lightning: a callback that makes a Trainer's checkpoints and epochs exact for what shardload feeds it.

A Trainer takes a `ShardLoader` as it is, and saves and loads its state by itself. Three things are left. That state counts
batches that were fetched but not trained on (a look-ahead, a step that raised). The number of batches is asked for only
once, though after a resume with other ranks the next epoch has another one: it would be cut short. And of a torch
DataLoader over a `ShardBatchSampler` no state is saved at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

from shardload.integrations import missing, place_in
from shardload.loader import ShardBatchSampler, ShardLoader

try:
    from lightning.fabric.utilities.data import sized_len
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError as error:
    raise missing("lightning") from error

_KEY = "shardload"


class ShardCallback(Callback):  # type: ignore[misc]
    """For `Trainer(callbacks=[ShardCallback()])`: exact states, and each epoch as long as it is.

    It serves `ShardLoader`s, and DataLoaders over a `ShardBatchSampler` under `Trainer(use_distributed_sampler=False)`,
    without which Lightning puts a sampler of its own in their place.
    """

    def __init__(self) -> None:
        self._saved: dict[int, Any] = {}
        self._first_epoch = True

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Puts the states of what was trained on in place of what was fetched."""
        loop = trainer.fit_loop
        trained = loop.epoch_loop.batch_progress.current.processed
        ahead = 0 if loop._data_fetcher is None else loop._data_fetcher.fetched - trained
        by_lightning = checkpoint["loops"]["fit_loop"]["state_dict"].get("combined_loader", [])
        stateful = [loader for loader in _loaders(trainer) if hasattr(loader, "load_state_dict")]
        for index, loader, source in _sources(trainer):
            if isinstance(source, ShardBatchSampler):
                checkpoint.setdefault(_KEY, {})[index] = source.state_at(trained)
            elif ahead:
                by_lightning[stateful.index(loader)] = source.state_at(len(source) - source.remaining - ahead)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keeps the states that Lightning does not load."""
        self._saved = checkpoint.get(_KEY, {})

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Loads them, now that there are loaders, and starts the epoch that they say is next."""
        self._first_epoch = True
        loop, saved, self._saved = trainer.fit_loop, self._saved, {}
        for index, _, source in _sources(trainer):
            if index in saved and isinstance(source, ShardBatchSampler):
                source.load_state_dict(saved[index])
                # The iterator that is there may have asked for the batches of an epoch's start.
                iter(loop._data_fetcher)
        positions = [place_in(source.state_dict())["position"] for _, _, source in _sources(trainer)]
        if loop.epoch_loop.restarting and positions and not any(positions):
            _end_epoch(loop)
        # Lightning took the lengths before it loaded the states.
        _count_batches(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sets the loaders to the Trainer's epoch, and the Trainer to their number of batches."""
        epoch = trainer.current_epoch
        for _, _, source in _sources(trainer):
            state = source.state_dict()
            if not self._first_epoch and place_in(state)["epoch"] != epoch:
                state = source.state_at(len(source))
            if place_in(state)["epoch"] != epoch:
                source.set_epoch(epoch)
            elif not self._first_epoch:
                # At its end a loader has the length of the epoch behind it; a loaded state has that of its own.
                source.load_state_dict(state)
        if not self._first_epoch:
            _count_batches(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes that from now on iterators are made anew."""
        self._first_epoch = False


def _loaders(trainer: Trainer) -> list[Any]:
    combined = trainer.fit_loop._combined_loader
    return [] if combined is None else combined.flattened


def _sources(trainer: Trainer) -> Iterator[tuple[int, Any, ShardLoader | ShardBatchSampler]]:
    """Yields the loaders that shardload feeds: number, loader, and what knows the order."""
    for index, loader in enumerate(_loaders(trainer)):
        source = loader.batch_sampler if isinstance(loader, DataLoader) else loader
        if isinstance(source, ShardLoader | ShardBatchSampler):
            yield index, loader, source


def _end_epoch(loop: Any) -> None:
    """Ends the epoch that a Trainer was saved in, of which there is nothing left at the batch size and ranks of now."""
    progress = loop.epoch_progress
    if progress.current.processed < progress.current.ready:
        progress.increment_processed()
    if progress.current.completed < progress.current.processed:
        progress.increment_completed()
    loop.epoch_loop.restarting = False
    loop.reset_restart_stage()
    loop.epoch_loop.reset_restart_stage()


def _count_batches(trainer: Trainer) -> None:
    """Tells the Trainer how many batches the coming epoch has."""
    loop, limit = trainer.fit_loop, trainer.limit_train_batches
    combined = loop._combined_loader
    for index, _, source in _sources(trainer):
        num_batches = len(source)
        combined.limits[index] = min(num_batches, limit) if isinstance(limit, int) else int(num_batches * limit)
    if (total := sized_len(combined)) is not None:
        loop.max_batches = loop._data_fetcher.length = total
        if isinstance(trainer.val_check_interval, float) and trainer.val_check_batch is not None:
            trainer.val_check_batch = max(1, int(total * trainer.val_check_interval))
