"""What was set aside, on disk: one line of `rejects.jsonl` for each reject, in the order of the source."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from shardload.format.schema import canonical_json
from shardload.storage import FileWriter, LocalStorage, Storage
from shardload.writer.journal_lines import lines_of
from shardload.writer.target import REJECTS_NAME, WORK

_PREPARED = f"{WORK}/rejects"


def prepare_rejects(
    storage: LocalStorage, rejects: Iterable[tuple[int, str, str]], generation: int, source: str, keep: Storage | None
) -> str:
    """Writes the rejects of a pack to a file that the commit puts in its place.

    Args:
        storage: files of the target.
        rejects: unit, place and reason of each.
        generation: that of the pack.
        source: what the user called the source.
        keep: where the rejects of earlier generations are, which stay before those of this one; None for none.

    Returns:
        The name of the file, or nothing where there is no reject.
    """
    with FileWriter(storage.path(_PREPARED), storage.operations) as writer:
        if keep is not None and keep.exists(REJECTS_NAME):
            for line in lines_of(keep.open(REJECTS_NAME)):
                # After a commit that was cut off those of this generation may be there already.
                if json.loads(line)["generation"] < generation:
                    writer.write(line)
        for unit, place, reason in rejects:
            facts = {"generation": generation, "place": place, "reason": reason, "source": source, "unit": unit}
            writer.write(canonical_json(facts) + b"\n")
        if writer.num_bytes:
            writer.finish()
            return _PREPARED
    return ""


def read_rejects(storage: LocalStorage) -> Iterator[tuple[int, str, str]]:
    """Yields unit, place and reason of the rejects of a dataset, in their order."""
    if storage.exists(REJECTS_NAME):
        for line in lines_of(storage.open(REJECTS_NAME)):
            facts = json.loads(line)
            yield facts["unit"], facts["place"], facts["reason"]
