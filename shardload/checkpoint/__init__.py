"""Checkpoints of a whole run: model, optimizer, random state and place in the data, on `torch.distributed.checkpoint`."""

from shardload.checkpoint.checkpointer import Checkpointer

__all__ = ["Checkpointer"]
