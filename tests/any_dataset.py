"""Any schema and any samples of it: what hypothesis draws for tests that write and read datasets."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

INTEGERS = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
FLOATS = ["float16", "float32", "float64"]
ARRAYS = ["bool", *INTEGERS, *FLOATS, "bfloat16"]
MEDIA = {"jpeg": b"\xff\xd8\xff", "png": b"\x89PNG\r\n\x1a\n", "audio": b"", "video": b""}

EVERY_TYPE = (
    {kind: kind for kind in ARRAYS}
    | {f"{kind} row": f"{kind}[2,3]" for kind in ARRAYS}
    | {f"{kind} wide": f"{kind}[513]" for kind in ARRAYS}
    | {f"{kind} stream": f"{kind}[*]" for kind in ARRAYS}
    | {f"{kind} items": f"{kind}[*,2,3]" for kind in ARRAYS}
    | {kind: kind for kind in ("bytes", "str", "json", *MEDIA, "bytes[*]", "str[*]")}
)
Types = dict[str, Any]
"""Field name -> type, or a mapping of type and compression."""
Samples = list[dict[str, Any]]


def type_of(entry: Any) -> str:
    """The type in an entry of a schema."""
    return str(entry["type"] if isinstance(entry, dict) else entry)


def value_of(type_text: str, rng: np.random.Generator, length: int | None = None) -> Any:
    """A value of a type; `length`: of its first dimension or its list, if that differs."""
    kind, _, shape_text = type_text.rstrip("?").partition("[")
    if length is None:
        length = int(rng.integers(0, 5))
    if shape_text == "*]" and kind in ("bytes", "str"):
        return [value_of(kind, rng) for _ in range(length)]
    shape = tuple(map(int, shape_text.rstrip("]").replace("*", str(length)).split(","))) if shape_text else ()
    if kind == "bytes" or kind in MEDIA:
        return MEDIA.get(kind, b"") + rng.bytes(int(rng.integers(0, 40)))
    if kind == "str":
        return "aé中\U0001f600\n\0"[: rng.integers(0, 7)] * 9
    if kind == "json":
        return {"b": [int(rng.integers(9)), None, True, 1.5], "a": "\u2028é\x01"}
    if kind == "bool":
        return rng.integers(0, 2, shape).astype(bool) if shape_text else bool(rng.integers(0, 2))
    if kind == "bfloat16":
        values = (rng.integers(0, 1 << 16, shape).astype(np.uint32) << 16).astype(np.uint32).view(np.float32)
        values = np.where(np.isnan(values), np.float32("nan"), values).astype(np.float32)
        return values if shape_text else float(values)
    values = np.frombuffer(rng.bytes(int(np.prod(shape, dtype=int)) * np.dtype(kind).itemsize), kind).reshape(shape)
    if kind in FLOATS:
        # The payload of a scalar NaN is not promised.
        values = np.where(np.isnan(values), np.dtype(kind).type("nan"), values)
    return values if shape_text else values[()]


def assert_same(got: Any, want: Any) -> None:
    """Fails unless a value that was read is the one that was written."""
    if want is None or isinstance(want, bytes | str | dict | list):
        assert got == want and type(got) is type(want)
        return
    assert got is not None
    want = np.asarray(want)
    assert np.asarray(got).shape == want.shape
    np.testing.assert_array_equal(got, want)


SHAPES = st.lists(st.integers(1, 5), min_size=1, max_size=3).map(lambda s: f"[{','.join(map(str, s))}]")
TYPES = st.builds(
    "".join,
    st.tuples(
        st.one_of(
            st.sampled_from([*ARRAYS, "bytes", "str", "json", *MEDIA]),
            st.builds("".join, st.tuples(st.sampled_from(ARRAYS), SHAPES)),
            st.sampled_from([f"{kind}[{length}]" for kind in ARRAYS for length in (63, 64, 257, 512)]),
            st.sampled_from([f"{kind}[*{shape}]" for kind in ARRAYS for shape in ("", ",3", ",1,257")]),
            st.sampled_from(["bytes[*]", "str[*]"]),
        ),
        st.sampled_from(["", "?"]),
    ),
)
# Items of the longest are in more than one block, and of some types in more bytes than a small shard.
LENGTHS = (0, 0, 1, 2, 7, 100, 2048, 5000)
NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=9).filter(
    lambda name: not name.startswith("_") and name == name.strip(" ")
)
JSON = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=9)
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=4), inner, max_size=4)),
    max_leaves=9,
).filter(lambda value: value is not None)


def values(type_text: str) -> st.SearchStrategy[Any]:
    kind = type_text.rstrip("?")
    strategy: st.SearchStrategy[Any]
    seeds = st.integers(0, 1 << 30).map(np.random.default_rng)
    if "*" in kind:
        strategy = st.builds(value_of, st.just(kind), seeds, st.sampled_from(LENGTHS))
    elif kind == "json":
        strategy = JSON
    elif kind == "str":
        strategy = st.text(max_size=60)
    elif kind == "bytes" or kind in MEDIA:
        strategy = st.binary(max_size=1500).map(lambda data: MEDIA.get(kind, b"") + data)
    else:
        strategy = st.builds(value_of, st.just(kind), seeds)
    return st.one_of(st.none(), strategy) if type_text.endswith("?") else strategy


@st.composite
def schemas(draw: st.DrawFn, compressed: bool, nullable: bool = False, min_size: int = 1, max_size: int = 9) -> Types:
    """Any schema; `nullable`: of nullable fields alone. Names are those of `NAMES`."""
    names = draw(st.lists(NAMES, min_size=min_size, max_size=max_size, unique=True))
    schema: Types = {}
    for name in names:
        kind = draw(TYPES)
        kind = kind.rstrip("?") + "?" if nullable else kind
        choices: list[Any] = [kind, kind, {"type": kind}, {"type": kind, "compression": "none"}]
        if compressed and ("*" in kind or kind.rstrip("?") in ("bytes", "str", "json")):
            choices += [{"type": kind, "compression": "zstd"}] * 2
        schema[name] = draw(st.sampled_from(choices))
    return schema


def samples_of(schema: Types, max_size: int = 7, min_size: int = 0) -> st.SearchStrategy[Samples]:
    """Any samples of a schema."""
    sample = st.fixed_dictionaries({name: values(type_of(entry)) for name, entry in schema.items()})
    return st.lists(sample, min_size=min_size, max_size=max_size)
