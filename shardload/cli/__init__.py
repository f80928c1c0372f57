"""The command line: arguments in, text and an exit status out."""

from shardload.cli.main import main

__all__ = ["main"]
