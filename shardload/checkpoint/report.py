"""What is said of a checkpoint that was saved or restored, in one line."""

from __future__ import annotations

import math

from shardload.checkpoint.manifest import CheckpointManifest
from shardload.checkpoint.writer import Saved
from shardload.telemetry import CheckpointStats

MAX_SHARE = 0.05
"""Of the time: what checkpoints may cost at most (the 5 % rule of storage sizing)."""
MIN_WARNED_SECONDS = 1.0
"""Of what takes less nobody needs to be warned, whatever its share."""


def told_saved(path: str, saved: Saved, blocked: float, share: float) -> str:
    """Returns what a save took.

    Args:
        path: of the checkpoint.
        saved: what was published.
        blocked: seconds that the training waited.
        share: of the time since the save before.
    """
    rates = sorted(one.num_bytes / 1e9 / max(one.seconds, 1e-9) for one in saved.writers)
    seconds = max(one.seconds for one in saved.writers)
    told = (
        f"{path}: {_gb(saved.manifest.num_bytes)} in {seconds:.2f} s by {len(rates)} writer{'s' * (len(rates) > 1)}, "
        f"{rates[0]:.2f} to {rates[-1]:.2f} GB/s each; training waited {blocked:.2f} s, {share:.2%} of the time since the last one"
    )
    if share <= MAX_SHARE:
        return told
    wanted = max(1, math.ceil(blocked / MAX_SHARE))
    return f"{told}, more than {MAX_SHARE:.0%}: save every {wanted} s or less often, asynchronously, or by more writers"


def told_restored(path: str, manifest: CheckpointManifest, stats: CheckpointStats) -> str:
    """Returns what a restore took."""
    rate = manifest.num_bytes / 1e9 / max(stats.restore_seconds, 1e-9)
    return (
        f"{path}: restored {_gb(manifest.num_bytes)} of {manifest.num_ranks} ranks in {stats.restore_seconds:.2f} s "
        f"({stats.check_seconds:.2f} s for comparing sums), {rate:.2f} GB/s"
    )


def _gb(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.3g} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.3g} MB"
