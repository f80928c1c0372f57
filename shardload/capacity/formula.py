"""Formulas that are computed as they are printed, so that an explanation cannot differ from what it explains."""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Step:
    """One formula with its numbers."""

    name: str
    formula: str
    """Over the names of `inputs`: products, quotients, sums and ceil()."""
    inputs: Mapping[str, float]
    """Facts of the workload or earlier steps, in the order of the formula."""
    value: float
    unit: str
    sources: tuple[str, ...] = ()
    """Keys of `SOURCES`."""


class Sheet:
    """Known values by name, and the steps that led to more of them."""

    def __init__(self, values: Mapping[str, float]) -> None:
        self._values = dict(values)
        self._steps: list[Step] = []

    def knows(self, name: str) -> bool:
        """Tells whether a value is known."""
        return name in self._values

    def __getitem__(self, name: str) -> float:
        return self._values[name]

    def put(self, name: str, unit: str, formula: str, *sources: str) -> float:
        """Computes a formula over known values, notes it and returns its value, which is known from now on."""
        tree = ast.parse(formula, mode="eval").body
        names = [node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id != "ceil"]
        ordered = sorted(dict.fromkeys(names), key=formula.index)
        value = self._values[name] = _compute(tree, self._values)
        inputs = {known: self._values[known] for known in ordered}
        self._steps.append(Step(name, formula, inputs, value, unit, sources))
        return value

    def take_steps(self) -> tuple[Step, ...]:
        """Returns the steps since the last call."""
        steps, self._steps = tuple(self._steps), []
        return steps


def _compute(node: ast.expr, values: Mapping[str, float]) -> float:
    match node:
        case ast.Name(id=name):
            return values[name]
        case ast.Constant(value=int() | float() as number):
            return number
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            return _compute(left, values) * _compute(right, values)
        case ast.BinOp(left=left, op=ast.Div(), right=right):
            return _compute(left, values) / _compute(right, values)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _compute(left, values) + _compute(right, values)
        case ast.Call(func=ast.Name(id="ceil"), args=[argument]):
            return math.ceil(_compute(argument, values))
    raise ValueError(f"{ast.unparse(node)} is no formula")
