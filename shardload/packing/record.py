"""What a pack was asked for, compared with what it was begun with."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from shardload.errors import PackError
from shardload.format.schema import canonical_json
from shardload.importers import SourcePlan, Unit
from shardload.storage import LocalStorage
from shardload.writer.job import JobRecord, again, current_versions, difference


def make_record(options: Mapping[str, Any], plan: SourcePlan) -> JobRecord:
    """Returns the record of a pack that is to be begun, without generation and version."""
    return JobRecord(
        dict(options), [_unit_digest(unit) for unit in plan.units], {**current_versions(), **plan.versions}
    )


def check_same(storage: LocalStorage, before: JobRecord, now: JobRecord, units: list[Unit]) -> None:
    """Refuses to continue a pack that would not end as it was begun.

    Raises:
        PackError: another version, option or source; says which.
    """
    # A package that only one of them needs is no cause: an option is.
    shared = before.versions.keys() & now.versions.keys()
    versions = ({name: record.versions[name] for name in shared} for record in (before, now))
    changed = (
        difference("version of", *versions)
        # The schema may have been inferred: it differs because the source does.
        or difference("option", _without_schema(before.options), _without_schema(now.options))
        or _source_difference(before.units, now.units, units)
        or difference("option", before.options, now.options)
    )
    if changed:
        raise PackError(
            f"{storage.root}: the unfinished pack there cannot be continued: {changed}. Continue it as it was begun, "
            f"or {again(storage)}",
            dataset=storage.root,
        )


def _without_schema(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name != "schema"}


def _source_difference(before: list[str], now: list[str], units: list[Unit]) -> str:
    for unit, old, new in zip(units, before, now, strict=False):
        if old != new:
            return f"the source has changed since it was begun, at first in {unit}"
    if len(before) != len(now):
        return f"the source has changed since it was begun: it had {len(before)} units and has {len(now)} now"
    return ""


def _unit_digest(unit: Unit) -> str:
    digest = hashlib.sha256()
    for piece in unit.pieces:
        file = piece.file
        path = file.path.encode("utf-8", "surrogateescape").hex()
        facts = [path, file.num_bytes, file.modified_ns, file.problem, piece.start, piece.stop]
        facts += [file.tag] if file.tag else []
        digest.update(canonical_json(facts) + b"\n")
    return digest.hexdigest()
