"""Functions of the user as steps: named so that any process can import them, and told apart by their source."""

from __future__ import annotations

import functools
import hashlib
import importlib
import os
import platform
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from shardload.preparation.steps import StepError, Values

Function = str | Callable[..., Any]
"""A function, or its name as `pkg.module:function`."""
Kind = Literal["map", "filter"]

_MAX_MESSAGE_CHARACTERS = 500


@dataclass(frozen=True, slots=True)
class FunctionStep:
    """A function of the user: a map gives a sample, None or a list of samples; a filter says whether a sample stays."""

    kind: Kind
    name: str
    """`pkg.module:function`."""

    @property
    def label(self) -> str:
        """`map pkg.module:function`."""
        return f"{self.kind} {self.name}"

    @property
    def versions(self) -> Mapping[str, str]:
        """The version of Python."""
        return {"python": platform.python_version()}

    def types(self, before: Mapping[str, str], location: str) -> dict[str, str] | None:
        """Returns the types that came where it is a filter; those of a map show in its samples."""
        return dict(before) if self.kind == "filter" else None

    def __call__(self, values: Values) -> list[Values]:
        """Returns what the function makes of a sample.

        Raises:
            StepError: it raised, or gave what is none of these.
        """
        try:
            given = resolve(self.name)(values)
        # Also what is no Exception: a function that exits must not take the pack with it.
        except BaseException as error:
            raise StepError(f"{self.label} raised {_told(error)}") from None
        if self.kind == "filter":
            # numpy's truth values as well, without an import of numpy.
            if not isinstance(given, bool) and type(given).__name__ not in ("bool", "bool_"):
                raise StepError(f"{self.label} gave {_named(given)}; a filter gives True or False")
            return [values] if given else []
        if given is None:
            return []
        samples = given if isinstance(given, list) else [given]
        for one in samples:
            if not isinstance(one, dict):
                inside = "a list with " if isinstance(given, list) else ""
                raise StepError(
                    f"{self.label} gave {inside}{_named(one)}; a map gives a sample (a dict), None or a list of samples"
                )
            for name in one:
                if type(name) is not str:
                    raise StepError(f"{self.label} gave a sample with {_named(name)} as the name of a field")
        return samples


def function_step(kind: Kind, function: Function) -> FunctionStep:
    """Returns a function as a step.

    Args:
        kind: what it is.
        function: itself, or its name.

    Raises:
        ValueError: no other process could import it.
    """
    if isinstance(function, str):
        module, _, inside = function.partition(":")
        if not all(part.isidentifier() for part in (*module.split("."), *inside.split("."))):
            raise ValueError(f"{kind} must be named as pkg.module:function, not {function!r}")
        return FunctionStep(kind, function)
    module, inside = getattr(function, "__module__", None) or "", getattr(function, "__qualname__", "")
    if not callable(function) or not inside or "<" in inside or not module:
        raise ValueError(
            f"{kind}: other processes cannot import {function!r:.100}: give a function that stands at the top of a module"
        )
    if module == "__main__":
        raise ValueError(
            f"{kind}: other processes cannot import {inside} from a script that is run: put it into a module, and give "
            "that one's"
        )
    found = _lookup(sys.modules.get(module), inside)
    if found is not function:
        raise ValueError(f"{kind}: {module}:{inside} is not the function that was given, so that it cannot be imported")
    return FunctionStep(kind, f"{module}:{inside}")


@functools.cache
def resolve(name: str) -> Callable[[Values], Any]:
    """Imports a function.

    Raises:
        ImportError: it is not there, or is no function; names it.
    """
    module, _, inside = name.partition(":")
    try:
        found = _lookup(importlib.import_module(module), inside)
    except BaseException as error:
        raise ImportError(f"{module} cannot be imported: {_told(error)}") from None
    if found is None:
        raise ImportError(f"{module} has no {inside}")
    if not callable(found):
        raise ImportError(f"{name} is {_named(found)}, which cannot be called")
    return found  # type: ignore[no-any-return]


def source_digest(name: str) -> str:
    """Returns the SHA-256 of the file that holds a function's module; nothing where there is no file."""
    module = sys.modules.get(name.partition(":")[0])
    path = getattr(module, "__file__", None)
    try:
        with open(path or "", "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def _lookup(found: Any, inside: str) -> Any:
    for part in inside.split("."):
        found = getattr(found, part, None)
    return found


def _named(value: Any) -> str:
    kind = type(value)
    return "None" if value is None else f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")


def _told(error: BaseException) -> str:
    """Returns kind, message and place of an error."""
    try:
        text = " ".join(str(error).split())
    except Exception:
        text = "its message cannot be shown"
    machinery = ("<frozen", importlib.__file__ or "<frozen")
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(machinery)]
    # The first frame is the one here; without another it has failed before it began.
    where = f" ({os.path.basename(frames[-1].filename)} line {frames[-1].lineno})" if len(frames) > 1 else ""
    return type(error).__name__ + (f": {text[:_MAX_MESSAGE_CHARACTERS]}" if text else "") + where
