"""What turns text into token ids: a file of Hugging Face's tokenizers, or the bytes of UTF-8."""

from __future__ import annotations

import functools
import hashlib
import json
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from shardload.errors import PackError
from shardload.quantities import format_bytes

BYTES = "bytes"
"""The name of the tokenizer that needs no file."""
MAX_TEXT_BYTES = 64 << 20
"""Longest text that goes through a tokenizer file: the library takes some 130 bytes of memory for a byte of it."""

_MAX_FILE_BYTES = 1 << 30
_MAX_BYTES_ID = (1 << 16) - 1
_SHOWN_TOKENS = 6

Token = str | int
"""A token by its text or its id."""


class TextError(Exception):
    """A text cannot be made tokens; the text of the error is a predicate of it."""


class Tokenizer(Protocol):
    """Text to ids. Small enough to be sent to every process, and the same in all of them."""

    @property
    def identity(self) -> str:
        """What tells it from all others: `bytes`, or `sha256:` and the digest of its file."""
        ...

    @property
    def name(self) -> str:
        """What the user calls it."""
        ...

    @property
    def max_id(self) -> int:
        """The highest id that it gives."""
        ...

    @property
    def versions(self) -> Mapping[str, str]:
        """Versions of the packages that the ids depend on."""
        ...

    def id_of(self, token: Token) -> int:
        """Returns the id of a token.

        Raises:
            PackError: there is no such token.
        """
        ...

    def ids(self, text: str, encoded: bytes) -> NDArray[Any]:
        """Returns the ids of a text, given also as UTF-8: unsigned, of shape (tokens,).

        Raises:
            TextError: it cannot be done for this text.
        """
        ...


@dataclass(frozen=True, slots=True)
class ByteTokenizer:
    """Each byte of the UTF-8 is a token. Ids from 256 up are free for tokens between the documents."""

    identity: ClassVar[str] = BYTES
    name: ClassVar[str] = BYTES
    max_id: ClassVar[int] = 255
    versions: ClassVar[Mapping[str, str]] = {}

    def id_of(self, token: Token) -> int:
        """Returns a number as it is."""
        if isinstance(token, str):
            raise PackError(f"bytes have no token {token!r}: give a number, such as 256, which no byte is")
        if not 0 <= token <= _MAX_BYTES_ID:
            raise PackError(f"token {token} of the tokenizer 'bytes' must be 0 to {_MAX_BYTES_ID:,}")
        return token

    def ids(self, text: str, encoded: bytes) -> NDArray[Any]:
        """Returns the bytes."""
        return np.frombuffer(encoded, dtype=np.uint8)


@dataclass(frozen=True, slots=True)
class FileTokenizer:
    """A `tokenizer.json`. Truncation, padding and its template of special tokens are left out."""

    name: str
    """Path of the file."""
    definition: bytes
    """Its content: every process has the same, whatever becomes of the file."""

    @property
    def identity(self) -> str:
        """`sha256:` and the digest of the file."""
        return "sha256:" + hashlib.sha256(self.definition).hexdigest()

    @property
    def max_id(self) -> int:
        """The highest id of the vocabulary."""
        return int(max(self._loaded.get_vocab().values()))

    @property
    def versions(self) -> Mapping[str, str]:
        """The version of `tokenizers`."""
        return {"tokenizers": str(_package(self.name).__version__)}

    def id_of(self, token: Token) -> int:
        """Returns the id of a token of the vocabulary, which added and special tokens belong to."""
        if isinstance(token, str):
            number = self._loaded.token_to_id(token)
            if number is None:
                raise PackError(f"{self.name} has no token {token!r}{self._special_tokens()}")
            return int(number)
        if not 0 <= token <= self.max_id or self._loaded.id_to_token(token) is None:
            raise PackError(f"{self.name} has no token of id {token}: its highest is {self.max_id:,}")
        return token

    def ids(self, text: str, encoded: bytes) -> NDArray[Any]:
        """Returns what the library gives without special tokens around it."""
        if len(encoded) > MAX_TEXT_BYTES:
            raise TextError(
                f"has {format_bytes(len(encoded))} of text, and at most {format_bytes(MAX_TEXT_BYTES)} go through a "
                "tokenizer at once, for want of memory: cut it into several documents"
            )
        try:
            # One by one, in this thread: the library's own threads would outnumber the cores that packing takes.
            return np.array(self._loaded.encode(text, add_special_tokens=False).ids, dtype=np.uint32)
        except BaseException as error:
            # The library's errors have no class of their own, and those of its panics stands outside of all.
            if isinstance(error, Exception) or type(error).__name__ == "PanicException":
                raise TextError(f"cannot be tokenized with {self.name}: {error}") from None
            raise

    @property
    def _loaded(self) -> Any:
        return _load(self.definition, self.name)

    def _special_tokens(self) -> str:
        added = self._loaded.get_added_tokens_decoder()
        special = [added[number].content for number in sorted(added) if added[number].special]
        if not special:
            return ""
        rest = f" and {len(special) - _SHOWN_TOKENS} more" if len(special) > _SHOWN_TOKENS else ""
        return f"; its special tokens are {', '.join(map(repr, special[:_SHOWN_TOKENS]))}{rest}"


def open_tokenizer(name: str) -> Tokenizer:
    """Returns the tokenizer that a name stands for: `bytes`, or the path of a `tokenizer.json`.

    Raises:
        PackError: the file cannot be read, is no tokenizer or one that gives other ids each time, or the package that
            reads it is not installed.
    """
    if name == BYTES:
        return ByteTokenizer()
    try:
        facts = Path(name).stat()
        if not stat.S_ISREG(facts.st_mode):
            raise PackError(f"the tokenizer {name} is not a file: give its tokenizer.json, or bytes")
        if facts.st_size > _MAX_FILE_BYTES:
            raise PackError(f"the tokenizer {name} has {format_bytes(facts.st_size)}: that is no tokenizer.json")
        definition = Path(name).read_bytes()
    except FileNotFoundError:
        raise PackError(f"the tokenizer {name} does not exist: give the path of a tokenizer.json, or bytes") from None
    except OSError as error:
        raise PackError(f"the tokenizer {name} cannot be read: {error.strerror}") from None
    _check_definition(definition, name)
    tokenizer = FileTokenizer(name, definition)
    if not _load(definition, name).get_vocab():
        raise PackError(f"the tokenizer {name} has no tokens")
    return tokenizer


def _check_definition(definition: bytes, name: str) -> None:
    """Refuses what does not give the same ids each time."""
    try:
        model = json.loads(definition)["model"]
        random = [key for key in ("dropout", "alpha", "nbest_size") if model.get(key)]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise PackError(f"{name} is no tokenizer.json of Hugging Face's tokenizers") from None
    if random:
        raise PackError(
            f"{name} tokenizes at random ({random[0]} is {model[random[0]]!r:.20}), so that no pack could be repeated: set "
            f"{random[0]} to null in a copy of it"
        )


@functools.lru_cache(maxsize=2)
def _load(definition: bytes, name: str) -> Any:
    """Returns the library's tokenizer."""
    try:
        tokenizer = _package(name).Tokenizer.from_str(definition.decode())
    except PackError:
        raise
    except Exception as error:
        raise PackError(f"{name} is no tokenizer that this version of tokenizers reads: {error}") from None
    # A file may say that texts are cut at some length, which nobody means for a corpus.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _package(name: str) -> Any:
    try:
        import tokenizers
    except ImportError:
        raise PackError(
            f"{name} is read by the package tokenizers, which is not installed: pip install 'shardload[text]'"
        ) from None
    return tokenizers
