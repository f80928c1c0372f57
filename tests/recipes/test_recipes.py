"""Training scripts of the shapes that people have, with their dataset and loader lines replaced, run as scripts."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from launch import launch
from programs import Program

import shardload

HERE = Path(__file__).parent


@pytest.fixture
def images(tmp_path):
    """320 images of four colours, which can be learned."""
    rng = np.random.default_rng(0)
    with shardload.ShardWriter(tmp_path / "images", {"image": "uint8[3,16,16]", "label": "int64"}) as writer:
        for i in range(320):
            colour = np.array([40 + 60 * (i % 4), 200 - 50 * (i % 4), 80], dtype=np.int64)
            noise = rng.integers(-20, 20, (3, 16, 16))
            writer.write({"image": (colour[:, None, None] + noise).astype(np.uint8), "label": i % 4})
    return tmp_path / "images"


@pytest.fixture
def tokens(tmp_path):
    """300 windows of counting upwards, which can be learned."""
    with shardload.ShardWriter(tmp_path / "tokens", {"tokens": "uint16[33]"}) as writer:
        for i in range(300):
            writer.write({"tokens": (np.arange(i, i + 33) % 64).astype(np.uint16)})
    return tmp_path / "tokens"


@pytest.mark.slow
def test_an_image_classifier_learns_and_goes_on_with_other_ranks(images, tmp_path):
    checkpoint = tmp_path / "model.pt"
    first = launch(HERE / "ddp_classifier.py", images, checkpoint, 2, ranks=2)
    assert re.findall(r"epoch (\d) accuracy .* of (\d+)", first.stdout) == [("0", "320"), ("1", "320")]
    second = launch(HERE / "ddp_classifier.py", images, checkpoint, 4, torchrun=True)
    lines = re.findall(r"epoch (\d) accuracy (.*) of (\d+)", second.stdout)
    assert [(epoch, count) for epoch, _, count in lines] == [("2", "320"), ("3", "320")]
    assert float(lines[-1][1]) > 0.5


def run(script, *arguments):
    """Runs a script in a process of its own to its good end, and returns what it printed."""
    program = Program(script, *arguments)
    output, errors = program.communicate(timeout=110)
    assert program.returncode == 0, errors
    return output


def test_a_language_model_resumes_to_the_same_losses(tokens, tmp_path, monkeypatch):
    """40 steps at once, and 20 and 20: the losses are the same to the last digit, over the end of an epoch."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    whole = run(HERE / "nano_gpt.py", tokens, tmp_path / "whole", 40)
    run(HERE / "nano_gpt.py", tokens, tmp_path / "parts", 20)
    rest = run(HERE / "nano_gpt.py", tokens, tmp_path / "parts", 40)
    assert whole.splitlines()[20:] == rest.splitlines()
    losses = [float(line.rpartition(" ")[2]) for line in whole.splitlines()]
    assert losses[-1] < losses[0] / 2


@pytest.mark.slow
def test_a_trainer_script_learns_and_goes_on(tokens, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    launch(HERE / "hf_trainer.py", tokens, out, 20)
    done = launch(HERE / "hf_trainer.py", tokens, out, 40, ranks=2).stdout
    steps, epochs, loss = re.search(r"steps (\d+) epochs (\S+) loss (\S+)", done).groups()
    assert (int(steps), float(loss) < 2) == (40, True)
    # 37 batches make an epoch on one rank and 18 on two: 20 steps are an epoch of 19 and one step, then 17 batches and so on.
    assert float(epochs) > 2
