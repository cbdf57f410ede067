"""The command line under torchrun."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

TRAINING = ("train", "--classifier=mnist-cnn", "--budget=linf:0.2")
# With norms to fold and to keep in step, populations that are renewed, and attacks that look at the clean prediction.
HARDENING = ("harden", "cifar-resnet18-narrow", "--budget=linf:0.1", "--attack=generator-start", "--attack=trades",
             "--steps=1", "--num-generators=2", "--reset-every=0.02", "--val-images=20")  # fmt: skip


@pytest.mark.parametrize(
    ("verb", "kind", "warning"),
    [
        (TRAINING, "bounded_generator", "learned nothing yet"),
        (HARDENING, "classifier", "learned nothing within linf:0.1"),
    ],
)
def test_two_processes_leave_one_artifact_and_talk_as_one(
    verb: tuple[str, ...], kind: str, warning: str, tmp_path: Path, small: tuple[str, ...]
) -> None:
    out = tmp_path / "out"
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "gap"]
    given = [*verb, "--data=mnist-5k", "--device=cpu", *small]
    ended = subprocess.run(
        [sys.executable, *launch, *given, "--epochs=0.04", "--out", out],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    figures, folder = ended.stdout.splitlines()
    assert figures.startswith(f"{kind}: validation accuracy ")
    assert folder == str(out)
    (progress,) = [line for line in ended.stderr.splitlines() if line.startswith(f"{verb[0]} ")]
    steps = int(progress.split()[1].partition("/")[2])
    assert progress.startswith(f"{verb[0]} {steps}/{steps} ") and 2 <= steps <= 3
    assert ended.stderr.count(warning) == 1
    assert yaml.safe_load((out / "card.yaml").read_text())["kind"] == kind
    assert sorted(os.listdir(out)) == ["card.yaml", "config.yaml", "metrics.jsonl", "model.safetensors", "tensorboard"]
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 1
    assert len(os.listdir(out / "tensorboard")) == 1
