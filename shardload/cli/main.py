"""The `shardload` command: its parts, and what becomes of errors and signals.

Exit status: 0 if everything asked for is on disk and checked, 1 if something failed or is damaged, 2 for wrong usage,
130, 143 and 129 if ended by Ctrl-C, a termination or a hang-up, 141 if standard output was closed.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import TextIO

import click

from shardload.cli.export import export
from shardload.cli.head import head
from shardload.cli.index import index
from shardload.cli.info import info
from shardload.cli.locate import locate
from shardload.cli.maintain import prune, rebuild_index
from shardload.cli.pack import pack
from shardload.cli.plan import plan
from shardload.cli.shuffle_report import shuffle_report
from shardload.cli.text import one_line
from shardload.cli.verify import verify
from shardload.errors import ShardloadError
from shardload.version import VERSION

_CLOSED_OUTPUT = 128 + signal.SIGPIPE
_ENDING_SIGNALS = {signal.SIGTERM: "terminated", signal.SIGHUP: "ended by a hang-up"}


class _InOrder(click.Group):
    """Lists the commands as they were added: as they are needed, not by the alphabet."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=_InOrder, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(VERSION, prog_name="shardload", message="%(prog)s %(version)s")
def shardload() -> None:
    """Pack a corpus into shards that are read in true random order, and look after the result."""


for command in (pack, index, info, head, verify, export, locate, shuffle_report, plan, rebuild_index, prune):
    shardload.add_command(command)


class _EndedError(BaseException):
    """A signal asked this process to end; not an `Exception`, so that nothing on the way takes it for a failure."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = signal.Signals(number)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status.

    Args:
        arguments: the words after the command's name; None for those of this process.
    """
    for stream in (sys.stdout, sys.stderr):
        # What cannot be written in the terminal's encoding is escaped rather than an error.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    with _signals_raised():
        try:
            status = _run(sys.argv[1:] if arguments is None else arguments)
            if sys.stdout is not None:
                sys.stdout.flush()
            return status
        except KeyboardInterrupt as ended:
            return _say(_noted("interrupted", ended), 128 + signal.SIGINT)
        except _EndedError as ended:
            return _say(_noted(_ENDING_SIGNALS[ended.number], ended), 128 + ended.number)
        except BrokenPipeError:
            _discard(sys.stdout)
            return _CLOSED_OUTPUT
        except click.UsageError as error:
            command = error.ctx.command_path if error.ctx is not None else "shardload"
            return _say(f"error: {error.format_message()} (see {command} --help)", 2)
        except (ShardloadError, OSError, ValueError) as error:
            _discard(sys.stdout)
            return _say(f"error: {_sentence(error)}", 1)
        except MemoryError:
            return _say("error: there is not enough memory", 1)
        finally:
            # Messages that nobody reads any more must not change the exit status.
            try:
                if sys.stderr is not None:
                    sys.stderr.flush()
            except OSError:
                _discard(sys.stderr)


def _run(arguments: Sequence[str]) -> int:
    """Runs a command, without click's own treatment of errors: it prints several lines and hides what was wrong."""
    try:
        with shardload.make_context("shardload", list(arguments)) as context:
            return int(shardload.invoke(context) or 0)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return 2
    except click.exceptions.Exit as error:
        return error.exit_code


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and not isinstance(error, ShardloadError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def _noted(text: str, error: BaseException) -> str:
    """Returns a text with what was noted on the way about what is left behind."""
    return "; ".join([text, *getattr(error, "__notes__", ())])


def _say(text: str, status: int) -> int:
    """Writes one line to standard error and returns the status."""
    with contextlib.suppress(OSError):
        click.echo(f"shardload: {one_line(text)}", err=True)
    return status


def _discard(stream: TextIO) -> None:
    """Lets what is left in a stream's buffer go nowhere: Python would try to write it at the end, and fail."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


@contextlib.contextmanager
def _signals_raised() -> Iterator[None]:
    """Turns the signals that end a process into exceptions, so that what was begun is removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        raise _EndedError(number)

    before = {number: signal.getsignal(number) for number in _ENDING_SIGNALS}
    for number, handler in before.items():
        # One that is ignored stays ignored: nohup means it.
        if handler is not signal.SIG_IGN:
            signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
