"""Views and concats: the samples of lists, whatever was chosen from whatever, read by whatever reads a dataset."""

from __future__ import annotations

import pickle
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import expected_everything, mixed_sample, same, write_everything

import shardload
from shardload.reader import View

FIELDS = ["id", "label", "box", "tokens", "text", "data", "score", "words"]


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    return write_everything(tmp_path_factory.mktemp("everything") / "dataset")


@st.composite
def expressions(draw, source, samples):
    """A view of views, and which samples it has."""
    places = list(range(len(samples)))
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["slice", "select", "range", "filter"]))
        if kind == "filter":
            rest = draw(st.integers(0, 2))
            source = source.filter_by("label", lambda labels, rest=rest: labels % 3 != rest)
            places = [i for i in places if samples[i]["label"] % 3 != rest]
            continue
        if kind == "select":
            some = draw(st.lists(st.sampled_from(range(len(places))), max_size=20)) if places else []
            source = source.select(draw(st.sampled_from([list, tuple, np.array]))(some) if some else [])
        else:
            cut = draw(st.slices(len(places)))
            some = range(len(places))[cut]
            source = source[cut] if kind == "slice" else source.select(some)
        places = [places[i] for i in some]
    return source, places


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_view_is_the_list_of_its_samples(everything, data):
    dataset, samples = shardload.open(everything, fields=FIELDS), expected_everything()
    if data.draw(st.booleans()):
        dataset = shardload.concat([dataset, dataset[::-2], dataset.select([3, 3])])
        samples = [*samples, *samples[::-2], samples[3], samples[3]]
    view, places = data.draw(expressions(dataset, samples))
    assert len(view) == len(places)
    listed = [{name: samples[i][name] for name in FIELDS} for i in places]
    for got, want in zip(view, listed, strict=True):
        assert same(got, want), (got["id"], want["id"])
    assert not isinstance(view, View) or not isinstance(view.source, View)
    if listed:
        some = data.draw(st.lists(st.integers(-len(listed), len(listed) - 1), max_size=12))
        assert [got["id"] for got in view.__getitems__(some)] == [listed[i]["id"] for i in some]
    for name in ("label", "box", "score"):
        for value, sample in zip(view.column(name), listed, strict=True):
            missing = bool(np.all(np.ma.getmaskarray(value)))
            assert sample[name] is None if missing else np.array_equal(value, sample[name], equal_nan=True)
    for name in ("tokens", "text", "data", "words"):
        lengths = [0 if s[name] is None else len(s[name].encode() if name == "text" else s[name]) for s in listed]
        assert view.lengths(name).tolist() == lengths


def test_parts_of_a_batch_that_differ_in_how_they_are_stored(mixed, tmp_path):
    """One has its texts compressed, the other may lack them: the batch has what both have."""
    schema = {name: field.type for name, field in shardload.open(mixed).schema.items()} | {"text": "str?"}
    with shardload.ShardWriter(tmp_path / "later", schema, compression="none") as writer:
        for i in range(500, 530):
            writer.write(mixed_sample(i) | ({"text": None} if i % 2 else {}))
    both = shardload.concat([shardload.open(mixed), shardload.open(tmp_path / "later")])
    assert both.schema["text"].nullable and len(both) == 530
    expected = [mixed_sample(i) | ({"text": None} if i >= 500 and i % 2 else {}) for i in range(530)]
    for ids in ([3, 501, 500, 4, 529], [3, 4], [], [500, 501]):
        assert all(same(got, expected[i]) for got, i in zip(both.__getitems__(ids), ids, strict=True))
    loader = shardload.ShardLoader(both, 53, shuffle=True, fields=["text", "number"], with_ids=True)
    seen = []
    for batch in loader:
        assert [expected[i]["text"] for i in batch["number"].tolist()] == batch["text"]
        assert batch["_valid_text"].tolist() == [text is not None for text in batch["text"]]
        seen += batch["_sample_id"].tolist()
        assert batch["_sample_id"].tolist() == batch["number"].tolist()
    assert sorted(seen) == list(range(530))
    assert loader.stats().engine == ("ranges" if shardload.open(mixed).far else "map")


def other_meanings(tmp_path):
    """Two datasets whose labels and tokens were written for different things, as packs of different sources are."""
    for name, metadata in (
        ("one", {"classes": ["cat", "dog"], "tokenizer": "a"}),
        ("two", {"classes": ["dog"], "tokenizer": "b"}),
    ):
        schema = {"label": "int64", "tokens": "uint16[*]", "text": "str"}
        with shardload.ShardWriter(tmp_path / name, schema, metadata=metadata) as writer:
            writer.write({"label": 0, "tokens": [1, 2, 3, 4], "text": "x"})
        yield tmp_path / name


@pytest.mark.parametrize(
    ("fields", "told"),
    [(["text"], []), (["label"], ["classes"]), (["tokens", "text"], ["tokenizer"]), (None, ["classes", "tokenizer"])],
)
def test_equal_numbers_of_different_meaning_are_warned_of(tmp_path, fields, told):
    one, two = (shardload.open(path, fields=fields) for path in other_meanings(tmp_path))
    for joined in (shardload.concat([one, two[:1]]), shardload.Mixture({"one": (one, 1), "two": (two, 1)})):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            next(iter(shardload.ShardLoader(joined, 1, shuffle=True)))
        found = [str(warning.message).split("other '")[1].split("'")[0] for warning in caught]
        assert found == told
    # What was packed alike is not.
    assert len(shardload.concat([one, one[:1]]).schema) == (len(fields) if fields else 3)


def test_windows_of_tokens_of_different_tokenizers_are_warned_of(tmp_path):
    one, two = (shardload.TokenWindows(shardload.open(path), "tokens", 3) for path in other_meanings(tmp_path))
    mixture = shardload.Mixture({"one": (one, 1), "two": (two, 1)})
    with pytest.warns(UserWarning, match="other 'tokenizer' than .*one: equal tokens mean different"):
        shardload.ShardLoader(mixture, 1, shuffle=True)


@pytest.mark.parametrize("how", [{}, {"num_processes": 1}, {"helper_process": True}, {"prefetch_batches": 0}], ids=str)
def test_loaders_read_views_as_they_read_datasets(mixed, how):
    dataset = shardload.open(mixed)
    view = shardload.concat([dataset[100:200], dataset[::-7]])[5:]
    numbers = np.array([*range(100, 200), *range(499, -1, -7)])[5:]
    expected = shardload.ShardLoader(view, 16, shuffle=True, seed=5, tail="short", with_ids=True, prefetch_batches=0)
    batches = list(expected)
    got = list(shardload.ShardLoader(view, 16, shuffle=True, seed=5, tail="short", with_ids=True, **how))
    assert len(got) == len(batches) == -(-len(numbers) // 16)
    for one, two in zip(got, batches, strict=True):
        assert torch.equal(one["_sample_id"], two["_sample_id"]) and torch.equal(one["wide"], two["wide"])
        assert one["number"].tolist() == numbers[one["_sample_id"].numpy()].tolist()
        assert one["text"] == two["text"] and one["facts"] == two["facts"]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_dataloader_over_a_view(mixed, num_workers):
    view = shardload.open(mixed).filter_by("number", lambda numbers: numbers % 2 == 1)
    sampler = shardload.ShardSampler(view, num_replicas=2, rank=1, seed=3)
    loader = torch.utils.data.DataLoader(
        view, batch_sampler=sampler.batch_sampler(20), collate_fn=shardload.collate, num_workers=num_workers
    )
    mine = [number for batch in loader for number in batch["number"].tolist()]
    expected = shardload.ShardLoader(view, 20, shuffle=True, seed=3, num_replicas=2, rank=1, tail="pad")
    assert mine == [number for batch in expected for number in batch["number"].tolist()]
    assert all(number % 2 for number in mine) and len(set(mine)) == 125


def test_states_go_with_the_view(mixed):
    dataset = shardload.open(mixed)
    loader = shardload.ShardLoader(dataset[:100], 10, shuffle=True, with_ids=True)
    batches = iter(loader)
    first, state = [next(batches)["_sample_id"].tolist() for _ in range(3)], loader.state_dict()
    rest = [batch["_sample_id"].tolist() for batch in batches]
    again = shardload.ShardLoader(shardload.open(mixed).select(range(100)), 10, shuffle=True, with_ids=True)
    again.load_state_dict(state)
    assert [batch["_sample_id"].tolist() for batch in again] == rest
    assert sorted(i for ids in first + rest for i in ids) == list(range(100))
    for other in (dataset, dataset[:101], dataset[1:101], dataset[:100].select(range(99, -1, -1))):
        with pytest.raises(shardload.StateMismatchError, match=r"fingerprint|num_samples"):
            shardload.ShardLoader(other, 10, shuffle=True).load_state_dict(state)


def test_fingerprints_name_the_content(mixed):
    dataset = shardload.open(mixed)
    assert dataset[:] is dataset
    assert dataset[2:8:2].fingerprint == dataset.select([2, 4, 6]).fingerprint == dataset[:10][2:][:6:2].fingerprint
    one, two = dataset[:10], dataset[10:]
    assert shardload.concat([one, shardload.concat([two])]).fingerprint == shardload.concat([one, two]).fingerprint
    names = {
        source.fingerprint for source in (dataset, one, two, dataset[:0], dataset[10:0], shardload.concat([two, one]))
    }
    assert len(names) == 5


def test_splits_stay_as_they_are_when_samples_come(tmp_path):
    schema = {"speaker": "str", "number": "int64"}

    def write(start, stop, **options):
        with shardload.ShardWriter(tmp_path / "data", schema, **options) as writer:
            for i in range(start, stop):
                writer.write({"speaker": f"speaker {i // 3 % 50}", "number": i})

    write(0, 300)
    before = shardload.open(tmp_path / "data")
    sides = {
        by: [set(part.column("number").tolist()) for part in before.split(0.3, seed=1, by=by)]
        for by in (None, "speaker", "number")
    }
    write(300, 600, append=True)
    after = shardload.open(tmp_path / "data")
    for by, (train, held) in sides.items():
        new_train, new_held = (set(part.column("number").tolist()) for part in after.split(0.3, seed=1, by=by))
        assert train < new_train and held < new_held and not new_train & new_held and len(new_train | new_held) == 600
        assert 90 < len(new_held) < 270
    train, held = after.split(0.3, by="speaker")
    assert not {sample["speaker"] for sample in train} & {sample["speaker"] for sample in held}
    assert sides[None] != [set(part.column("number").tolist()) for part in before.split(0.3, seed=2)]
    # A part of a dataset has each sample on the side that it has in the whole.
    held_ids = set(before.split(0.3)[1].column("number").tolist())
    assert set(before[50:250].split(0.3)[1].column("number").tolist()) == held_ids & set(range(50, 250))


def test_views_are_cheap(mixed):
    dataset = shardload.open(mixed)
    view = dataset[10:400]
    for _ in range(50):
        view = view[1:]
    assert view.source is dataset and view.selection == range(60, 400)
    assert len(pickle.dumps(view)) < 2000
    copy = pickle.loads(pickle.dumps(view))
    assert copy.fingerprint == view.fingerprint and same(copy[7], mixed_sample(67))
    assert view.metadata == dataset.metadata and view.num_bytes <= dataset.num_bytes


class Doubling:
    def double(self, sample):
        return sample["number"] * 2


def test_transforms_and_decoders_of_the_dataset_stay(mixed):
    dataset = shardload.open(mixed, fields=["number"], transform=lambda sample: sample["number"] * 2)
    assert dataset[10:20][3] == 26 and list(dataset.select([4, 1])) == [8, 2]
    assert [batch.tolist() for batch in shardload.ShardLoader(dataset[:4], 2, shuffle=False)] == [[0, 2], [4, 6]]
    doubling = Doubling()
    # Each look at a method gives another object, which is the same method all the same.
    parts = [shardload.open(mixed, fields=["number"], transform=doubling.double) for _ in range(2)]
    assert shardload.concat(parts)[513] == 26
    with pytest.raises(ValueError, match="another transform"):
        shardload.concat([dataset, shardload.open(mixed, fields=["number"])])


def test_a_missing_value_is_in_no_filter(everything):
    dataset, samples = shardload.open(everything, fields=FIELDS), expected_everything()
    missing = [i for i, sample in enumerate(samples) if sample["score"] is None]
    there = [i for i, sample in enumerate(samples) if sample["score"] is not None]
    assert missing and there
    for chosen in (
        dataset.filter_by("score", lambda scores: scores != -1),
        dataset[:].filter_by("score", lambda s: ~(s == -1)),
    ):
        assert chosen.selection.tolist() == there
    unmasked = dataset.filter_by("score", lambda scores: np.ma.getmaskarray(scores))
    assert unmasked.selection.tolist() == missing


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda d: d.select([1, 500]), IndexError, "sample 500 is out of range: there are 500"),
        (lambda d: d.select(range(501)), IndexError, "sample 500"),
        (lambda d: d.select(["a"]), TypeError, "integers"),
        (lambda d: d[:10].select([10]), IndexError, "there are 10"),
        (lambda d: d.split(1.5), ValueError, "fraction must be from 0 to 1"),
        (lambda d: d.split(0.5, by="wide"), ValueError, "'wide' is no field"),
        (lambda d: d.split(0.5, by="score"), ValueError, "without missing values"),
        (lambda d: d.split(0.5, by="nothing"), ValueError, "'nothing' is no field"),
        (lambda d: d.filter_by("nothing", bool), ValueError, "'nothing' is not a fixed field"),
        (lambda d: d.filter_by("number", lambda n: n), ValueError, "bool array of shape"),
        (lambda d: d.filter_by("number", lambda n: True), ValueError, "bool array of shape"),
        (lambda d: shardload.concat([]), ValueError, "nothing to join"),
        (lambda d: shardload.concat(d), ValueError, "give a list"),
        (lambda d: shardload.concat([d, "other"]), TypeError, "number 1 is a str"),
        (lambda d: shardload.PackedSequences("path", "tokens", 9), TypeError, "not from a str"),
        (lambda d: shardload.scan("path", 9), TypeError, "reads samples as they are .* not str"),
        (
            lambda d: shardload.concat([d, shardload.open(d.location, fields=["number"])]).schema,
            ValueError,
            "dataset 1 .* reads number",
        ),
        (lambda d: d[:5].column("text"), ValueError, "not a fixed field"),
        (lambda d: d[:5].lengths("number"), ValueError, "not ragged"),
    ],
)
def test_what_cannot_be_chosen_is_named(mixed, make, error, words):
    with pytest.raises(error, match=words):
        make(shardload.open(mixed))
