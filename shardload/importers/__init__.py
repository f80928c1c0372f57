"""Foreign sources as samples: a source is cut into units, and each unit is read alone, in any process."""

from shardload.importers.base import (
    Item,
    Outcome,
    Piece,
    Reject,
    Sample,
    Source,
    SourceFile,
    SourcePlan,
    Unit,
    UnitReader,
    flattened,
    preparing,
    read_from,
)
from shardload.importers.choose import open_source
from shardload.importers.hub import named_by_hub
from shardload.importers.megatron import named_by_index
from shardload.importers.shuffled import MAX_SEED, LostCopyError, copy_named, plan_shuffled
from shardload.importers.tar_in_place import tars_in_place
from shardload.importers.tokenizer import Token
from shardload.importers.tokens import TOKEN_FIELD, Tokenization

__all__ = [
    "MAX_SEED",
    "TOKEN_FIELD",
    "Item",
    "LostCopyError",
    "Outcome",
    "Piece",
    "Reject",
    "Sample",
    "Source",
    "SourceFile",
    "SourcePlan",
    "Token",
    "Tokenization",
    "Unit",
    "UnitReader",
    "copy_named",
    "flattened",
    "named_by_hub",
    "named_by_index",
    "open_source",
    "plan_shuffled",
    "preparing",
    "read_from",
    "tars_in_place",
]
