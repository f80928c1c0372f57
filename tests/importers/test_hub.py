"""Names of the hub, with a local folder in its place: the package loads both by the same call."""

from __future__ import annotations

import sys

import pytest

import shardload
from shardload.errors import PackError
from shardload.importers import named_by_hub
from shardload.packing import pack


def test_names_that_are_none_and_the_missing_package(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(PackError, match=r"hf:a/b@train is loaded by .*pip install 'shardload\[datasets\]'"):
        pack("hf:a/b@train", tmp_path / "out")
    for name in ("hf:", "hf:a@", "hf:a:b:c", "hf:a@train[:10%]", "hf:a@train+test"):
        with pytest.raises(PackError, match="names no dataset of the hub: give hf:NAME@SPLIT"):
            named_by_hub([name])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hf:mine").mkdir()
    assert named_by_hub(["hf:mine", "other"]) == ["hf:mine", "other"]


@pytest.mark.filterwarnings("ignore")
def test_a_split_is_packed_from_the_files_that_datasets_keeps(tmp_path, monkeypatch) -> None:
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install 'shardload[parquet]'")
    datasets = pytest.importorskip("datasets", reason="NOT CHECKED against the package itself: pip install datasets")
    from pyarrow import parquet

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    folder = tmp_path / "local"
    folder.mkdir()
    for split, count in (("train", 20), ("test", 3)):
        parquet.write_table(pa.table({"text": [f"{split} {i}" for i in range(count)]}), folder / f"{split}.parquet")
    with pytest.raises(PackError, match=r"has the splits train, test: choose one, such as hf:.*local@train"):
        named_by_hub([f"hf:{folder}"])
    assert pack(f"hf:{folder}@train", tmp_path / "out", workers=1).num_samples == 20
    assert shardload.open(tmp_path / "out")[19] == {"text": "train 19"}
    with pytest.raises(PackError, match=r"hf:.*gone@train could not be loaded by datasets: "):
        named_by_hub([f"hf:{tmp_path}/gone@train"])
