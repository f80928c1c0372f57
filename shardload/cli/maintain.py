"""`shardload rebuild-index` and `shardload prune`."""

from __future__ import annotations

from typing import Any

import click

from shardload.cli.storage import storage_option
from shardload.cli.text import counted, echo, echo_facts, echo_json
from shardload.quantities import format_bytes
from shardload.storage import shown

_SHOWN = 10


@click.command("rebuild-index", short_help="Write a lost manifest and table again, from the shards.")
@click.argument("dataset")
@click.option("--workers", type=click.IntRange(min=1), metavar="N", help="Threads.  [default: one a core]")
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON.")
def rebuild_index(dataset: str, workers: int | None, as_json: bool) -> int:
    """Write the manifest and shard table of DATASET again, from its shards alone.

    For a dataset whose manifest.json, manifests/ or tables/ were lost or damaged. All shards are read; a sound manifest is
    never contradicted.
    """
    from shardload.writer.rebuild import rebuild_index as rebuild

    rebuilt = rebuild(dataset, workers=workers)
    manifest = rebuilt.manifest
    facts: dict[str, Any] = {
        "dataset": dataset,
        "version": manifest.version,
        "fingerprint": manifest.fingerprint,
        "num_samples": manifest.num_samples,
        "num_shards": manifest.num_shards,
        "empty_units": [{"generation": generation, "unit": unit} for generation, unit in rebuilt.empty_units],
    }
    if as_json:
        echo_json(facts)
        return 0
    echo(f"{dataset}: manifest and table are there for {counted(manifest.num_samples, 'sample')}")
    units = ", ".join(f"{unit} of generation {generation}" for generation, unit in rebuilt.empty_units[:_SHOWN])
    more = f" and {len(rebuilt.empty_units) - _SHOWN:,} more" if len(rebuilt.empty_units) > _SHOWN else ""
    echo_facts(
        (
            ("shards", f"{manifest.num_shards:,}"),
            ("version", str(manifest.version)),
            ("fingerprint", manifest.fingerprint),
            ("no shard of", f"{units}{more}: they held no sample, or all their shards are lost" if units else ""),
        )
    )
    return 0


@click.command(short_help="Remove old versions and their shards.")
@click.argument("dataset")
@click.option(
    "--keep", type=click.IntRange(min=1), default=1, show_default=True, metavar="N", help="Newest versions to keep."
)
@click.option("--unfinished", is_flag=True, help="Also remove what an unfinished pack left.")
@click.option("--dry-run", is_flag=True, help="Only tell what would be removed.")
@storage_option
@click.option("--staging", metavar="DIR", help="For a URL: the directory that the unfinished pack was given.")
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON.")
def prune(
    dataset: str,
    keep: int,
    unfinished: bool,
    dry_run: bool,
    storage_options: dict[str, Any],
    staging: str | None,
    as_json: bool,
) -> int:
    """Remove old versions of DATASET, and the shards that only they had.

    Jobs that read an older version fail from then on, and states that name it cannot be resumed.
    """
    from shardload.writer.prune import prune as remove

    wanted: dict[str, Any] = {"keep": keep, "unfinished": unfinished, "dry_run": dry_run}
    pruned = remove(dataset, **wanted, storage_options=storage_options, staging=staging)
    dataset = shown(dataset)
    if as_json:
        facts = {
            "versions": pruned.versions,
            "files": pruned.files,
            "num_bytes": pruned.num_bytes,
            "removed": not dry_run,
        }
        echo_json({"dataset": dataset} | facts)
        return 0
    verb = "would be removed" if dry_run else "removed"
    echo(f"{dataset}: {counted(len(pruned.versions), 'version')} and {counted(len(pruned.files), 'file')} {verb}")
    echo_facts((("bytes", format_bytes(pruned.num_bytes)), ("versions", ", ".join(map(str, pruned.versions)))))
    return 0
