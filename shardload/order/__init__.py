"""The order of samples as a pure function of (number of samples, seed, epoch, recipe, position)."""

from shardload.order.permutation import RECIPE, Permutation

__all__ = ["RECIPE", "Permutation"]
