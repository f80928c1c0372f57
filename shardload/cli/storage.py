"""The option of all commands that read a dataset which may be in an object store."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

_WORDS = {"true": True, "false": False, "null": None}


def storage_option(command: Command) -> Command:
    """Gives a command `storage_options`, which `open_dataset` takes."""
    return click.option(
        "--storage-option",
        "storage_options",
        multiple=True,
        metavar="KEY=VALUE",
        callback=_parsed,
        help="For a URL: an option of fsspec, such as endpoint_url=http://host:9000; repeatable. A VALUE may be true, false or "
        "JSON in braces. Leave keys and secrets to the environment.",
    )(command)


def _parsed(context: click.Context, option: click.Parameter, pairs: tuple[str, ...]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator or not key:
            # Not the text itself: it may be a secret.
            raise click.BadParameter("must be KEY=VALUE", context, option)
        found[key] = _value(key, value, context, option)
    return found


def _value(key: str, text: str, context: click.Context, option: click.Parameter) -> Any:
    if text in _WORDS:
        return _WORDS[text]
    if not text.startswith("{"):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise click.BadParameter(f"the value of {key} starts with a brace but is no JSON", context, option) from None
