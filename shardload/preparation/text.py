"""Steps for texts and for whatever has a length."""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from shardload.errors import PackError
from shardload.preparation.steps import StepError, Values

LengthUnit = Literal["characters", "bytes", "tokens"]


@dataclass(frozen=True, slots=True)
class Normalize:
    """Brings a text to Unicode's normal form C, so that equal texts have equal bytes."""

    field: str
    label: str = dataclasses.field(default="", compare=False)

    @property
    def versions(self) -> Mapping[str, str]:
        """The version of Unicode's tables."""
        return {"unicode": unicodedata.unidata_version}

    def types(self, before: Mapping[str, str], location: str) -> dict[str, str] | None:
        """Returns the types that came.

        Raises:
            PackError: the field is no text.
        """
        check_type(self, self.field, before, location, ("str",))
        return dict(before)

    def __call__(self, values: Values) -> list[Values]:
        """Returns the sample with the text in normal form; a missing one stays missing."""
        text = values.get(self.field)
        if text is None:
            return [values]
        if not isinstance(text, str):
            raise StepError(f"{self.label}: field {self.field!r} is no text but {type(text).__name__}")
        return [{**values, self.field: unicodedata.normalize("NFC", text)}]


@dataclass(frozen=True, slots=True)
class LengthBounds:
    """Drops samples of which a field is too short or too long."""

    field: str
    minimum: int = 0
    maximum: int | None = None
    unit: LengthUnit | None = None
    """What is counted: None for what the value has, characters of a text, bytes of bytes, else items."""
    label: str = dataclasses.field(default="", compare=False)

    @property
    def versions(self) -> Mapping[str, str]:
        """Nothing decides its results but itself."""
        return {}

    def types(self, before: Mapping[str, str], location: str) -> dict[str, str] | None:
        """Returns the types that came.

        Raises:
            PackError: there is no such field, or it has no such length.
        """
        kinds: tuple[str, ...] = ("str", "bytes", "jpeg", "png", "audio", "video", "json")
        if self.unit == "characters":
            kinds = ("str",)
        elif self.unit == "bytes":
            kinds = kinds[:-1]
        elif self.unit == "tokens":
            kinds = ("json",)
        check_type(self, self.field, before, location, kinds, arrays=self.unit in (None, "tokens"))
        return dict(before)

    def __call__(self, values: Values) -> list[Values]:
        """Returns the sample, or nothing where its length is out of bounds; a missing value has the length 0."""
        length = self._length(values.get(self.field))
        return [values] if self.minimum <= length and (self.maximum is None or length <= self.maximum) else []

    def _length(self, value: Any) -> int:
        if value is None:
            return 0
        if isinstance(value, str):
            if self.unit == "tokens":
                raise self._mismatch(value)
            return len(value) if self.unit != "bytes" else len(value.encode("utf-8", "surrogatepass"))
        if self.unit == "characters" or (self.unit == ("tokens" if isinstance(value, bytes) else "bytes")):
            raise self._mismatch(value)
        try:
            return len(value)
        except TypeError:
            raise self._mismatch(value) from None

    def _mismatch(self, value: Any) -> StepError:
        what = f"no number of {self.unit}" if self.unit else "no length"
        return StepError(f"{self.label}: field {self.field!r} is a {type(value).__name__}, which has {what}")


def check_type(
    step: Normalize | LengthBounds | Any,
    name: str,
    before: Mapping[str, str],
    location: str,
    kinds: tuple[str, ...],
    arrays: bool = False,
) -> None:
    """Refuses a step for a field that is not there, or of a type that it cannot be done to."""
    if name not in before:
        raise PackError(f"{location}: {step.label}: there is no field {name!r}; its fields are {', '.join(before)}")
    text = before[name].rstrip("?")
    if text not in kinds and not (arrays and text.endswith("]")):
        raise PackError(f"{location}: {step.label}: field {name!r} is {before[name]}; it takes {', '.join(kinds)}")
