"""shardload: a random-access training data loader.

Names are loaded when they are first used: `import shardload` is light, and packing never loads torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from shardload.version import VERSION as __version__

if TYPE_CHECKING:
    from shardload.checkpoint import Checkpointer
    from shardload.codecs.images import ImageDecode
    from shardload.errors import (
        ChecksumError,
        ExportError,
        FaultLimitError,
        FormatError,
        LoaderClosedError,
        PackError,
        ShardloadError,
        StateMismatchError,
        StorageError,
        UnsupportedVersionError,
    )
    from shardload.exporters import export
    from shardload.inference import ScanWriter
    from shardload.loader import (
        PackedSequences,
        PackingReport,
        Scan,
        ShardBatchSampler,
        ShardLoader,
        ShardSampler,
        collate,
        masked_mean,
        packed,
        padded,
        scan,
    )
    from shardload.order.blocks import BlockShuffle
    from shardload.order.exclusion import Exclude
    from shardload.packing import index, pack
    from shardload.reader import Mixture, SampleSource, ShardDataset, TokenWindows, concat
    from shardload.reader import open_dataset as open
    from shardload.writer import ShardWriter

_ERRORS = (
    "ChecksumError",
    "ExportError",
    "FaultLimitError",
    "FormatError",
    "LoaderClosedError",
    "PackError",
    "ShardloadError",
    "StateMismatchError",
    "StorageError",
    "UnsupportedVersionError",
)
_HOMES = {name: ("shardload.errors", name) for name in _ERRORS} | {
    "BlockShuffle": ("shardload.order.blocks", "BlockShuffle"),
    "Checkpointer": ("shardload.checkpoint", "Checkpointer"),
    "Exclude": ("shardload.order.exclusion", "Exclude"),
    "ImageDecode": ("shardload.codecs.images", "ImageDecode"),
    "Mixture": ("shardload.reader", "Mixture"),
    "PackedSequences": ("shardload.loader", "PackedSequences"),
    "PackingReport": ("shardload.loader", "PackingReport"),
    "SampleSource": ("shardload.reader", "SampleSource"),
    "Scan": ("shardload.loader", "Scan"),
    "ScanWriter": ("shardload.inference", "ScanWriter"),
    "ShardBatchSampler": ("shardload.loader", "ShardBatchSampler"),
    "ShardDataset": ("shardload.reader", "ShardDataset"),
    "ShardLoader": ("shardload.loader", "ShardLoader"),
    "ShardSampler": ("shardload.loader", "ShardSampler"),
    "ShardWriter": ("shardload.writer", "ShardWriter"),
    "TokenWindows": ("shardload.reader", "TokenWindows"),
    "concat": ("shardload.reader", "concat"),
    "collate": ("shardload.loader", "collate"),
    "export": ("shardload.exporters", "export"),
    "index": ("shardload.packing", "index"),
    "masked_mean": ("shardload.loader", "masked_mean"),
    "open": ("shardload.reader", "open_dataset"),
    "pack": ("shardload.packing", "pack"),
    "packed": ("shardload.loader", "packed"),
    "padded": ("shardload.loader", "padded"),
    "scan": ("shardload.loader", "scan"),
}

__all__ = [
    "BlockShuffle",
    "Checkpointer",
    "ChecksumError",
    "Exclude",
    "ExportError",
    "FaultLimitError",
    "FormatError",
    "ImageDecode",
    "LoaderClosedError",
    "Mixture",
    "PackError",
    "PackedSequences",
    "PackingReport",
    "SampleSource",
    "Scan",
    "ScanWriter",
    "ShardBatchSampler",
    "ShardDataset",
    "ShardLoader",
    "ShardSampler",
    "ShardWriter",
    "ShardloadError",
    "StateMismatchError",
    "StorageError",
    "TokenWindows",
    "UnsupportedVersionError",
    "__version__",
    "collate",
    "concat",
    "export",
    "index",
    "masked_mean",
    "open",
    "pack",
    "packed",
    "padded",
    "scan",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'shardload' has no attribute {name!r}")
    home, attribute = _HOMES[name]
    value = globals()[name] = getattr(import_module(home), attribute)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
