from __future__ import annotations

import pytest

from shardload.importers.patterns import Selection


@pytest.mark.parametrize(
    ("patterns", "selected", "others"),
    [
        ([], ["a.py", "d/e/b.txt", "noext"], [".hidden", "d/.hidden", ".git/config"]),
        (["*.py"], ["a.py", "d/e/b.py"], ["a.pyc", ".a.py", ".venv/a.py", "d/.x/a.py", "a.py/b"]),
        (["*.py", "*.txt"], ["a.py", "b/c.txt"], ["a.md"]),
        (["d/*.py"], ["d/a.py"], ["a.py", "d/e/a.py", "x/d/a.py"]),
        (["d/**"], ["d/a", "d/e/f/g"], ["a", "e/d/a", "d/.x", "d/.y/a"]),
        (["**/e/*.py"], ["e/a.py", "d/e/a.py", "c/d/e/a.py"], ["a.py", "d/a.py", "d/.e/a.py"]),
        ([".github/*.yml"], [".github/a.yml"], ["a.yml", ".github/b/a.yml"]),
        ([".*"], [".a", "d/.a"], ["a"]),
        (["a?.[ch]"], ["ab.c", "ab.h"], ["a.c", "abc.c", "ab.x", "a/.c"]),
        (["[!a]*.c"], ["b.c"], ["a.c", ".c"]),
        (["a+b(1).txt"], ["a+b(1).txt"], ["aab1.txt", "aab(1).txt"]),
        (["*.PY"], ["A.PY"], ["a.py"]),
        (["a[.txt"], ["a[.txt"], ["a.txt"]),
        (["[]^]x"], ["]x", "^x"], ["ax"]),
        (["*"], ["new\nline"], [".new\nline"]),
    ],
)
def test_what_a_pattern_selects(patterns: list[str], selected: list[str], others: list[str]) -> None:
    selection = Selection(patterns)
    assert [path for path in selected + others if selection.selects(path)] == selected


@pytest.mark.parametrize(
    ("patterns", "left_out", "others"),
    [
        (["tests"], ["tests", "a/tests"], ["tests.py", "a/tests.py"]),
        (["a/*.py"], ["a/b.py"], ["a/b/c.py", "b.py"]),
        (["**/old/*"], ["old/x", "a/old/x"], ["old", "x"]),
    ],
)
def test_what_a_pattern_leaves_out(patterns: list[str], left_out: list[str], others: list[str]) -> None:
    selection = Selection(exclude=patterns)
    assert [path for path in left_out + others if selection.excludes(path)] == left_out


@pytest.mark.parametrize("pattern", ["", "/etc/*", "../*", "a//b", "a/../b", "./a", "d/"])
def test_a_pattern_that_leaves_the_folder_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="must be relative to the source"):
        Selection([pattern])
