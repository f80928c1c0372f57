"""The types of the fields of tars, from the first samples of many of them."""

from __future__ import annotations

from collections.abc import Mapping

from shardload.errors import FormatError
from shardload.format.schema import parse_field
from shardload.importers.tar_values import BadValue, is_integer, kind_of, npy_type


def has_content_type(extension: str) -> bool:
    """Tells whether the content of members has a say in the type of their field."""
    return kind_of(extension) in ("array", "int64")


class TypeInference:
    """Gathers what samples have, and says what types hold them.

    Members of which none is the number or the array that their extension promises keep a wider type: `str` and `bytes`.
    If only some are not, they are what is wrong, and are refused when they are read.
    """

    def __init__(self) -> None:
        self.num_samples = 0
        self._present: dict[str, int] = {}
        self._integers: set[str] = set()
        self._arrays: dict[str, set[tuple[str, tuple[int, ...]]]] = {}

    def add(self, members: Mapping[str, bytes]) -> None:
        """Adds a sample.

        Args:
            members: extension -> content; the content of those without a say in their type is not looked at.
        """
        self.num_samples += 1
        for extension, data in members.items():
            self._present[extension] = self._present.get(extension, 0) + 1
            kind = kind_of(extension)
            if kind == "int64" and extension not in self._integers and is_integer(data):
                self._integers.add(extension)
            elif kind == "array":
                self._add_array(extension, data)

    def types(self) -> dict[str, str]:
        """Returns extension -> type, sorted by extension."""
        return {
            extension: self._type(extension) + ("?" if self._present[extension] < self.num_samples else "")
            for extension in sorted(self._present)
        }

    def _add_array(self, extension: str, data: bytes) -> None:
        seen = self._arrays.setdefault(extension, set())
        try:
            dtype, shape = npy_type(data)
        except BadValue:
            return
        seen.add((dtype, shape))

    def _type(self, extension: str) -> str:
        kind = kind_of(extension)
        if kind == "int64" and extension not in self._integers:
            return "str"
        return _array_type(self._arrays[extension]) if kind == "array" else kind


def _array_type(seen: set[tuple[str, tuple[int, ...]]]) -> str:
    """Returns the type that holds arrays of these dtypes and shapes, `bytes` if there is none."""
    dtypes, shapes = {dtype for dtype, _ in seen}, {shape for _, shape in seen}
    if len(dtypes) != 1:
        return "bytes"
    dtype, shape = dtypes.pop(), next(iter(shapes))
    ragged = len(shapes) > 1 or 0 in shape[:1]
    if ragged and (() in shapes or len({shape[1:] for shape in shapes}) > 1):
        return "bytes"
    # A dimension of 1 in place of the ragged one: only the others can be refused.
    if not _is_type(_with_shape(dtype, (1, *shape[1:]) if ragged else shape)):
        return "bytes"
    return f"{dtype}[{','.join(['*', *map(str, shape[1:])])}]" if ragged else _with_shape(dtype, shape)


def _with_shape(dtype: str, shape: tuple[int, ...]) -> str:
    return f"{dtype}[{','.join(map(str, shape))}]" if shape else dtype


def _is_type(type_text: str) -> bool:
    try:
        parse_field("npy", type_text)
    except FormatError:
        return False
    return True
