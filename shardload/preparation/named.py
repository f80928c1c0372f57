"""Steps by name, as the command line writes them: `nfc:text`, `length:text,min=10,max=2000`, `map:pkg.module:function`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from shardload.preparation.functions import function_step
from shardload.preparation.images import EncodeImage, pillow
from shardload.preparation.steps import Step
from shardload.preparation.text import LengthBounds, Normalize

STEP_NAMES = ("nfc", "length", "image", "map", "filter")


def named_step(text: str) -> Step:
    """Returns a step from its text.

    | text | step |
    | --- | --- |
    | `nfc:FIELD` | the text in normal form C |
    | `length:FIELD,min=N,max=N,unit=characters` | only samples within the bounds; `bytes` or `tokens` as unit too |
    | `image:FIELD,format=jpeg,quality=N,shorter=N,longer=N` | the image encoded anew, scaled down to a side of N pixels |
    | `map:pkg.module:function`, `filter:pkg.module:function` | a function of the user |

    Raises:
        ValueError: there is no such step.
        ImportError: it needs a package that is not installed.
    """
    name, _, rest = text.partition(":")
    if name in ("map", "filter"):
        return function_step("map" if name == "map" else "filter", rest)
    field, *settings = rest.split(",")
    if name not in STEP_NAMES or not field:
        raise ValueError(
            f"a step is {', '.join(STEP_NAMES[:-1])} or {STEP_NAMES[-1]}, a colon and a field or function, such as nfc:text, "
            f"not {text!r}"
        )
    given = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or key in given:
            raise ValueError(f"step {text!r}: {setting!r} is no setting, such as max=2000, that is given once")
        given[key] = value
    step = _MAKERS[name](text, field, given)
    if given:
        raise ValueError(f"step {text!r}: {name} has no setting {next(iter(given))!r}")
    return step


def _normalize(text: str, field: str, given: dict[str, str]) -> Step:
    return Normalize(field, text)


def _length(text: str, field: str, given: dict[str, str]) -> Step:
    minimum, maximum = _number(text, given, "min", 0), _number(text, given, "max", 0)
    unit: Any = given.pop("unit", None)
    if unit not in (None, "characters", "bytes", "tokens"):
        raise ValueError(f"step {text!r}: unit must be characters, bytes or tokens, not {unit!r}")
    if minimum is None and maximum is None and not given:
        raise ValueError(f"step {text!r}: give min, max or both")
    if maximum is not None and maximum < (minimum or 0):
        raise ValueError(f"step {text!r}: max is below min")
    return LengthBounds(field, minimum or 0, maximum, unit, text)


def _image(text: str, field: str, given: dict[str, str]) -> Step:
    pillow()
    kind: Any = given.pop("format", "jpeg")
    if kind not in ("jpeg", "png"):
        raise ValueError(f"step {text!r}: format must be jpeg or png, not {kind!r}")
    quality = _number(text, given, "quality", 1) or 90
    if quality > 95:
        raise ValueError(f"step {text!r}: quality must be 1 to 95, not {quality}")
    shorter, longer = (_number(text, given, side, 1) for side in ("shorter", "longer"))
    return EncodeImage(field, kind, quality, shorter, longer, text)


_MAKERS: dict[str, Callable[[str, str, dict[str, str]], Step]] = {
    "nfc": _normalize,
    "length": _length,
    "image": _image,
}


def _number(text: str, given: dict[str, str], key: str, least: int) -> int | None:
    value = given.pop(key, None)
    if value is None:
        return None
    if not (value.isascii() and value.isdecimal()) or int(value) < least:
        raise ValueError(f"step {text!r}: {key} must be a whole number of at least {least}, not {value!r}")
    return int(value)
