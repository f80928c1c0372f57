"""A target whose unfinished pack is taken up again."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import msgspec

from shardload.errors import PackError
from shardload.format.manifest import Manifest
from shardload.format.table import ShardEntry
from shardload.writer.failures import named
from shardload.writer.target import Target
from shardload.writer.versions import read_entries, read_manifest
from shardload.writer.work import JOB, JOURNAL_NAMES, UNSHUFFLED, WORK


class ResumableTarget(Target):
    """A claimed directory that can be given back with an unfinished pack, and claimed again to go on with it."""

    def take_up(self, version: int, generation: int) -> Manifest | None:
        """Goes on with the unfinished pack that is there, whose shards and journal stay.

        Args:
            version: the version it was begun for.
            generation: the generation of its shards.

        Returns:
            The manifest that it has committed already, or None. `finish` does what is left then.

        Raises:
            PackError: another version was published since it was begun.
        """
        with named(self.root):
            committed = self._take_version(version, generation)
            if committed is not None and self.base is not None:
                # What is added to is that which was there before the commit, which may be the current version already.
                before = [one for one in committed.generations if one.generation < generation]
                self.current = msgspec.structs.replace(committed, generations=before)
            for name in self.storage.list(WORK):
                if f"{WORK}/{name}" not in (JOB, UNSHUFFLED) and name not in JOURNAL_NAMES:
                    self.storage.operations.unlink(self.storage.path(f"{WORK}/{name}"))
            self._make_directories()
        return committed

    def finish(self, manifest: Manifest, entries: Sequence[ShardEntry]) -> None:
        """Does what is left after a commit that was cut off, and gives the directory back.

        Args:
            manifest: what `take_up` returned.
            entries: the shards of the unfinished pack.

        Raises:
            PackError: the commit is that of another writer, or the storage failed.
        """
        if read_entries(self.public, manifest, self.generation) != sorted(entries):
            raise PackError(
                f"{self.root}: version {self.version} was published by another writer; remove {self.root}/{WORK} to "
                "give up the unfinished pack",
                dataset=self.root,
            )
        with named(self.root):
            self._publish(manifest.encode())
        self._lock.release()

    def suspend(self, entries: Sequence[ShardEntry] | None = None) -> None:
        """Gives the directory back with everything that is needed to go on later.

        Args:
            entries: shards that stay, all others of this generation are removed; None leaves all, and so does a file
                system without locks: there another process may have gone on meanwhile.
        """
        if self._lock.released:
            return
        try:
            if entries is not None and self._lock.is_mine and self._locked:
                with contextlib.suppress(OSError):
                    self.keep_only(entries)
        finally:
            self._lock.release()

    def leave_finished(self) -> None:
        """Gives back a directory whose dataset is complete, without what is left of writers that were cut off."""
        with named(self.root):
            self._remove_work()
        self._lock.release()

    def _take_version(self, version: int, generation: int) -> Manifest | None:
        committed = self._published(version)
        if committed is None and (version, generation) != (self.version, self.generation):
            raise PackError(
                f"{self.root}: the unfinished pack there was begun for version {version}, but the next one is now "
                f"{self.version}: begin again without --continue, or remove {self.root}/{WORK} to give it up",
                dataset=self.root,
            )
        self.version, self.generation = version, generation
        return committed

    def _published(self, version: int) -> Manifest | None:
        """Returns the manifest of a version if that is the newest one."""
        name = f"manifests/{version}"
        if version != self.version - 1 or not self.public.exists(name):
            return None
        return read_manifest(self.public, name)
