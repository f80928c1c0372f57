"""What every storage promises, whatever lies below it."""

from __future__ import annotations

import contextlib
import os
import pickle
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
import pytest

from shardload.errors import FormatError, ShardloadError, StorageError
from shardload.storage import Storage

DATA = np.random.default_rng(7).bytes(10_000)
OTHER = np.random.default_rng(8).bytes(10_000)
FILES = {"file": DATA, "empty": b"", "shards/b": DATA[:300], "shards/a": DATA[:7], "shards/deeper/c": b"c"}
FILES |= {"odd/1": b"1", "odd/12": b"12", "odd/two words +%": b"odd name"}

RANGES = [(0, 10_000), (0, 1), (9_999, 10_000), (17, 4242), (5, 5), (0, 0), (10_000, 10_000), (9_000, 10_000)]


class Place(ABC):
    """Somewhere files are kept, which tests fill and change behind a storage's back."""

    @abstractmethod
    def put(self, name: str, data: bytes) -> None:
        """Stores a file, in the place of one that is there."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Removes a file."""

    @abstractmethod
    def storage(self, below: str = "") -> Storage:
        """Returns a new storage for the place, or for what is below a name."""


class StorageContract:
    """Subclasses give a fixture `place`, an empty `Place` of its own for each test, and say what it cannot do."""

    lists = True
    """Whether names can be listed."""
    notices_replacement = True
    """Whether another file of the same length in the place of the one that was opened is told; else checksums have to find it."""

    @pytest.fixture
    def storage(self, place: Place) -> Storage:
        for name, data in FILES.items():
            place.put(name, data)
        return place.storage()

    @pytest.mark.parametrize("num_bytes", [len(DATA), None])
    def test_reads_at_offsets(self, storage: Storage, num_bytes: int | None) -> None:
        file = storage.open("file", num_bytes)
        for start, stop in RANGES:
            buffer = np.full(stop - start + 2, 7, np.uint8)
            file.read_into(buffer[1:-1].data, start)
            assert buffer[1:-1].tobytes() == DATA[start:stop] == file.read(start, stop)
            assert buffer[0] == buffer[-1] == 7
        rows = np.zeros((4, 25), np.uint8)
        file.read_into(rows.data.cast("B"), 100)
        assert rows.tobytes() == DATA[100:200]
        assert (file.dataset, file.name, file.num_bytes) == (storage.root, "file", len(DATA))
        assert file.will_need(0, 10) is None and file.will_need(0, 1 << 40) is None  # type: ignore[func-returns-value]
        assert file.discard(0, 100) in (True, False) and file.read(0, 100) == DATA[:100]

    def test_what_is_not_in_the_file_is_not_read(self, storage: Storage) -> None:
        for num_bytes in (len(DATA), None):
            file = storage.open("file", num_bytes)
            for start, stop in ((9_999, 10_001), (10_000, 10_001), (20_000, 20_010), (0, 1 << 20)):
                with pytest.raises(ShardloadError) as caught:
                    file.read(start, stop)
                assert caught.value.shard == "file" and "file" in str(caught.value)

    def test_reads_from_several_threads(self, storage: Storage) -> None:
        file, wrong = storage.open("file", len(DATA)), list[object]()

        def read(number: int) -> None:
            try:
                for start in range(number, 9_000, 997):
                    if file.read(start, start + 500) != DATA[start : start + 500]:
                        wrong.append(start)
            except BaseException as error:
                wrong.append(error)

        threads = [threading.Thread(target=read, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not wrong

    def test_missing(self, storage: Storage, place: Place) -> None:
        reads: list[Callable[[], object]] = [
            lambda: storage.open("nothing"),
            lambda: storage.open("shards/nothing", 9).read(0, 9),
            lambda: storage.read_small("nothing", 100),
            lambda: storage.read_small("file/inner", 100),
        ]
        for read in reads:
            with pytest.raises(StorageError) as caught:
                read()
            assert caught.value.dataset == storage.root and caught.value.shard in str(caught.value)
        assert not storage.exists("nothing") and not storage.exists("shards/nothing")
        # There need not be anything at all: then it is found out by reading.
        nowhere = place.storage("no/where")
        assert not nowhere.exists("file") and nowhere.list("") == [] == nowhere.list("shards")
        with pytest.raises(StorageError, match="where: file is missing"):
            nowhere.open("file")
        with pytest.raises(StorageError, match="where: file is missing"):
            nowhere.open("file", 100).read(0, 100)

    def test_another_size(self, storage: Storage) -> None:
        for size in (1, 9_999, 10_001, 1 << 40):
            with pytest.raises(FormatError, match=f"file has 10000 bytes instead of {size}") as caught:
                storage.open("file", size).read(0, min(size, 10_000))
            assert (caught.value.dataset, caught.value.shard) == (storage.root, "file")

    def test_small_files(self, storage: Storage) -> None:
        assert storage.read_small("file", 10_000) == DATA == storage.read_small("file", 1 << 30)
        assert storage.read_small("shards/a", 7) == DATA[:7]
        for most in (0, 1, 9_999):
            with pytest.raises(FormatError, match=f"file has 10000 bytes; at most {most} can be right"):
                storage.read_small("file", most)

    def test_an_empty_file(self, storage: Storage) -> None:
        assert storage.read_small("empty", 100) == b"" == storage.read_small("empty", 0)
        for file in (storage.open("empty"), storage.open("empty", 0)):
            assert file.num_bytes == 0 and file.read(0, 0) == b""

    def test_names(self, storage: Storage) -> None:
        assert storage.exists("file") and storage.exists("empty") and storage.exists("shards/a")
        assert not storage.exists("fil") and not storage.exists("odd/two")
        assert storage.read_small("odd/two words +%", 100) == b"odd name" == storage.open("odd/two words +%").read(0, 8)
        if self.lists:
            assert storage.list("shards") == ["a", "b", "deeper"]
            assert storage.list("") == ["empty", "file", "odd", "shards"]
            assert storage.list("shards/deeper") == ["c"] and storage.list("odd") == ["1", "12", "two words +%"]
            assert storage.list("od") == []
        else:
            assert storage.list("shards") == [] == storage.list("")
        assert storage.list("nothing") == []

    @pytest.mark.parametrize("looked", [False, True])
    def test_a_replaced_file_never_mixes(self, storage: Storage, place: Place, looked: bool) -> None:
        """What was opened is read to its end, or refused: never bytes of the other one, once bytes of the first were seen."""
        file = storage.open("file", len(DATA))
        if looked:
            assert file.read(0, 100) == DATA[:100]
        place.put("file", OTHER)
        got = b""
        with contextlib.suppress(StorageError, FormatError):
            got = file.read(0, 5_000)
            got += file.read(5_000, 10_000)
        if self.notices_replacement:
            assert DATA.startswith(got) or (not looked and OTHER.startswith(got))

    @pytest.mark.parametrize("size", [None, 0, 5_000, 20_000])
    def test_a_file_of_another_length_is_noticed(self, storage: Storage, place: Place, size: int | None) -> None:
        file = storage.open("file", len(DATA))
        assert file.read(0, 100) == DATA[:100]
        if size is None:
            place.remove("file")
        else:
            place.put("file", (DATA + OTHER)[:size])
        try:
            assert file.read(4_000, 6_000) == DATA[4_000:6_000]
        except (StorageError, FormatError) as error:
            assert error.shard == "file" and error.dataset == storage.root

    def test_errors_survive_pickling(self, storage: Storage) -> None:
        with pytest.raises(StorageError) as caught:
            storage.open("nothing", 300).read(3, 9)
        again = pickle.loads(pickle.dumps(caught.value))
        assert (
            type(again) is type(caught.value) and str(again) == str(caught.value) and vars(again) == vars(caught.value)
        )

    def test_a_storage_is_a_value(self, storage: Storage) -> None:
        assert storage.open("file", len(DATA)).read(0, 9) == DATA[:9]
        data = pickle.dumps(storage)
        again = pickle.loads(data)
        assert len(data) < 4096 and again.root == storage.root and again.open("file", len(DATA)).read(0, 9) == DATA[:9]
        assert pickle.loads(pickle.dumps(again)).read_small("shards/a", 7) == DATA[:7]

    def test_a_forked_child_reads(self, storage: Storage) -> None:
        file = storage.open("file", len(DATA))
        assert file.read(0, 9) == DATA[:9]
        child = os.fork()
        if child == 0:
            status = 1
            with contextlib.suppress(BaseException):
                right = file.read(9, 5_000) == DATA[9:5_000] and storage.read_small("shards/a", 7) == DATA[:7]
                status = 0 if right else 2
            os._exit(status)
        _, ended = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(ended) == 0
        assert file.read(9, 5_000) == DATA[9:5_000]
