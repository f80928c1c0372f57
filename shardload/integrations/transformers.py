"""The Trainer of transformers: trains from a `ShardLoader`, whose state is in every checkpoint's trainer_state.json.

The Trainer resumes by dividing its count of steps by the steps of an epoch, and skips batches to get there; that is right
only while the global batch stays what it was. Here the loader's state says where to go on, so nothing is skipped, and
epochs and steps are counted from that place.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shardload.errors import StateMismatchError
from shardload.integrations import missing, place_in
from shardload.loader import ShardLoader

try:
    from transformers import Trainer, TrainerCallback
    from transformers.trainer_utils import get_last_checkpoint

    # Version 4 has all of it in one method.
    _ = Trainer._run_epoch, Trainer._init_training_state
except (ImportError, AttributeError) as error:
    raise missing("transformers") from error

_KEY = "ShardLoader"


class ShardTrainerMixin:
    """What makes a Trainer train from a loader, for other Trainers: `class MyTrainer(ShardTrainerMixin, SFTTrainer)`."""

    def __init__(self, *args: Any, train_loader: ShardLoader, **kwargs: Any) -> None:
        """Takes the loader to train from; all other arguments are the Trainer's own.

        Raises:
            ValueError: the loader's epochs have different numbers of batches.
        """
        if train_loader._plan is not None:
            raise ValueError(
                "a Trainer counts the batches of an epoch once, and packed sequences or batch_tokens= make others of each: "
                "train from them in a loop of your own, or with Lightning or Accelerate"
            )
        super().__init__(*args, **kwargs)
        self.train_loader = train_loader
        self._resume: Mapping[str, Any] = {}
        self.add_callback(_SaveState(train_loader))  # type: ignore[attr-defined]

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Trains; from a checkpoint it goes on with the next sample, also with another number of ranks or batch size.

        Raises:
            StateMismatchError: the checkpoint holds no state of a loader, or that of another dataset or order.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = get_last_checkpoint(self.args.output_dir) or True  # type: ignore[attr-defined]
        self._resume = {}
        if isinstance(resume_from_checkpoint, str):
            file = Path(resume_from_checkpoint, "trainer_state.json")
            saved = json.loads(file.read_text())
            if _KEY not in saved["stateful_callbacks"]:
                raise StateMismatchError(
                    f"{file} holds no state of a ShardLoader: it was saved by a Trainer without one"
                )
            self.train_loader.load_state_dict(saved["stateful_callbacks"][_KEY])
            place = place_in(self.train_loader.state_dict())
            self._resume = {
                "step": saved["global_step"],
                "epoch": place["epoch"],
                "batches": self.train_loader.remaining,
            }
        return super().train(resume_from_checkpoint, *args, **kwargs)  # type: ignore[misc]

    def get_train_dataloader(self) -> ShardLoader:
        """Returns the loader as it is: it has split the samples over the ranks."""
        if self.train_loader.batch_size != self._train_batch_size:  # type: ignore[attr-defined]
            raise ValueError(
                f"the batch size for a device is {self._train_batch_size} in the TrainingArguments and "  # type: ignore[attr-defined]
                f"{self.train_loader.batch_size} in the ShardLoader: make them equal, without auto_find_batch_size"
            )
        return self.train_loader

    def set_initial_training_values(self, args: Any, dataloader: ShardLoader) -> tuple[Any, ...]:
        """Returns the Trainer's counts of epochs and steps, as they are with what the checkpoint has left to do."""
        _, _, num_examples, num_samples, total_batch_size, _, _ = super().set_initial_training_values(args, dataloader)  # type: ignore[misc]
        num_batches = self.train_loader._partition().num_batches()
        steps, steps_left = self._steps(num_batches), self._steps(self._resume.get("batches", num_batches))
        epoch, step = self._resume.get("epoch", 0), self._resume.get("step", 0)
        if args.max_steps > 0:
            max_steps = args.max_steps
            num_epochs = epoch + 1 + max(0, math.ceil((max_steps - step - steps_left) / steps))
        else:
            max_steps = step + max(0, steps_left + math.ceil((args.num_train_epochs - epoch - 1) * steps))
            num_epochs = math.ceil(args.num_train_epochs)
        return num_epochs, steps, num_examples, num_samples, total_batch_size, num_batches, max_steps

    def _init_training_state(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        super()._init_training_state(*args, **kwargs)  # type: ignore[misc]
        return self._resume.get("epoch", 0), 0

    def _run_epoch(self, *, epoch: int, epochs_trained: int, **kwargs: Any) -> None:
        num_batches = kwargs["steps_in_epoch"]
        if epoch == epochs_trained:
            num_batches = self._resume.get("batches", num_batches)
        kwargs |= {"steps_in_epoch": num_batches, "num_update_steps_per_epoch": self._steps(num_batches)}
        super()._run_epoch(epoch=epoch, epochs_trained=epochs_trained, **kwargs)  # type: ignore[misc]

    def _steps(self, num_batches: int) -> int:
        accumulated: int = self.args.gradient_accumulation_steps  # type: ignore[attr-defined]
        return -(-num_batches // accumulated)


class ShardTrainer(ShardTrainerMixin, Trainer):  # type: ignore[misc]
    """A Trainer with `train_loader=`: `ShardTrainer(model, args, train_loader=shardload.ShardLoader(...))`."""


class _SaveState(TrainerCallback):  # type: ignore[misc]
    """Keeps the loader's state where the Trainer saves it. At the end of a step all batches it took are trained on."""

    def __init__(self, loader: ShardLoader) -> None:
        self._loader = loader

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        state.stateful_callbacks[_KEY] = self._loader.state_dict()
        place = place_in(state.stateful_callbacks[_KEY])
        # The Trainer takes the epoch under way to have begun with this run.
        state.epoch = place["epoch"] + place["position"] / place["num_samples"]
