"""Datasets that Hugging Face's own package saved."""

from __future__ import annotations

import json

import pytest

import shardload
from shardload.errors import PackError
from shardload.importers import open_source
from shardload.packing import pack

pytestmark = pytest.mark.usefixtures("quick_workers")

pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install 'shardload[parquet]'")

JPEG = b"\xff\xd8\xff\xe0"
ROWS = {
    "text": [f"text {i}" for i in range(25)],
    "label": [i % 2 for i in range(25)],
    "grid": [[[i, 2.0, 3.0], [4.0, 5.0, 6.0]] for i in range(25)],
    "pair": [[i, i] for i in range(25)],
    "ids": [list(range(i % 4)) for i in range(25)],
    "image": [{"bytes": JPEG, "path": None}] * 25,
}
TYPES = {
    "text": "str",
    "label": "int64",
    "grid": "float32[2,3]",
    "pair": "int32[2]",
    "ids": "int32[*]",
    "image": "jpeg",
}


@pytest.fixture
def dataset():
    pytest.importorskip("datasets", reason="NOT CHECKED against Hugging Face's own writer: pip install datasets")
    import datasets
    from datasets.table import InMemoryTable

    whole = datasets.Value("int32")
    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["cat", "dog"]),
            "grid": datasets.Array2D((2, 3), "float32"),
            "pair": datasets.Sequence(whole, length=2),
            "ids": datasets.Sequence(whole),
            "image": datasets.Image(),
        }
    )
    schema = features.arrow_schema
    columns = [
        field.type.wrap_array(pa.array(ROWS[field.name], field.type.storage_type))
        if isinstance(field.type, pa.BaseExtensionType)
        else pa.array(ROWS[field.name], field.type)
        for field in schema
    ]
    table = InMemoryTable(pa.Table.from_arrays(columns, schema=schema))
    # The fingerprint is given, as some of its releases cannot compute one with some of pyarrow's.
    return datasets.Dataset(table, info=datasets.DatasetInfo(features=features), fingerprint="given")


def check(out) -> None:
    packed = shardload.open(out)
    assert {field.name: field.type for field in packed.schema.fields} == TYPES
    assert packed.metadata["classes"] == ["cat", "dog"]
    for i in range(25):
        sample = packed[i]
        assert (sample["text"], sample["label"], sample["image"]) == (ROWS["text"][i], ROWS["label"][i], JPEG)
        for name in ("grid", "pair", "ids"):
            assert sample[name].tolist() == ROWS[name][i]


@pytest.mark.filterwarnings("ignore")
def test_saved_datasets_and_their_parquet_files(tmp_path, dataset) -> None:
    dataset.save_to_disk(str(tmp_path / "saved"), num_shards=3)
    one = pack(tmp_path / "saved", tmp_path / "out", workers=1, unit_size=500)
    assert one.num_samples == 25 and one.num_units >= 3
    check(tmp_path / "out")
    assert pack(tmp_path / "saved", tmp_path / "two", workers=2, unit_size=500).fingerprint == one.fingerprint
    dataset.to_parquet(str(tmp_path / "a.parquet"))
    types = {**TYPES, "text": "str"}
    pack(tmp_path / "a.parquet", tmp_path / "parquet", schema=types, workers=1)
    check(tmp_path / "parquet")


@pytest.mark.filterwarnings("ignore")
def test_splits_are_chosen(tmp_path, dataset) -> None:
    import datasets

    datasets.DatasetDict({"train": dataset, "test": dataset.select(range(3))}).save_to_disk(str(tmp_path / "all"))
    with pytest.raises(PackError, match=r"all holds the splits train, test: choose one, such as .*all/train"):
        open_source([str(tmp_path / "all")])
    plan = open_source([str(tmp_path / "all" / "test")]).plan(None, None)
    assert [s.values["text"] for unit in plan.units for s in plan.reader.read(unit)] == ["text 0", "text 1", "text 2"]


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"_data_files": [{"filename": "../a.arrow"}]}, "names data files that cannot be"),
        ({"_data_files": [{"name": "a.arrow"}]}, "names data files that cannot be"),
        ({"_data_files": []}, "saved dataset without data"),
        ({"_data_files": [{"filename": "gone.arrow"}]}, r"gone.arrow does not exist"),
        ({"_data_files": [{"filename": "a.arrow"}], "_indices_data_files": [{"filename": "i"}]}, "flatten_indices"),
    ],
)
def test_saved_datasets_that_are_not_sound(tmp_path, state, message: str) -> None:
    (tmp_path / "state.json").write_text(json.dumps(state))
    with pytest.raises(PackError, match=message):
        open_source([str(tmp_path)])


def test_files_are_read_in_the_order_of_the_state_and_of_the_same_classes(tmp_path) -> None:
    def write(name: str, names: list[str], values: list[int]) -> None:
        features = {"info": {"features": {"label": {"_type": "ClassLabel", "names": names}}}}
        schema = pa.schema([("label", pa.int64())], metadata={"huggingface": json.dumps(features)})
        with pa.OSFile(str(tmp_path / name), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
            writer.write_table(pa.table({"label": values}, schema))

    write("b.arrow", ["x", "y"], [0])
    write("a.arrow", ["x", "y"], [1])
    (tmp_path / "state.json").write_text(
        json.dumps({"_data_files": [{"filename": "b.arrow"}, {"filename": "a.arrow"}]})
    )
    plan = open_source([str(tmp_path)]).plan(None, None)
    assert [s.values["label"] for unit in plan.units for s in plan.reader.read(unit)] == [0, 1]
    assert plan.metadata == {"classes": ["x", "y"]}
    write("a.arrow", ["y", "x"], [1])
    with pytest.raises(PackError, match=r"a.arrow has other classes in 'label' than those before it"):
        open_source([str(tmp_path)]).plan(None, None)
