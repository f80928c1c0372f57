"""What was exported and is packed again is the same: schema, samples, facts."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from any_dataset import EVERY_TYPE, assert_same, samples_of, schemas, value_of
from faults import NoDevice
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import shardload
from shardload.packing import pack

KINDS = ["webdataset", "parquet"]
every_kind = pytest.mark.parametrize("to", KINDS)


@pytest.fixture(autouse=True)
def _needs(request):
    if "parquet" in str(getattr(request.node, "callspec", "")):
        pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install 'shardload[parquet]'")


@st.composite
def datasets(draw: st.DrawFn):
    schema = draw(schemas(compressed=True))
    return schema, draw(samples_of(schema, max_size=5, min_size=1))


def round_trip(to: str, dataset) -> None:
    schema, samples = dataset
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        device = {"operations": NoDevice()}
        facts = {"classes": ["é", "b"]}
        with shardload.ShardWriter(root / "first", schema, compression="zstd:1", metadata=facts, **device) as writer:
            for sample in samples:
                writer.write(sample)
        first = shardload.open(root / "first")
        # Keys that are any text are not for tars.
        options = {"key": ""} if to == "webdataset" else {}
        shardload.export(first, root / "out", to=to, shard_size=4000, **options, **device)
        pack(root / "out", root / "again", compression="none", workers=1, **device)
        again = shardload.open(root / "again")
        assert dict(again.metadata) == facts
        assert [(f.name, f.type) for f in again.schema.fields] == [(f.name, f.type) for f in first.schema.fields]
        assert len(again) == len(samples)
        for got, want in zip(again, samples, strict=True):
            assert list(got) == list(schema)
            for name, value in want.items():
                assert_same(got[name], value)


@every_kind
@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
@given(dataset=datasets())
def test_any_dataset_comes_back(to, dataset):
    round_trip(to, dataset)


@pytest.mark.slow
@every_kind
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(dataset=datasets())
def test_200_random_schemas_come_back(to, dataset):
    round_trip(to, dataset)


@every_kind
def test_every_type_comes_back_with_and_without_nulls(tmp_path, to):
    rng = np.random.default_rng(1)
    schema = EVERY_TYPE | {f"{name} null": f"{kind}?" for name, kind in EVERY_TYPE.items()}
    samples = []
    for i in range(6):
        sample = {name: value_of(kind, rng, length=i) for name, kind in schema.items()}
        samples.append(sample | {name: None for n, name in enumerate(schema) if name.endswith("null") and (i + n) % 3})
    # The last one has nothing in what may be missing.
    round_trip(to, (schema, samples))
