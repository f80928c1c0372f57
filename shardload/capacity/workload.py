"""What is to be trained, on what, and how often it is saved: the facts a plan follows from."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

DEFAULT_SHARE = 0.05

_DAY_SECONDS = 86400.0
_MAX_BYTES = float((1 << 48) - 1)
_TIMES = (1e-6, 3650 * _DAY_SECONDS)
_BOUNDS: dict[str, tuple[float, float]] = {
    "num_gpus": (1, 10_000_000),
    "num_params": (1, 1e15),
    "bytes_per_param": (0.125, 1024),
    "checkpoint_interval_seconds": _TIMES,
    "checkpoint_share": (1e-6, 1 - 1e-6),
    "checkpoint_seconds": _TIMES,
    "num_checkpoint_writers": (1, 10_000_000),
    "num_checkpoints_kept": (1, 1_000_000),
    "restore_ratio": (1e-3, 1e7),
    "restore_seconds": _TIMES,
    "samples_per_second_per_gpu": (1e-9, 1e9),
    "step_seconds": _TIMES,
    "batch_size": (1, 1_000_000_000),
    "batch_tokens": (1, 1e12),
    "bytes_per_token": (0.125, 1024),
    "sample_bytes": (1, _MAX_BYTES),
    "num_samples": (1, 1e15),
    "prefetch_batches": (1, 1_000_000),
    "raw_ratio": (1e-3, 1e6),
    "ingest_seconds": _TIMES,
    "inference_samples_per_second_per_gpu": (1e-9, 1e9),
    "result_bytes": (1, _MAX_BYTES),
}
_WHOLE = {
    "num_gpus",
    "num_checkpoint_writers",
    "num_checkpoints_kept",
    "batch_size",
    "num_samples",
    "prefetch_batches",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """The facts of a plan; None where one is not known, so that what needs it is not planned.

    Raises:
        ValueError: one of them cannot be, or two of them contradict each other; names them.
    """

    num_gpus: int | None = None
    """GPUs that train together, and that read for inference later."""
    num_params: float | None = None
    """Parameters of the model."""
    bytes_per_param: float = 14.0
    """Bytes that a checkpoint holds for each of them."""
    checkpoint_interval_seconds: float = 3600.0
    """Time from one checkpoint to the next."""
    checkpoint_share: float | None = None
    """Largest part of that time a checkpoint may take; 0.05 where `checkpoint_seconds` is not given either."""
    checkpoint_seconds: float | None = None
    """Time a checkpoint may take."""
    num_checkpoint_writers: int | None = None
    """Ranks that write it; all GPUs if None."""
    num_checkpoints_kept: int = 3
    """Checkpoints that stay; one more is there while it is written."""
    restore_ratio: float = 8.0
    """Bytes read by a restore for each byte of the checkpoint."""
    restore_seconds: float | None = None
    """Time a restore may take; as long as a checkpoint if None."""
    samples_per_second_per_gpu: float | None = None
    """Samples a second that each GPU trains on."""
    step_seconds: float | None = None
    """In place of that, the time of a step ..."""
    batch_size: int | None = None
    """... and the samples each GPU takes in it ..."""
    batch_tokens: float | None = None
    """... or the tokens."""
    bytes_per_token: float = 4.0
    """Bytes of a token in the dataset."""
    sample_bytes: float | None = None
    """Mean bytes of a sample as stored."""
    num_samples: int | None = None
    """Samples of the dataset."""
    prefetch_batches: int = 16
    """Batches each rank reads ahead."""
    raw_ratio: float = 10.0
    """Bytes of raw data that come in for each byte that is left after preparation."""
    ingest_seconds: float = _DAY_SECONDS
    """Time in which the raw data has to come in, and again for preparing it."""
    inference_samples_per_second_per_gpu: float | None = None
    """Samples a second that each GPU takes when it only infers; three times its training's if None."""
    result_bytes: float | None = None
    """Bytes of the result for each sample."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None:
                _check(field.name, value)
        _check_rate(self)
        _check_checkpoints(self)

    @property
    def allowed_checkpoint_seconds(self) -> float:
        """Time a checkpoint may take, however it was given."""
        if self.checkpoint_seconds is not None:
            return self.checkpoint_seconds
        return self.checkpoint_interval_seconds * self.allowed_checkpoint_share

    @property
    def allowed_checkpoint_share(self) -> float:
        """Part of the interval a checkpoint may take, however it was given."""
        if self.checkpoint_seconds is not None:
            return self.checkpoint_seconds / self.checkpoint_interval_seconds
        return DEFAULT_SHARE if self.checkpoint_share is None else self.checkpoint_share


def _check(name: str, value: float) -> None:
    low, high = _BOUNDS[name]
    # NaN is in no range. Truth is an int in Python, and no number here.
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"{name} must be from {_bound(low)} to {_bound(high)}, not {_short(value)}")
    if name in _WHOLE and value != int(value):
        raise ValueError(f"{name} must be a whole number, not {_short(value)}")


def _short(value: object) -> str:
    return f"{value:.12g}" if isinstance(value, float) else repr(value)[:60]


def _bound(value: float) -> str:
    return f"{value:,.0f}" if 1 <= value < 1e9 and value == int(value) else f"{value:g}"


def _check_rate(workload: Workload) -> None:
    """Refuses two answers to how fast the training is, or half of one."""
    batch = [name for name in ("batch_size", "batch_tokens") if getattr(workload, name) is not None]
    if workload.samples_per_second_per_gpu is not None and (batch or workload.step_seconds is not None):
        other = batch[0] if workload.step_seconds is None else "step_seconds"
        raise ValueError(f"samples_per_second_per_gpu and {other} both tell how fast the training is: leave one out")
    if len(batch) == 2:
        raise ValueError("batch_size and batch_tokens both tell the batch: leave one out")
    if batch and workload.step_seconds is None:
        raise ValueError(f"{batch[0]} goes with step_seconds: how long does a batch of that size take")
    if workload.step_seconds is not None and not batch:
        raise ValueError("step_seconds goes with batch_size or batch_tokens: how much does a GPU take in a step")
    if workload.batch_tokens is not None and workload.sample_bytes is not None:
        batch_bytes = workload.batch_tokens * workload.bytes_per_token
        if batch_bytes < workload.sample_bytes:
            raise ValueError(
                f"batch_tokens of {workload.batch_tokens:g} with {workload.bytes_per_token:g} bytes each are fewer bytes than "
                f"one sample has, {workload.sample_bytes:g}"
            )


def _check_checkpoints(workload: Workload) -> None:
    interval = workload.checkpoint_interval_seconds
    if workload.checkpoint_share is not None and workload.checkpoint_seconds is not None:
        raise ValueError(
            "checkpoint_share and checkpoint_seconds both tell how long a checkpoint may take: leave one out"
        )
    if workload.allowed_checkpoint_seconds >= interval:
        raise ValueError(
            f"checkpoint_interval_seconds of {interval:g} s is no longer than the {workload.allowed_checkpoint_seconds:g} s that a "
            "checkpoint may take: nothing would be trained"
        )
    writers = workload.num_checkpoint_writers
    if writers is not None and workload.num_gpus is not None and writers > workload.num_gpus:
        raise ValueError(f"num_checkpoint_writers of {writers:,} are more than num_gpus, {workload.num_gpus:,}")
