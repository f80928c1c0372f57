"""Fuzzes the targets of `targets.py`.

```
python tests/fuzz/run.py --runs 100000                    # every target, changes drawn by a seeded generator
python tests/fuzz/run.py --target record --seed 5
pip install -e .[fuzz]
python tests/fuzz/run.py --engine atheris --target record --runs 1000000    # guided by coverage; one target a process
```

What fails is kept in `corpus/<target>/`, named by its SHA-256, and is run again by every test run. Printed with it is
the command that finds it again.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import sys
import time
import tracemalloc
from pathlib import Path

HERE = Path(__file__).resolve().parent
CORPUS = HERE / "corpus"
MAX_SECONDS = 1.0
SAMPLED = 256
"""The memory of one run in so many is measured."""


def run_one(target, data: bytes) -> None:
    """Runs a target on bytes; says which if anything but a typed error comes of it."""
    try:
        target.run(data)
    except Exception as error:
        keep_crasher(target.name, data)
        raise AssertionError(f"{target.name}: {type(error).__name__}: {error}"[:500]) from error


def keep_crasher(name: str, data: bytes) -> Path:
    """Keeps what failed, for ever after."""
    path = CORPUS / name / hashlib.sha256(data).hexdigest()[:16]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def corpus_of(name: str) -> list[bytes]:
    """What once failed."""
    folder = CORPUS / name
    return [path.read_bytes() for path in sorted(folder.iterdir())] if folder.is_dir() else []


def check_memory(target, data: bytes) -> None:
    """Runs a target on bytes and compares the most memory it took with its bound."""
    tracemalloc.start()
    try:
        target.run(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    if peak > target.memory(data):
        keep_crasher(target.name, data)
        raise AssertionError(f"{target.name}: {peak} bytes of memory for {len(data)} bytes of input")


def fuzz(target, runs: int, seed: int) -> float:
    """Runs changed seeds, and returns the longest run in seconds."""
    from fuzz.mutate import mutate

    draw = random.Random(f"{target.name} {seed}")
    pool = target.seeds() + corpus_of(target.name)
    longest = 0.0
    for number in range(runs):
        data = mutate(draw.choice(pool), draw, target.text)
        # Changes pile up: some of what was made is changed again.
        if draw.random() < 0.01 and len(pool) < 1000:
            pool.append(data)
        if number % SAMPLED == SAMPLED - 1:
            check_memory(target, data)
            continue
        start = time.perf_counter()
        run_one(target, data)
        longest = max(longest, time.perf_counter() - start)
    return longest


def guided(target, runs: int, seed: int, seconds: int) -> None:
    """Lets atheris choose by coverage; the changes are the same."""
    import atheris
    from fuzz.mutate import mutate

    def change(data: bytes, max_size: int, number: int) -> bytes:
        draw = random.Random(number)
        if draw.random() < 0.3:
            return atheris.Mutate(data, max_size)
        return mutate(data, draw, target.text)[:max_size]

    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="fuzz-corpus-"))
    for number, data in enumerate(target.seeds() + corpus_of(target.name)):
        (folder / str(number)).write_bytes(data)
    largest = 4 * max(map(len, target.seeds()))
    options = [f"-runs={runs}", f"-seed={seed}", f"-max_len={largest}", "-timeout=5", "-rss_limit_mb=1024"]
    options += [f"-max_total_time={seconds}"] * bool(seconds)
    atheris.Setup([sys.argv[0], *options, str(folder)], lambda data: run_one(target, data), custom_mutator=change)
    atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", action="append", help="one of them; may be given several times")
    parser.add_argument("--runs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=int, default=0, help="end after so long (atheris)")
    parser.add_argument("--engine", choices=["python", "atheris"], default="python")
    options = parser.parse_args()
    sys.path[:0] = [str(HERE.parent.parent), str(HERE.parent)]
    if options.engine == "atheris":
        import atheris

        with atheris.instrument_imports(include=["shardload"]):
            from fuzz.targets import TARGETS
    else:
        from fuzz.targets import TARGETS
    for name in options.target or TARGETS:
        target, start = TARGETS[name], time.perf_counter()
        if options.engine == "atheris":
            guided(target, options.runs, options.seed, options.seconds)
        runs = options.runs // 100 if target.slow else options.runs
        longest = fuzz(target, runs, options.seed)
        took = time.perf_counter() - start
        print(f"{name}: {runs:,} runs, {runs / took:,.0f} a second, longest {longest * 1000:.1f} ms", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
