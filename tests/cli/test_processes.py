"""The command line under torchrun."""

import os
import subprocess
import sys
from pathlib import Path

import yaml


def test_two_processes_leave_one_artefact_and_talk_as_one(tmp_path: Path, small: tuple[str, ...]) -> None:
    out = tmp_path / "out"
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "gap"]
    given = ["train", "--classifier=mnist-cnn", "--data=mnist-5k", "--budget=linf:0.2", "--device=cpu", *small]
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
    assert figures.startswith("thresholded generator: validation accuracy under attack ")
    assert folder == str(out)
    (progress,) = [line for line in ended.stderr.splitlines() if line.startswith("train ")]
    steps = int(progress.split()[1].partition("/")[2])
    assert progress.startswith(f"train {steps}/{steps} ") and 2 <= steps <= 3
    assert ended.stderr.count("no better than chance") == 1
    assert yaml.safe_load((out / "card.yaml").read_text())["kind"] == "thresholded generator"
    assert sorted(os.listdir(out)) == ["card.yaml", "config.yaml", "metrics.jsonl", "model.safetensors", "tensorboard"]
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 1
    assert len(os.listdir(out / "tensorboard")) == 1
