"""States of loaders and lines of sources that were made to hurt."""

from __future__ import annotations

import hashlib
import json

import pytest
from hostile.judge import bounded_memory

from shardload.errors import StateMismatchError
from shardload.importers import Reject
from shardload.importers.jsonl import _parse
from shardload.loader.state import STATE_KEY, OrderKey, Place, Saved, decode_state, encode_state
from shardload.order.epoch import Reseed

KEY = OrderKey("f" * 64, 1000, 7, True)
GOOD = json.loads(encode_state(KEY, Place(1, 2, 3))[STATE_KEY])


def state(**changes: object) -> dict[str, str]:
    """A state with its checksum right."""
    content = GOOD | changes
    del content["checksum"]
    checksum = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
    return {STATE_KEY: json.dumps({**content, "checksum": checksum}, sort_keys=True)}


def test_the_means_are_sound():
    assert decode_state(state(), KEY) == Saved(Place(1, 2, 3), 7, (), KEY.num_samples)
    assert decode_state(state(reseeds=[[0, 5, 6]]), KEY).reseeds == (Reseed(0, 5, 6),)


@pytest.mark.parametrize("depth", [*range(960, 1000), 100_000])
def test_nesting(depth):
    """At some depth JSON can still be read and no longer be written."""
    text = '{"checksum":"x","version":1,"a":' + "[" * depth + "]" * depth + "}"
    with pytest.raises(StateMismatchError):
        decode_state({STATE_KEY: text}, KEY)


NUMBERS = [-1, 1 << 63, 10**4000, True, 1.0, "1", None, [], {}, float("nan"), float("inf")]


@pytest.mark.parametrize("value", NUMBERS, ids=lambda value: repr(value)[:10])
@pytest.mark.parametrize(
    "name", ["epoch", "position", "batches", "seed", "num_samples", "recipe", "version", "shuffle"]
)
def test_numbers(name, value):
    if (name, value) == ("shuffle", True):
        return
    if name in ("recipe", "version") and value == 1 and type(value) is not str:
        # 1, 1.0 and true are one number to Python; what they name is the same.
        return
    with pytest.raises(StateMismatchError) as caught:
        decode_state(state(**{name: value}), KEY)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("value", NUMBERS, ids=lambda value: repr(value)[:10])
@pytest.mark.parametrize("slot", range(3))
def test_reseeds(slot, value):
    if (slot, value) == (2, 1 << 63) and type(value) is int:
        # Seeds have 64 bits.
        return
    for reseeds in ([[*[0, 5, 6][:slot], value, *[0, 5, 6][slot + 1 :]]], [value], value):
        if reseeds == []:
            continue
        with pytest.raises(StateMismatchError) as caught:
            decode_state(state(reseeds=reseeds), KEY)
        assert len(str(caught.value)) < 1000


def test_many_reseeds():
    with pytest.raises(StateMismatchError):
        decode_state(state(reseeds=[[0, 5, 6]] * 100_000), KEY)


@pytest.mark.parametrize("name", GOOD)
def test_long_text(name):
    text = (
        json.dumps(GOOD | {name: "x" * 1_000_000})
        if name == "checksum"
        else state(**{name: "x" * 1_000_000})[STATE_KEY]
    )
    with pytest.raises(StateMismatchError) as caught:
        decode_state({STATE_KEY: text}, KEY)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("text", ["", "null", "[]", "1", "{}", '"a"', "\ud800", "\0", "[" * 100_000, "NaN", "9" * 5000])
def test_texts(text):
    with pytest.raises(StateMismatchError):
        decode_state({STATE_KEY: text}, KEY)


@pytest.mark.parametrize("value", [None, 1, b"", {}, [], bytearray(b"{}")], ids=repr)
def test_no_text(value):
    for given in (value, {STATE_KEY: value}):
        with pytest.raises(StateMismatchError):
            decode_state(given, KEY)


@pytest.mark.timeout(20)
def test_a_key_twice_among_many():
    """Found in one pass: a pass for each key would take hours."""
    names = ",".join(f'"k{i}":1' for i in range(200_000))
    found = _parse(f'{{{names},"z":1,"z":2}}'.encode(), "line 1", 9)
    assert isinstance(found, Reject) and "field 'z' stands in an object twice" in found.reason


LINES = {
    "nesting": b"[" * 100_000,
    "objects": b'{"a":' * 100_000,
    "5,000 digits": b'{"a":' + b"9" * 5000 + b"}",
    "1,000,000 digits": b'{"a":' + b"9" * 1_000_000 + b"}",
    "1e999": b'{"a":1e999}',
    "a long exponent": b'{"a":1e' + b"9" * 4000 + b"}",
    "NaN": b'{"a":NaN}',
    "UTF-16": '{"a":1}'.encode("utf-16"),
    "NUL": b'{"a":"\0"}',
    "no UTF-8": b'{"a":"\xff"}',
    "a surrogate as bytes": b'{"a":"\xed\xa0\x80"}',
    "a long key twice": b'{"' + b"k" * 100_000 + b'":1,"' + b"k" * 100_000 + b'":1}',
    "a long key, infinite": b'{"' + b"k" * 100_000 + b'":1e999}',
}


@pytest.mark.parametrize("name", LINES)
def test_lines(name):
    with bounded_memory():
        found = _parse(LINES[name], "line 1", 9)
    assert isinstance(found, Reject) and (str(found.place), found.num_bytes) == ("line 1", 9)
    assert len(found.reason) < 1000 and "\n" not in found.reason
