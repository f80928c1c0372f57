"""`prune` in an object store: old versions, what no version names, and uploads that were begun and not completed."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from shardload.errors import PackError
from shardload.format.manifest import MANIFEST_NAME
from shardload.storage import UploadStorage, upload_storage_of
from shardload.writer.far import CLAIM, clear_staging
from shardload.writer.maintenance import shard_identity
from shardload.writer.referenced import Pruned, find_manifests, unreferenced

_NUM_LOOKS = 16


def prune_far(
    url: str,
    keep: int,
    unfinished: bool,
    dry_run: bool,
    options: Mapping[str, Any] | None,
    staging: str | os.PathLike[str] | None,
) -> Pruned:
    """Removes old versions of a dataset below a URL; see `prune`.

    A store has no locks that end with their owner: whoever asks for what is unfinished to go says that nobody is at work. A
    writer that is at work all the same notices before its commit, and publishes nothing.

    Raises:
        PackError: a writer is at work or was cut off and `unfinished` is not said, or the versions cannot be told.
        ValueError: datasets are not written to such URLs.
    """
    uploads = upload_storage_of(url, options)
    if uploads.facts(CLAIM) is not None and not unfinished:
        raise PackError(
            f"{uploads.root}: a writer is at work there, or was cut off: finish it with the same command and --continue, or, if "
            "nobody is at work, remove what it left with --unfinished",
            dataset=uploads.root,
        )
    if dry_run:
        return _plan(uploads, keep, unfinished)[0]
    if unfinished:
        clear_staging(url, options, staging)
        uploads.remove([CLAIM])
    if not uploads.create(CLAIM, b"prune\n", secrets.token_hex(16)):
        raise PackError(f"{uploads.root}: another writer has just begun there", dataset=uploads.root)
    try:
        pruned, names = _plan(uploads, keep, unfinished)
        # Manifests first: no version stays that lacks a shard.
        manifests = {name for name in names if name.startswith("manifests/")}
        uploads.remove(sorted(manifests))
        uploads.remove(name for name in names if name not in manifests)
        uploads.abort(uploads.open_uploads() if unfinished else ())
    finally:
        uploads.remove([CLAIM])
    return pruned


def _plan(uploads: UploadStorage, keep: int, unfinished: bool) -> tuple[Pruned, list[str]]:
    """Returns what is to go, and the names of the objects in it."""
    manifests = find_manifests(uploads) if uploads.exists(MANIFEST_NAME) or uploads.list("manifests") else {}
    versions = sorted(manifests)[:-keep]
    kept = [manifest for version, manifest in manifests.items() if version not in versions]
    names = [f"manifests/{version}" for version in versions] + unreferenced(uploads, kept)
    newest = max((manifest.generations[-1].generation for manifest in kept), default=0)
    half = [f"{upload.name} (begun, not completed)" for upload in uploads.open_uploads()]
    new = [name for name in names if (identity := shard_identity(os.path.basename(name))) and identity[0] > newest]
    if (new or half) and not unfinished:
        raise PackError(
            f"{uploads.root} holds {(new + half)[0]}, which no version names: is it being uploaded? If not, remove it with "
            "--unfinished",
            dataset=uploads.root,
        )
    with ThreadPoolExecutor(_NUM_LOOKS, "shardload-upload") as pool:
        num_bytes = sum(facts.num_bytes for facts in pool.map(uploads.facts, names) if facts is not None)
    return Pruned(versions, names + half, num_bytes), names
