"""The snippets of the README and of the guides that it leads to run as they stand, in their order, in one folder."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from launch import launch

import shardload

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
GUIDES = {path.parent.name: path.read_text() for path in sorted(ROOT.glob("shardload/*/README.md"))}


def snippets_of(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


def test_python_snippets_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pages = [README, *(text for name, text in GUIDES.items() if name != "integrations")]
    snippets = [snippet for page in pages for snippet in snippets_of(page)]
    assert len(snippets) >= 8
    names: dict = {"__name__": "__main__"}
    for snippet in snippets:
        exec(compile(snippet, "README.md", "exec"), names)
    assert "sample" in capsys.readouterr().out
    # The loader of the last snippet that has one is a DataLoader with worker processes; it must hold an epoch.
    assert sorted(i for batch in names["loader"] for i in batch["label"].tolist()) == sorted(
        i % 10 for i in range(1000)
    )


def test_the_resume_of_the_first_snippet_goes_on_with_the_next_sample(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {"print": lambda *values: None}
    exec(re.search(r"```python\n(.*?)```", README, flags=re.DOTALL)[1], names)
    whole = shardload.ShardLoader(shardload.open("out/"), 1, shuffle=True)
    want = [batch["text"][0] for batch in whole]
    assert [text for batch in names["loader"] for text in batch["text"]] == want[64 : 64 + 936 // 32 * 32]


def run_recipes(folder, recipes, ranks):
    """Runs recipes as one script under torchrun, the dataset there before."""
    with shardload.ShardWriter(folder / "out", schema={"text": "str", "label": "int64"}) as writer:
        for i in range(1000):
            writer.write({"text": f"sample {i}", "label": i % 10})
    opening = ['import shardload\n\ndataset = shardload.open("out/")\n']
    (folder / "script.py").write_text("\n".join(opening + recipes))
    launch(folder / "script.py", ranks=ranks, torchrun=True, cwd=folder)


def test_recipes_for_frameworks_run_as_they_stand(tmp_path):
    recipes = snippets_of(GUIDES["integrations"])
    assert len(recipes) == 6
    check = """
second = sorted(batch["label"].tolist() for batch in iterator)
again = StatefulDataLoader(dataset, batch_sampler=shardload.ShardSampler(dataset).batch_sampler(32),
                           collate_fn=shardload.collate, num_workers=2)
again.load_state_dict(state)
assert sorted(batch["label"].tolist() for batch in again) == second and len(second) == 31
assert trainer.state.global_step == 3 * 8, trainer.state.global_step
assert "shardload" in torch.load("accelerate/custom_checkpoint_0.pkl")
"""
    run_recipes(tmp_path, [*recipes, check], ranks=1)


@pytest.mark.slow
def test_recipes_for_torchrun_run_on_two_ranks(tmp_path):
    recipes = snippets_of(GUIDES["integrations"])[:2]
    run_recipes(tmp_path, [*recipes, "assert loader.num_replicas == 2 and loader.remaining == 14\n"], ranks=2)


def titles_of(text: str) -> set[str]:
    """Returns the names by which a page's titles are found."""
    titles = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_links_lead_somewhere():
    pages = [ROOT / "README.md", ROOT / "bench/README.md", *ROOT.glob("shardload/*/README.md")]
    links = [(page, link) for page in pages for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text())]
    assert len(links) > 30
    for page, link in links:
        name, _, title = link.partition("#")
        if "://" in link:
            continue
        target = (page.parent / name).resolve() if name else page
        assert target.is_file(), f"{page}: {link}"
        assert not title or title in titles_of(target.read_text()), f"{page}: {link}"
