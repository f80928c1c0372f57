"""Which files of a folder are packed: include and exclude patterns, with the rules of a shell's `**` globs."""

from __future__ import annotations

import re
from collections.abc import Sequence


class Selection:
    """Selects files by path: those that an include pattern names and no exclude pattern does.

    A pattern without `/` is compared with the file's name, one with `/` with the whole path below the source; `*` and
    `?` stay within a name, `**` stands for any folders. As in a shell, none of them stands for a leading dot: a hidden
    file, or one in a hidden folder, is selected only by a pattern that writes the dot. An exclude pattern may also name
    a folder, and then leaves out all that is below it.
    """

    def __init__(self, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> None:
        """Compiles the patterns; without include patterns, every file that is not hidden is selected.

        Raises:
            ValueError: a pattern is empty or leaves the folder.
        """
        self._included = [_expression(pattern) for pattern in include or ("*",)]
        self._excluded = [_expression(pattern) for pattern in exclude]
        self.takes_all = not include and not exclude
        """Whether no pattern was given."""
        self.enters_hidden = any(part.startswith(".") for pattern in include for part in pattern.split("/"))
        """Whether files in hidden folders can be selected at all."""

    def selects(self, path: str) -> bool:
        """Tells whether a file is selected; the path is relative, with `/`."""
        return any(expression.fullmatch(path) for expression in self._included)

    def excludes(self, path: str) -> bool:
        """Tells whether a file or folder is left out by name; a folder takes along all that is below it."""
        return any(expression.fullmatch(path) for expression in self._excluded)


def is_hidden(path: str) -> bool:
    """Tells whether a file or one of its folders starts with a dot."""
    return path.startswith(".") or "/." in path


def _expression(pattern: str) -> re.Pattern[str]:
    parts = pattern.split("/")
    if not all(parts) or {".", ".."} & set(parts):
        raise ValueError(f"the pattern {pattern!r} must be relative to the source, such as *.py or images/**/*.png")
    if len(parts) == 1:
        parts = ["**", *parts]
    folders = ["(?:(?!\\.)[^/]+/)*" if part == "**" else _part(part) + "/" for part in parts[:-1]]
    last = "(?:(?!\\.)[^/]+/)*(?!\\.)[^/]+" if parts[-1] == "**" else _part(parts[-1])
    return re.compile("".join(folders) + last, re.DOTALL)


def _part(part: str) -> str:
    """Returns the expression of one name with `*`, `?` and `[...]`."""
    out, at = "" if part.startswith(".") else "(?!\\.)", 0
    while at < len(part):
        character = part[at]
        close = part.find("]", at + 2) if character == "[" else -1
        if close > 0:
            content = part[at + 1 : close].replace("\\", "\\\\").replace("[", "\\[")
            negated = content[0] in "!^"
            out += f"[{'^/' if negated else ''}{content[negated:].replace('^', chr(92) + '^')}]"
            at = close
        else:
            out += {"*": "[^/]*", "?": "[^/]"}.get(character) or re.escape(character)
        at += 1
    return out
