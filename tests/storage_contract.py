"""What every storage promises, as tests: a class for each storage inherits them and gives `storage` over `FILES`."""

from __future__ import annotations

import os
import pickle
import threading
from typing import Any

import numpy as np
import pytest

from shardload.errors import FormatError, StorageError
from shardload.storage import Storage

FILES = {
    "manifest.json": b'{"a": 1}',
    "empty": b"",
    "shards/one": np.random.default_rng(5).bytes(100_003),
    "shards/two words +%": b"odd name",
    "manifests/1": b"1",
    "manifests/12": b"12",
}
DATA = FILES["shards/one"]


class StorageContract:
    """Every test is given `storage`, a fixture of the inheriting class."""

    def test_ranges(self, storage: Storage) -> None:
        file = storage.open("shards/one", len(DATA))
        assert (file.name, file.dataset, file.num_bytes) == ("shards/one", storage.root, len(DATA))
        for start, stop in [(0, 1), (0, len(DATA)), (7, 7), (99_999, 100_003), (1, 65_537)]:
            assert file.read(start, stop) == DATA[start:stop]
            buffer = bytearray(b"x" * (stop - start + 2))
            file.read_into(memoryview(buffer)[1:-1], start)
            assert bytes(buffer) == b"x" + DATA[start:stop] + b"x"
        file.will_need(0, 10)
        assert isinstance(file.discard(0, 10), bool)

    def test_odd_names(self, storage: Storage) -> None:
        assert storage.read_small("shards/two words +%", 100) == b"odd name"

    def test_threads(self, storage: Storage) -> None:
        file, wrong = storage.open("shards/one", len(DATA)), []

        def read(seed: int) -> None:
            for start in np.random.default_rng(seed).integers(0, len(DATA) - 100, 10).tolist():
                if file.read(start, start + 100) != DATA[start : start + 100]:
                    wrong.append(start)

        threads = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
        assert not wrong

    def test_past_the_end(self, storage: Storage) -> None:
        file = storage.open("shards/one", len(DATA))
        with pytest.raises((StorageError, FormatError)) as caught:
            file.read(len(DATA) - 5, len(DATA) + 5)
        assert caught.value.shard == "shards/one" and caught.value.dataset == storage.root

    @pytest.mark.parametrize("more", [-1, 1])
    def test_another_length(self, storage: Storage, more: int) -> None:
        with pytest.raises(FormatError, match=f"has {len(DATA)} bytes instead of {len(DATA) + more}") as caught:
            storage.open("shards/one", len(DATA) + more).read(0, 4)
        assert caught.value.shard == "shards/one"

    def test_missing(self, storage: Storage) -> None:
        for name in ("shards/none", "none/none"):
            with pytest.raises(StorageError, match=f"{name} is missing") as caught:
                storage.open(name, 5).read(0, 5)
            assert (caught.value.dataset, caught.value.shard) == (storage.root, name)
            with pytest.raises(StorageError, match="is missing"):
                storage.read_small(name, 100)

    def test_unknown_length(self, storage: Storage) -> None:
        file = storage.open("shards/one")
        assert file.num_bytes == len(DATA) and file.read(3, 9) == DATA[3:9]
        assert storage.open("empty").num_bytes == 0
        with pytest.raises(StorageError):
            storage.open("shards/none")

    def test_small_files(self, storage: Storage) -> None:
        for name, data in FILES.items():
            assert storage.read_small(name, len(data)) == storage.read_small(name, 1 << 20) == data
        with pytest.raises(FormatError, match=f"has {len(DATA)} bytes; at most 100 can be right"):
            storage.read_small("shards/one", 100)

    def test_names(self, storage: Storage) -> None:
        assert storage.exists("manifest.json") and storage.exists("empty")
        assert not storage.exists("manifest") and not storage.exists("shards/none")
        if self.lists:
            assert storage.list("manifests") == ["1", "12"]
            assert set(storage.list("")) >= {"empty", "manifest.json", "manifests", "shards"}
        assert storage.list("none") == []

    def test_pickle_and_fork(self, storage: Storage) -> None:
        file = storage.open("shards/one", len(DATA))
        assert file.read(5, 50) == DATA[5:50]
        again: Any = pickle.loads(pickle.dumps(storage))
        assert again.root == storage.root and again.open("shards/one", len(DATA)).read(5, 50) == DATA[5:50]
        child = os.fork()
        if child == 0:
            status = 1
            try:
                status = 0 if file.read(60, 90) + storage.read_small("empty", 9) == DATA[60:90] else 2
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        # What the child did with its own has not disturbed what is here.
        assert file.read(60, 90) == DATA[60:90]

    lists = True
