"""Rehearses the worst: trains under torchrun, kills ranks and whole runs without warning, and checks what each rank was given.

    tools/demo                                  # does the set-up
    .venv/bin/python tools/rehearse.py images   # about a minute, as the others
    .venv/bin/python tools/rehearse.py text
    .venv/bin/python tools/rehearse.py inference

Everything it writes goes to demo-data/.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np

import shardload
from shardload.order.mixture import seed_of

HERE = Path(__file__).resolve().parent
CONTEXT = 64


class Run:
    """A script under torchrun, whose ranks are started anew where one of them dies."""

    def __init__(self, ranks: int, script: str, *words: object) -> None:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--max-restarts", "3"]
        command = [*launcher, "--nproc-per-node", str(ranks), str(HERE / script), *map(str, words)]
        print("$ torchrun --standalone --nproc-per-node", ranks, script, *words, flush=True)
        # What torchrun has to say of ranks that were killed is not to be read as a failure of the rehearsal.
        # It goes to a file, since a pipe that nobody reads would fill up and hold the ranks.
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        # In the store that torchrun shares with its ranks those that it starts anew find the addresses of the ones before them,
        # https://github.com/pytorch/pytorch/issues/135712, and may wait for these until their time is over.
        environment = os.environ | {"OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=self._errors, text=True, env=environment
        )

    def lines(self) -> Iterator[str]:
        """Yields what it prints, and prints it."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            print(line, end="", flush=True)
            yield line

    def ranks(self) -> list[int]:
        """Returns the processes of its ranks, the first rank first."""
        return sorted(_children(self._process.pid))

    def kill_rank(self) -> None:
        """Kills its last rank: torchrun ends the others, and starts all of them again."""
        print("  -- kill -9 of one rank", flush=True)
        _kill(self.ranks()[-1])

    def kill(self) -> None:
        """Kills everything."""
        print("  -- kill -9 of everything", flush=True)
        for process in [self._process.pid, *self.ranks()]:
            _kill(process)
        self._process.communicate(timeout=60)

    def finish(self) -> None:
        """Waits for its end, which must be a good one."""
        for _ in self.lines():
            pass
        if self._process.wait(timeout=60):
            self._errors.seek(0)
            raise SystemExit(self._errors.read()[-4000:] + f"\nthe run ended with status {self._process.returncode}")


def _children(process: int) -> Iterator[int]:
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) == process:
                yield int(pid)


def _kill(process: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


def steps_of(line: str) -> int:
    """Returns the step that a line of a training script tells of, 0 of any other."""
    words = line.split()
    return int(words[1]) if words[:1] == ["step"] else 0


def recorded(folder: Path) -> list[dict[str, Any]]:
    """Returns what the ranks of all runs recorded; of a rank that was killed the last line may be torn."""
    lines = []
    for path in sorted(folder.glob("*.jsonl")):
        lines += [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    return lines


def wait_for_step(folder: Path, step: int) -> None:
    """Waits, for a minute at most, until some rank has done a step."""
    stop = time.monotonic() + 60
    while not any(line["step"] >= step for line in recorded(folder)):
        if time.monotonic() > stop:
            raise SystemExit(f"step {step} was not done within a minute")
        time.sleep(0.02)


def train_and_kill(run: Run, record: Path, step: int, every: int, kill_rank: bool = False) -> None:
    """Kills a run after the checkpoint of a step and before the next one; one of its ranks, if asked for, after its first one."""
    try:
        for line in run.lines():
            if kill_rank and steps_of(line) >= every:
                kill_rank = False
                run.kill_rank()
            elif steps_of(line) >= step:
                wait_for_step(record, steps_of(line) + max(1, every // 2))
                break
    finally:
        run.kill()


def check_record(folder: Path, order: Callable[[int, np.ndarray], np.ndarray], batch_size: int, steps: int) -> None:
    """Compares what the ranks of all runs recorded with the order, and says what was found.

    Args:
        folder: the records: a line a rank and step, with the step, the ranks of the run, the rank and its sample ids.
        order: (step, slots of its global batch) -> the sample ids there.
        batch_size: samples of a global batch.
        steps: steps of the run.
    """
    lines = recorded(folder)
    ranks_of: dict[int, dict[int, set[int]]] = {}
    for line in lines:
        slots = np.arange(line["rank"], batch_size // line["ranks"] * line["ranks"], line["ranks"])
        if line["ids"] != order(line["step"], slots).tolist():
            raise SystemExit(f"rank {line['rank']} of {line['ranks']} was not given the samples of step {line['step']}")
        ranks_of.setdefault(line["step"], {}).setdefault(line["ranks"], set()).add(line["rank"])
    for step in range(1, steps + 1):
        if not any(len(found) == ranks for ranks, found in ranks_of.get(step, {}).items()):
            raise SystemExit(f"step {step} was not done by all ranks of any run: {ranks_of.get(step)}")
    again = len(lines) - sum(map(max, ranks_of.values()))
    print(
        f"  {steps} steps on 2, 1 and 3 ranks: every rank was given exactly the samples that the order says, at every step\n"
        f"  ({again} batches after the last checkpoints were done again, on the same samples)"
    )


def images(folder: Path, steps: int, number: int, letters: str) -> None:
    """An image classifier: on two ranks of which one is killed, then all; on one, killed; and on three."""
    corpus, dataset, record = (folder / name for name in ("letters", "letters-packed", "letters-record"))
    if not dataset.exists():
        run_script("draw_letters.py", corpus, "--number", number, "--letters", letters)
        shardload.pack(corpus, dataset)
    clear(record, folder / "letters-checkpoints")
    # A multiple of all numbers of ranks: then the batches of all runs are the same, and so are the steps.
    batch_size, source, every = 48, shardload.open(dataset), max(1, steps // 12)
    words = ["train_images.py", dataset, "--checkpoints", folder / "letters-checkpoints", "--record", record]
    words += ["--batch-size", batch_size, "--steps", steps, "--every", every]
    train_and_kill(Run(2, *words), record, steps // 3, every, kill_rank=True)
    train_and_kill(Run(1, *words), record, steps * 2 // 3, every)
    Run(3, *words).finish()
    per_epoch = len(source) // batch_size

    def order(step: int, slots: np.ndarray) -> np.ndarray:
        epoch, batch = divmod(step - 1, per_epoch)
        return source.orders(True).order(epoch, seed=1)(batch * batch_size + slots)

    check_record(record, order, batch_size, steps)


def text(folder: Path, steps: int) -> None:
    """A language model on two corpora in shares of 3 to 1: on two ranks, killed; on one; and on two in shares of 1 to 1."""
    code, prose = text_corpora(folder)
    record, checkpoints = folder / "text-record", folder / "text-checkpoints"
    clear(record, checkpoints)
    batch_size, every = 48, max(1, steps // 12)
    options = ["--checkpoints", checkpoints, "--record", record, "--batch-size", batch_size, "--every", every]
    words, other = (["train_text.py", f"code={code}:{share}", f"prose={prose}:1", *options] for share in (3, 1))
    change = steps * 2 // 3
    train_and_kill(Run(2, *words, "--steps", change), record, steps // 3, every)
    Run(1, *words, "--steps", change).finish()
    train_and_kill(Run(2, *other, "--steps", steps, "--reweigh"), record, (change + steps) // 2, every)
    # The checkpoint has the new shares: nothing more needs to be said.
    Run(3, *other, "--steps", steps).finish()
    check_blend(record, code, prose, batch_size, change, steps)


def text_corpora(folder: Path) -> tuple[Path, Path]:
    """Returns the sources of Python's own library, and the articles of its help, as bytes; packed if they are not yet."""
    code, prose = folder / "text-code", folder / "text-prose"
    if not code.exists():
        stdlib = Path(sysconfig.get_paths()["stdlib"])
        shardload.pack(stdlib, code, include=["*.py"], exclude=["site-packages", "test"], tokenizer="bytes")
    if not prose.exists():
        (folder / "prose").mkdir(exist_ok=True)
        for name, article in topics.items():
            (folder / "prose" / f"{name}.txt").write_text(article)
        shardload.pack(folder / "prose", prose, tokenizer="bytes")
    return code, prose


def check_blend(record: Path, code: Path, prose: Path, batch_size: int, change: int, steps: int) -> None:
    """Compares what was recorded with the windows of both corpora in their own orders, and counts them up to each change."""
    sources = [shardload.TokenWindows(shardload.open(path), "tokens", CONTEXT, phase="epoch") for path in (code, prose)]
    mixture, orders = (
        shardload.Mixture({"code": (sources[0], 3), "prose": (sources[1], 1)}),
        [source.orders(True) for source in sources],
    )
    seeds = [seed_of(1, name) for name in ("code", "prose")]
    ids: dict[int, dict[int, int]] = {}
    for line in recorded(record):
        for slot, sample_id in zip(range(line["rank"], batch_size, line["ranks"]), line["ids"], strict=True):
            # Steps after the last checkpoint were done again: they must be the same windows.
            if ids.setdefault(line["step"], {}).setdefault(slot, sample_id) != sample_id:
                raise SystemExit(f"step {line['step']} was given another window at slot {slot} the second time")
    counts = [0, 0]
    for position in range(steps * batch_size):
        step, slot = divmod(position, batch_size)
        name, sample_id = mixture.locate(ids[step + 1][slot])
        number = mixture.names.index(name)
        pass_, place = divmod(counts[number], len(sources[number]))
        if orders[number].order(pass_, seeds[number])(np.array([place]))[0] != sample_id:
            raise SystemExit(f"step {step + 1} was not given the next window of its corpus at slot {slot}")
        counts[number] += 1
        done = position + 1
        if done <= change * batch_size and abs(counts[0] - done * 3 / 4) > 1:
            raise SystemExit(f"{counts} of the first {done} windows are not 3 to 1")
    later = (steps - change) * batch_size
    print(
        f"  {steps} steps on 2, 1, 2 and 3 ranks: every window is the next one of its corpus; 3 to 1 to within one window at each\n"
        f"  of the first {change * batch_size}, and of {later} after the change {counts[0] - change * batch_size * 3 // 4} of code"
    )


def inference(folder: Path, limit: int) -> None:
    """Scores of all documents: on two ranks that are killed, on one that is killed, and on two again; joined and compared."""
    corpus, scores, whole = (folder / name for name in ("scored", "scores", "scores-at-once"))
    if not corpus.exists():
        documents = shardload.open(text_corpora(folder)[0])
        with shardload.ShardWriter(corpus, {"tokens": "uint8[*]"}, shard_size="2MiB") as writer:
            for document in documents[:limit]:
                writer.write({"tokens": document["tokens"]})
    for path in (scores, whole):
        shutil.rmtree(path, ignore_errors=True)
    limit = len(shardload.open(corpus))
    for ranks, part in ((2, 6), (1, 4)):
        run = Run(ranks, "score_text.py", corpus, scores)
        for line in run.lines():
            if steps_of(line) >= limit // ranks // part:
                break
        run.kill()
        if (scores / "manifest.json").exists():
            raise SystemExit("there are scores before the last one was made")
    Run(2, "score_text.py", corpus, scores).finish()
    Run(1, "score_text.py", corpus, whole).finish()
    found, once = shardload.open(scores), shardload.open(whole)
    if found.metadata["input_fingerprint"] != shardload.open(corpus).fingerprint or len(found) != limit:
        raise SystemExit(f"{len(found)} scores of {limit} documents, of {found.metadata['input_fingerprint']}")
    if not np.array_equal(found.column("score"), once.column("score")):
        raise SystemExit("a document has another score than in a run that nobody killed")
    joined = sorted(zip(found.column("score").tolist(), range(limit), strict=True))
    print(
        f"  {limit} scores, each document's once, those of an undisturbed run; the oddest is document {joined[-1][1]}"
    )


def run_script(script: str, *words: object) -> None:
    """Runs a script of this folder to its end, which must be a good one."""
    subprocess.run([sys.executable, str(HERE / script), *map(str, words)], check=True)


def clear(*folders: Path) -> None:
    """Makes the first folder anew, and removes the others."""
    for path in folders:
        shutil.rmtree(path, ignore_errors=True)
    folders[0].mkdir()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("images", "text", "inference"))
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--number", type=int, default=2600, help="samples of the corpus")
    parser.add_argument("--letters", default="ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    parser.add_argument("--folder", type=Path, default=HERE.parent / "demo-data")
    options = parser.parse_args()
    options.folder.mkdir(exist_ok=True)
    start = time.perf_counter()
    if options.what == "images":
        images(options.folder, options.steps, options.number, options.letters)
    elif options.what == "text":
        text(options.folder, options.steps)
    else:
        inference(options.folder, options.number)
    print(f"  {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
