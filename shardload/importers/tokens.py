"""Any source of texts as a source of tokens: the text of each sample becomes a stream of ids."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardload.errors import PackError
from shardload.format.manifest import Metadata
from shardload.format.schema import Field, parse_field
from shardload.importers.base import Item, Outcome, Reject, Sample, Source, SourcePlan, Unit, UnitReader, read_from
from shardload.importers.tokenizer import BYTES, TextError, Token, Tokenizer, open_tokenizer

TOKEN_FIELD = "tokens"
"""What the field of the ids is called unless the user names it."""


@dataclass(frozen=True, slots=True)
class Tokenization:
    """How texts are to become tokens."""

    tokenizer: str
    """`bytes`, or path of a `tokenizer.json`."""
    append_token: Token | None = None
    """Token after each document, such as the end-of-text token."""
    prepend_token: Token | None = None
    """Token before each document."""
    text_key: str = ""
    """Name of the field that holds the text; nothing for what the source calls it."""


@dataclass(frozen=True, slots=True)
class TextEncoder:
    """A tokenizer, and what goes around each document. Picklable."""

    tokenizer: Tokenizer
    before: tuple[int, ...]
    after: tuple[int, ...]
    max_id: int
    """The highest id that can come."""

    def ids(self, text: str, dtype: np.dtype[Any]) -> NDArray[Any]:
        """Returns the tokens of a document: `dtype`, shape (tokens,).

        Raises:
            TextError: it cannot be made tokens.
        """
        try:
            encoded = text.encode()
        except UnicodeEncodeError as error:
            raise TextError(f"holds what UTF-8 cannot hold, at character {error.start}") from None
        found = self.tokenizer.ids(text, encoded)
        if found.size and int(found.max()) > self.max_id:
            raise TextError(
                f"was given the token {int(found.max())}, over {self.max_id}, the highest of its vocabulary"
            )
        ids = np.empty(len(self.before) + len(found) + len(self.after), dtype=dtype)
        ids[: len(self.before)] = self.before
        ids[len(self.before) : len(self.before) + len(found)] = found
        ids[len(ids) - len(self.after) :] = self.after
        return ids


class TokenSource:
    """A source whose texts are made tokens."""

    def __init__(self, inner: Source, text_key: str, wanted: Tokenization, token_field: str = TOKEN_FIELD) -> None:
        """Reads the tokenizer.

        Args:
            inner: the source of the texts.
            text_key: name of its field that holds them.
            wanted: how they are to become tokens.
            token_field: name of the field of the ids.

        Raises:
            PackError: the tokenizer cannot be read, or has not the tokens that are wanted.
        """
        self.location = inner.location
        self.skipped = inner.skipped
        self._inner = inner
        self._text_key = text_key
        self._field = token_field
        tokenizer = open_tokenizer(wanted.tokenizer)
        before, after = (
            () if token is None else (tokenizer.id_of(token),) for token in (wanted.prepend_token, wanted.append_token)
        )
        self._encoder = TextEncoder(tokenizer, before, after, max((tokenizer.max_id, *before, *after)))

    def plan(self, types: Mapping[str, str] | None, unit_size: int | None) -> SourcePlan:
        """Returns units and types; types given choose the fields that are kept beside the tokens.

        Raises:
            PackError: the source has no such texts, or the ids do not fit the type given for them.
        """
        plan = self._inner.plan(None if types is None else self._inner_types(types), unit_size)
        if types is None and plan.types.get(self._text_key, "").rstrip("?") != "str":
            raise self._no_text(plan.types)
        if types is None and self._field in plan.types and self._field != self._text_key:
            raise PackError(
                f"{self.location}: there is a field {self._field!r} in it already: name that of the tokens with "
                "--token-field (token_field=)"
            )
        keeps_text = types is not None and self._text_key in types and self._text_key != self._field
        planned = self._outer_types(plan.types, (types or {}).get(self._field), keeps_text)
        dtype = parse_field(self._field, planned[self._field]).dtype.str
        kept = frozenset(planned) - {self._field} if types is not None else None
        reader = TokenReader(plan.reader, self._encoder, self._text_key, self._field, dtype, kept)
        return replace(
            plan,
            reader=reader,
            types=planned,
            metadata={**plan.metadata, **self._facts()},
            options={**plan.options, **self._facts(), "text_key": self._text_key, "token_field": self._field},
            versions={**plan.versions, **self._encoder.tokenizer.versions},
            note=self._note(dtype),
            untokenized=replace(reader, blank=True),
            tokens=self._field,
        )

    def _inner_types(self, types: Mapping[str, str]) -> dict[str, str]:
        """Returns the types that the inner source is asked for, in the order of those given."""
        if self._field not in types:
            raise PackError(
                f"{self.location}: the schema names {', '.join(types)}, but no field {self._field!r} for the tokens: add it, "
                "or name it with --token-field (token_field=)"
            )
        self._check(parse_field(self._field, types[self._field]))
        return {
            self._text_key if name == self._field else name: "str" if name == self._field else text
            for name, text in types.items()
            if name == self._field or name != self._text_key
        }

    def _check(self, field: Field) -> None:
        if not field.ragged or field.shape or field.dtype.kind not in "iu" or field.kind in ("bool", "bfloat16"):
            raise PackError(
                f"{self.location}: field {field.name!r} takes tokens and cannot be {field.type}: give it {self._type()}"
            )
        if self._encoder.max_id > np.iinfo(field.dtype).max:
            raise PackError(
                f"{self.location}: field {field.name!r} cannot be {field.type}: the highest token is {self._encoder.max_id:,}"
            )

    def _type(self) -> str:
        """Returns the narrowest type that holds all ids."""
        if self._encoder.max_id < 1 << 8 and self._encoder.tokenizer.identity == BYTES:
            return "uint8[*]"
        return "uint16[*]" if self._encoder.max_id < 1 << 16 else "uint32[*]"

    def _outer_types(self, inner: Mapping[str, str], given: str | None, keeps_text: bool) -> dict[str, str]:
        types: dict[str, str] = {}
        for name, text in inner.items():
            if name == self._text_key:
                types[self._field] = given or self._type()
            if name != self._text_key or keeps_text:
                types[name] = text
        return types

    def _no_text(self, types: Mapping[str, str]) -> PackError:
        found = types.get(self._text_key)
        what = f"its field {self._text_key!r} is {found}, not text" if found else f"it has no field {self._text_key!r}"
        return PackError(
            f"{self.location}: {what}; its fields are {', '.join(f'{name}: {text}' for name, text in types.items())}: name "
            "that of the text with --text-key (text_key=)"
        )

    def _facts(self) -> Metadata:
        """Returns what stands in the manifest: with it an append of other tokens is refused."""
        encoder = self._encoder
        return {
            "append_token": encoder.after[0] if encoder.after else "none",
            "prepend_token": encoder.before[0] if encoder.before else "none",
            "tokenizer": encoder.tokenizer.identity,
            "vocabulary_size": encoder.max_id + 1,
        }

    def _note(self, dtype: str) -> str:
        encoder = self._encoder
        around = [
            f"token {ids[0]} {where} each document"
            for ids, where in ((encoder.before, "before"), (encoder.after, "after"))
            if ids
        ]
        return (
            f"{np.dtype(dtype).name} by {encoder.tokenizer.name}, ids below {encoder.max_id + 1:,}, "
            f"{' and '.join(around) or 'nothing between documents'}"
        )


@dataclass(frozen=True, slots=True)
class TokenReader:
    """Reads units of texts as tokens."""

    inner: UnitReader
    encoder: TextEncoder
    text_field: str
    token_field: str
    dtype: str
    kept: frozenset[str] | None
    """Fields that are kept beside the tokens; None for all but the text."""
    blank: bool = False
    """Whether the tokens are left out: for who needs the other fields only."""

    def read(self, unit: Unit) -> Generator[Item, None, None]:
        """Yields a sample with tokens for each sample with a text, or why it is none."""
        return self.read_from(unit, 0)

    def read_from(self, unit: Unit, first: int) -> Generator[Item, None, None]:
        """Yields the same from item number `first` on."""
        with contextlib.closing(read_from(self.inner, unit, first)) as items:
            for item in items:
                if isinstance(item, Sample):
                    yield self._tokenized(item)
                elif isinstance(item, Outcome):
                    yield Outcome(tuple(map(self._outcome_part, item.items)), item.num_bytes)
                else:
                    yield item

    def _outcome_part(self, item: Sample | Reject) -> Sample | Reject:
        return item if isinstance(item, Reject) else self._tokenized(item)

    def _tokenized(self, sample: Sample) -> Sample | Reject:
        text = sample.values.get(self.text_field)
        if not isinstance(text, str):
            found = "no" if text is None else f"a {type(text).__name__} for"
            return Reject(sample.place, f"has {found} text in field {self.text_field!r}", sample.num_bytes, " ")
        try:
            ids = np.empty(0, self.dtype) if self.blank else self.encoder.ids(text, np.dtype(self.dtype))
        except TextError as error:
            return Reject(sample.place, str(error), sample.num_bytes, " ")
        if self.kept is None:
            values = {name: value for name, value in sample.values.items() if name != self.text_field}
        else:
            values = {name: value for name, value in sample.values.items() if name in self.kept}
        values[self.token_field] = ids
        return Sample(values, sample.place, sample.num_bytes)
