"""The house: imports point down, rooms on one line never import each other, files and functions stay small."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "shardload"

LAYERS = [
    {"__main__"},
    {"cli"},
    {"packing", "inference", "integrations"},
    {"checkpoint"},
    {"loader", "importers", "exporters", "preparation"},
    {"writer", "reader"},
    {"planner", "capacity", "run_log"},
    {"format", "codecs", "storage", "order", "memory"},
    {"telemetry", "quantities", "version"},
    {"errors"},
]
"""From top to bottom. `planner` stands below reader and writer, which carry its plans out."""

# Who may import these; everything else must stay loadable without them.
HEAVY = {
    "torch": ("checkpoint", "integrations", "loader", "memory"),
    "fsspec": ("storage",),
    "aiohttp": ("storage",),
    "awscrt": ("format",),
    "aiobotocore": ("storage",),
    "botocore": ("storage",),
    "s3fs": ("storage",),
    "zstandard": ("codecs", "importers"),
    "webdataset": ("importers",),
    "PIL": ("codecs", "preparation"),
    "click": ("cli", "packing"),
    "rich": ("cli", "packing"),
    "lightning": ("integrations",),
    "accelerate": ("integrations",),
    "transformers": ("integrations",),
    "matplotlib": ("capacity", "cli"),
    "tokenizers": ("importers",),
    "pyarrow": ("importers", "exporters"),
    "datasets": ("importers",),
}

FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@functools.cache
def nodes_of(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text())))


@functools.cache
def imports_of(path: Path) -> set[str]:
    """Returns the full names of the modules a file imports anywhere, also inside functions."""
    names = set()
    for node in nodes_of(path):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names.add(node.module or "")
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def layer_of(room: str) -> int:
    return next(i for i, rooms in enumerate(LAYERS) if room in rooms)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path):
    room = room_of(path)
    if room == "__init__":
        return
    for name in imports_of(path):
        if not name.startswith("shardload."):
            continue
        other = name.split(".")[1]
        if other != room and any(other in rooms for rooms in LAYERS):
            assert layer_of(other) > layer_of(room), f"{path.relative_to(PACKAGE)} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_heavy_packages_stay_in_their_rooms(path):
    for name in imports_of(path):
        allowed = HEAVY.get(name.partition(".")[0])
        assert allowed is None or room_of(path) in allowed, f"{path.relative_to(PACKAGE)} imports {name}"


def test_every_room_has_a_layer():
    rooms = {room_of(path) for path in FILES} - {"__init__"}
    assert rooms == {room for layer in LAYERS for room in layer}


def test_no_import_cycle():
    modules = {str(path.relative_to(PACKAGE.parent).with_suffix("")).replace("/", "."): path for path in FILES}
    modules = {name.removesuffix(".__init__"): path for name, path in modules.items()}
    graph = {name: {i for i in imports_of(path) if i in modules and i != name} for name, path in modules.items()}
    # A package's __init__ that gathers names, and its parts that import each other, are no cycle unless a part imports
    # the package itself.
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, f"import cycle: {' -> '.join((*trail[trail.index(name) :], name))}"
        if name not in done:
            for other in graph[name]:
                visit(other, (*trail, name))
            done.add(name)

    graph.pop("shardload")
    graph = {name: others - {"shardload"} for name, others in graph.items()}
    for name in graph:
        visit(name, ())


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_sizes(path):
    assert len(path.read_text().splitlines()) <= 400
    assert path.stem not in {"util", "utils", "helper", "helpers", "common", "misc", "manager"}
    # ShardSampler has all arguments of torch's DistributedSampler, and the same sources of ranks as the loader.
    long_ones = {"ShardLoader", "ShardSampler", "ShardWriter"}
    for node in nodes_of(path):
        if isinstance(node, ast.FunctionDef):
            documentation = ast.get_docstring(node, clean=False) or ""
            size = (node.end_lineno or 0) - node.lineno + 1 - documentation.count("\n")
            # An argument a line is no code: of constructors with many only what they do is counted.
            size -= max(0, len(node.args.kwonlyargs) - 8)
            assert size <= 50, f"{path.name}: {node.name} has {size} lines"
        if isinstance(node, ast.ClassDef) and node.name not in long_ones:
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and method.name == "__init__":
                    arguments = method.args.args[1:] + method.args.kwonlyargs
                    assert len(arguments) <= 8, f"{path.name}: {node.name} takes {len(arguments)} arguments"
