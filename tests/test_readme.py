"""The README's snippets run as they stand, in their order, in one folder."""

from __future__ import annotations

import re
from pathlib import Path

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_python_snippets_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    snippets = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(snippets) >= 2
    names: dict = {"__name__": "__main__"}
    for snippet in snippets:
        exec(compile(snippet, "README.md", "exec"), names)
    assert "sample" in capsys.readouterr().out
    # The loader of the last snippet is a DataLoader with worker processes; it must hold an epoch.
    assert sorted(i for batch in names["loader"] for i in batch["label"].tolist()) == sorted(
        i % 10 for i in range(1000)
    )


def test_the_resume_of_the_first_snippet_goes_on_with_the_next_sample(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {"print": lambda *values: None}
    exec(re.search(r"```python\n(.*?)```", README, flags=re.DOTALL)[1], names)
    import shardload

    whole = shardload.ShardLoader(shardload.open("out/"), 1, shuffle=True)
    want = [batch["text"][0] for batch in whole]
    assert [text for batch in names["loader"] for text in batch["text"]] == want[64 : 64 + 936 // 32 * 32]
