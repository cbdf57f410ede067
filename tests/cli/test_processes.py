"""The command line under torchrun."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

TRAINING = ("train", "--classifier=mnist-cnn", "--budget=linf:0.2")
# Covers batch normalization to fuse and to synchronize, generators that are reset, and attacks that use clean logits.
HARDENING = ("harden", "cifar-resnet18-narrow", "--budget=linf:0.1", "--attack=generator-start", "--attack=trades",
             "--steps=1", "--num-generators=2", "--reset-every=0.02", "--val-images=20")  # fmt: skip


@pytest.mark.parametrize(
    ("command", "kind", "warning"),
    [
        (TRAINING, "bounded_generator", "randomly initialized weights"),
        (HARDENING, "classifier", "learned nothing within linf:0.1"),
    ],
)
def test_torchrun_two_processes_write_one_artifact_and_one_log(
    command: tuple[str, ...], kind: str, warning: str, tmp_path: Path, small_generator: tuple[str, ...]
) -> None:
    out = tmp_path / "out"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "gap"]
    arguments = [*command, "--data=mnist-5k", "--device=cpu", *small_generator]
    result = subprocess.run(
        [sys.executable, *launcher, *arguments, "--epochs=0.04", "--out", out],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    metrics_line, folder = result.stdout.splitlines()
    assert metrics_line.startswith(f"{kind}: validation accuracy ")
    assert folder == str(out)
    (progress,) = [line for line in result.stderr.splitlines() if line.startswith(f"{command[0]} ")]
    steps = int(progress.split()[1].partition("/")[2])
    assert progress.startswith(f"{command[0]} {steps}/{steps} ") and 2 <= steps <= 3
    assert result.stderr.count(warning) == 1
    assert yaml.safe_load((out / "card.yaml").read_text())["kind"] == kind
    assert sorted(os.listdir(out)) == ["card.yaml", "config.yaml", "metrics.jsonl", "model.safetensors", "tensorboard"]
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 1
    assert len(os.listdir(out / "tensorboard")) == 1
