"""The demo: a real corpus becomes shards, a model trains from them, is killed, and goes on with exactly the next samples.

Run by tools/demo, which does the set-up. Everything it writes goes to demo-data/.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np

import shardload
from shardload.order import Permutation

HERE = Path(__file__).resolve().parent
SEED = 1
BATCH_SIZE = 32


def title(text: str) -> None:
    print(f"\n\033[1m== {text}\033[0m" if sys.stdout.isatty() else f"\n== {text}", flush=True)


def run(*command: object) -> None:
    """Runs a command, printing it first; a failure ends the demo."""
    words = [str(word) for word in command]
    print("$", " ".join(words), flush=True)
    subprocess.run([sys.executable, "-m", *words] if words[0] == "shardload" else [sys.executable, *words], check=True)


def train_and_kill(dataset: Path, state: Path, record: Path, steps: int, kill_after: int) -> None:
    """Starts the training and kills it without warning (SIGKILL) once it has recorded `kill_after` steps."""
    command = [sys.executable, HERE / "train_bytes.py", dataset, "--steps", steps, "--state", state, "--record", record]
    process = subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        print(line, end="", flush=True)
        if line.split()[:1] == ["step"] and int(line.split()[1]) >= kill_after:
            process.kill()
            break
    process.stdout.close()
    process.wait(60)
    print(f"  killed (exit status {process.returncode})")


def check_record(record: Path, num_samples: int, steps: int) -> None:
    """Compares the recorded sample ids of both runs with the order as it is defined, and says what was found."""
    ids: dict[int, list[int]] = {}
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    for line in lines:
        # Steps after the last saved state were done again by the second run; they must be the same samples.
        if ids.setdefault(line["step"], line["ids"]) != line["ids"]:
            raise SystemExit(f"step {line['step']} was given other samples the second time")
    per_epoch = num_samples // BATCH_SIZE
    for step in range(1, steps + 1):
        epoch, batch = divmod(step - 1, per_epoch)
        positions = np.arange(batch * BATCH_SIZE, (batch + 1) * BATCH_SIZE)
        if ids[step] != Permutation(num_samples, seed=SEED, epoch=epoch).sample_ids(positions).tolist():
            raise SystemExit(f"step {step} was not given the samples that the order says")
    again = len(lines) - len(ids)
    print(
        f"  {steps} steps, {steps * BATCH_SIZE} samples: the ids of both runs joined are exactly the order of an uninterrupted\n"
        f"  run ({again} steps after the last saved state were done twice, on the same samples)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=400, help="training steps of the main run")
    parser.add_argument("--folder", type=Path, default=HERE.parent / "demo-data")
    options = parser.parse_args()
    corpus = Path(sysconfig.get_paths()["stdlib"])
    options.folder.mkdir(exist_ok=True)
    dataset, state, record = (options.folder / name for name in ("stdlib", "state.pt", "record.jsonl"))
    for old in (state, record):
        old.unlink(missing_ok=True)
    shutil.rmtree(dataset, ignore_errors=True)

    title("1. Pack: the source files of Python's standard library")
    schema = json.dumps({"text": "bytes"})
    run(
        "shardload",
        "pack",
        corpus,
        dataset,
        "--include",
        "*.py",
        "--exclude",
        "site-packages",
        "--schema",
        schema,
        "--shard-size",
        "4MiB",
    )
    run("shardload", "info", dataset)
    run("shardload", "head", dataset, "-n", 2)
    run("shardload", "verify", dataset)

    title("2. Train a byte-level model through ShardLoader, and kill it in the middle")
    train_and_kill(dataset, state, record, options.steps, options.steps // 2)

    title("3. Start it again: it goes on from its last saved state")
    script = HERE / "train_bytes.py"
    run(script, dataset, "--steps", options.steps, "--state", state, "--record", record)
    check_record(record, len(shardload.open(dataset)), options.steps)

    title("4. The same loop with torch's DataLoader: from files to shards, two lines change")
    print("  -    dataset = FileDataset(folder)")
    print("  -    loader = DataLoader(dataset, batch_size=32, shuffle=True, drop_last=True)")
    print("  +    dataset = shardload.open(folder, transform=window)")
    print("  +    loader = DataLoader(dataset, batch_sampler=ShardSampler(dataset, drop_last=True).batch_sampler(32))")
    run(script, corpus, "--steps", options.steps // 8, "--loader", "files")
    run(script, dataset, "--steps", options.steps // 8, "--loader", "dataloader")
    print("\nDone. The dataset is in", dataset)


if __name__ == "__main__":
    main()
