"""Locations and texts without what must not be shown: user names and passwords in URLs, query strings, storage options."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*(://|::)")
_PLAIN_OPTIONS = {
    "endpoint_url",
    "region_name",
    "profile",
    "project",
    "block_size",
    "signature_version",
    "addressing_style",
}
"""Options whose values are no secrets and help in messages; but what stands in them before an @ is one."""
_MIN_SECRET = 4
"""Shorter values would blot out half of any text."""
_HIDDEN = "***"


def is_url(location: str) -> bool:
    """Tells whether a location is a URL, such as `s3://bucket/data`, and not a path."""
    return _URL.match(location) is not None


def shown(url: str) -> str:
    """Returns a URL, or several chained by `::`, without user, password, query and fragment."""
    return "::".join(_shown(part) for part in url.split("::"))


def _shown(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url
    rest = re.split(r"[?#]", rest, maxsplit=1)[0]
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def secrets_of(url: str, options: Mapping[str, Any]) -> list[str]:
    """Returns the texts that must not be shown of a URL and its storage options, the longest first."""
    found = {secret for part in url.split("::") for secret in _in_url(part)} | set(_in_options(options))
    return sorted((text for text in found if len(text) >= _MIN_SECRET), key=len, reverse=True)


def redact(text: str, secrets: list[str]) -> str:
    """Returns a text with what must not be shown replaced."""
    for secret in secrets:
        text = text.replace(secret, _HIDDEN)
    return text


def _in_url(url: str) -> Iterator[str]:
    try:
        parts = urlsplit(url)
    except ValueError:
        return
    user, separator, _ = parts.netloc.rpartition("@")
    if separator:
        yield user
        for text in user.split(":", 1):
            yield text
            yield unquote(text)
    if parts.query:
        yield parts.query
        for _, value in parse_qsl(parts.query):
            yield value
        for pair in parts.query.split("&"):
            yield pair.partition("=")[2]


def _in_options(options: Any, name: str = "") -> Iterator[str]:
    if isinstance(options, Mapping):
        for key, value in options.items():
            yield from _in_options(value, str(key))
    elif isinstance(options, (list, tuple, set)):
        for value in options:
            yield from _in_options(value, name)
    elif isinstance(options, bytes):
        yield options.decode("utf-8", "replace")
    elif isinstance(options, str):
        if name in _PLAIN_OPTIONS:
            yield from _in_url(options)
        else:
            yield options
