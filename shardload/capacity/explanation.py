"""The formulas of a plan in words, with their numbers and where they come from."""

from __future__ import annotations

from collections.abc import Iterable

from shardload.capacity.demand import Stage
from shardload.capacity.formula import Step
from shardload.quantities import format_decimal, format_seconds

SOURCES = {
    "14bytes": "The Definitive Guide to AI Data Centers, chapter 9.4: about 14 bytes a parameter in a checkpoint "
    "(https://aidatacenterguide.com/part-9-storage-and-data/9-4-checkpointing-for-large-scale-training)",
    "forward": "Kaplan and others, Scaling Laws for Neural Language Models, section 2.1: a forward pass takes 2 floating-point "
    "operations a parameter and token, forward and backward 6 (https://arxiv.org/abs/2001.08361)",
    "megascale": "Jiang and others, MegaScale: where one GPU of each data-parallel group reads and gives to the others, far "
    "less is read, and the ratio is 1 (https://arxiv.org/abs/2402.15627)",
    "mlperf": "MLPerf Storage: accelerators each ask for a batch every step, at full use of them; a checkpoint counts when it is "
    "on the device, by its slowest rank (https://github.com/mlcommons/storage)",
    "prefetch": "shardload: ranks step together, and after a pause (start, checkpoint, restore) each reads all its batches ahead "
    "within about a step; a storage that only reaches the average fills them later, and nobody waits",
    "refinedweb": "Penedo and others, The RefinedWeb Dataset: of crawled documents nearly 90 % are removed; for data that is "
    "clean already the ratio is 1 (https://arxiv.org/abs/2306.01116)",
    "request": "shardload: a sample is read as one range; the kernel and object stores cut long ones into pieces of about 1 MiB",
    "restore": "rule of thumb: a restore is to take no longer than a checkpoint, and 8 data-parallel replicas each read what one "
    "of them wrote",
    "share": "rule of thumb: checkpoints may take 5 % of the time",
    "youngdaly": "the interval itself follows from the mean time between failures M and a checkpoint's time C: the square root of "
    "2 M C (Young, Daly; https://hal.inria.fr/hal-02514107)",
    "zero": "Rajbhandari and others, ZeRO, section 3.1: Adam in mixed precision holds 2 bytes of weights and 12 of their 32-bit "
    "copy, momentum and variance for each parameter; 2 more of gradients need not be saved (https://arxiv.org/abs/1910.02054)",
}
"""Where formulas and default values come from, by the keys that steps carry."""

_SECONDS = {"s"}


def explain(stages: Iterable[Stage]) -> list[str]:
    """Returns lines that tell every formula with its numbers, and after them the sources they name in brackets."""
    lines, cited = [], dict[str, int]()
    for stage in stages:
        lines.append(stage.name)
        for step in stage.steps:
            numbers = "".join(f" [{cited.setdefault(source, len(cited) + 1)}]" for source in step.sources)
            lines += [f"  {step.name} = {step.formula}{numbers}", f"    = {_substituted(step)} = {shown(step)}"]
        if not stage.steps:
            lines.append("  not planned")
    return [*lines, "sources", *(f"  [{number}] {SOURCES[source]}" for source, number in cited.items())]


def shown(step: Step) -> str:
    """Returns a step's value with its unit, for people."""
    if step.unit in _SECONDS:
        return format_seconds(step.value)
    return format_decimal(step.value, step.unit) if step.unit.startswith("B") else f"{step.value:,.6g} {step.unit}"


def _substituted(step: Step) -> str:
    words = step.formula.replace("(", "( ").replace(")", " )").split()
    return " ".join(f"{step.inputs[word]:.12g}" if word in step.inputs else word for word in words)
