"""A picture of measured lines: a bar each, with its limit and its middle half, readable on light and dark pages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

TEXT, GRID, GOOD, SHORT = "#7d8590", "#7d859055", "#2f9e5f", "#d9822b"
"""Middle tones, which stand out from white and from black alike."""
ROW_INCHES, WIDTH_INCHES = 0.27, 9.0

Lines = list[dict[str, Any]]


def load_pyplot() -> Any:
    """Returns matplotlib's pyplot.

    Raises:
        SystemExit: it is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        raise SystemExit("--plot needs matplotlib: pip install 'shardload[bench]'") from None
    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "shardload", "font.size": 9})
    from matplotlib import pyplot

    return pyplot


def panels(lines: Lines) -> dict[str, Lines]:
    """Returns the lines that have a limit, by what a longer bar means."""
    found: dict[str, Lines] = {
        "ratios that should reach their mark (longer is better)": [],
        "ratios that should stay below their mark (shorter is better)": [],
        "figures as a part of their limit (shorter is better)": [],
    }
    more, less, alone = found.values()
    for line in lines:
        if line.get("at_least", line.get("at_most")) is None:
            continue
        kind = alone if line["figure"] != "ratio" else more if line["limit"] == "at least" else less
        kind.append(line)
    return {title: chosen for title, chosen in found.items() if chosen}


def draw(lines: Lines, facts: dict[str, Any], path: Path) -> None:
    """Draws lines as `python -m bench --json` gives them.

    Args:
        lines: the lines; those without a limit are left out.
        facts: versions and repeats, for the caption.
        path: the file, .svg, .png or .pdf.

    Raises:
        SystemExit: there is no matplotlib, or nothing to draw.
    """
    pyplot, parts = load_pyplot(), panels(lines)
    if not parts:
        raise SystemExit("none of these cases has a limit: there is nothing to draw")
    heights = [len(chosen) + 2.2 for chosen in parts.values()]
    figure, axes = pyplot.subplots(
        len(parts), 1, figsize=(WIDTH_INCHES, ROW_INCHES * sum(heights) + 0.5), height_ratios=heights, squeeze=False
    )
    for axis, (title, chosen) in zip(axes[:, 0], parts.items(), strict=True):
        panel(axis, title, chosen)
    caption = ", ".join(f"{name} {value}" for name, value in facts.items())
    caption += "; thick mark: limit, orange: missed, thin line: middle half of the repeats, pale: no claim"
    figure.text(0.01, 0.005, caption, color=TEXT, fontsize=7)
    figure.tight_layout(rect=(0, 0.02, 1, 1))
    # Without a date the same figures give the same file.
    figure.savefig(path, transparent=True, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)


def panel(axis: Any, title: str, lines: Lines) -> None:
    """Draws lines of one kind."""
    alone, ends = lines[0]["figure"] != "ratio", []
    for row, line in enumerate(lines):
        limit = float(line.get("at_least", line.get("at_most")))
        unit = limit if alone else 1.0
        value, (low, high), mark = line["value"] / unit, (end / unit for end in line["middle_half"]), limit / unit
        met = value >= mark if line["limit"] == "at least" else value <= mark
        color = GOOD if met else SHORT
        axis.barh(row, value, height=0.62, color=color, alpha=0.9 if line["claim"] else 0.35)
        axis.plot([low, high], [row, row], color=TEXT, linewidth=1.4, solid_capstyle="butt")
        axis.plot([mark, mark], [row - 0.42, row + 0.42], color=TEXT, linewidth=2.2)
        shown = f"{line['value']:.2f}" + ("" if not alone else f" {line['figure']}")
        words = f"{shown}  ({line['limit']} {limit:g})" + ("" if line["claim"] else "  no claim")
        ends += [value, mark]
        axis.annotate(
            words, (max(value, high, mark), row), xytext=(6, 0), textcoords="offset points", va="center", color=TEXT
        )
    axis.set_yticks(range(len(lines)), [f"{line['case']}  {line['line']}" for line in lines])
    axis.invert_yaxis()
    axis.set_xscale("log")
    axis.set_xlim(min(0.5, *ends) / 2, max(2.0, *ends) * 6)
    axis.xaxis.set_major_formatter("{x:g}")
    axis.set_title(title, loc="left", color=TEXT, fontsize=9, fontweight="bold")
    axis.tick_params(colors=TEXT, which="both", length=0)
    axis.grid(axis="x", color=GRID, linewidth=0.6)
    axis.set_axisbelow(True)
    for side in axis.spines.values():
        side.set_visible(False)
