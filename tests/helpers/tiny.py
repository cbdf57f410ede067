"""A tiny work, to watch the loop at. Run as a script, `tiny.py FOLDER`, it trains there and kills itself half-way."""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gap.core.artifact import METRICS
from gap.data.dataset import MemorySplit
from gap.training.callbacks import MetricsLog
from gap.training.runtime import TrainingMachineOptions, make_accelerator
from gap.training.task import Backward, Job, Player, adam
from gap.training.trainer import Listener, Plan, Progress, train

PLAN = Plan(epochs=2, batch_size=4, seed=3)
STEPS = 50


class TinyJob(Job):
    """A classifier with all that a step can depend on: buffers, random choices, and a number it carries along."""

    def __init__(self, poison_at: int | None = None) -> None:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Flatten(), nn.Linear(9, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 2))
        self.players: dict[str, Player] = {"classifier": adam(network, 0.02)}
        self.poison_at = poison_at
        self.steps = 0
        self.pull = 0.0

    def step(self, images: Tensor, labels: Tensor, backward: Backward) -> dict[str, Tensor]:
        self.steps += 1
        player = self.players["classifier"]
        loss = F.cross_entropy(player.network(images), labels) * (1 + self.pull)
        if self.steps == self.poison_at:
            loss = loss * float("nan")
        player.learn(loss, backward)
        self.pull = 0.9 * self.pull + 0.1 * torch.rand(()).item()
        return {"loss": loss}

    def judge(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.players["classifier"].network(images)
        return {"accuracy": logits.argmax(dim=1) == labels, "loss": F.cross_entropy(logits, labels, reduction="none")}

    def state(self) -> dict[str, float]:
        return {"pull": self.pull}

    def load_state(self, state: dict[str, float]) -> None:
        self.pull = state["pull"]


def split(count: int, seed: int = 0, kind: type[MemorySplit] = MemorySplit) -> MemorySplit:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (count, 1, 3, 3), generator=generator, dtype=torch.uint8)
    return kind(images, (images[:, 0, 1, 1] > 127).long())


def run(
    folder: Path,
    *listeners: Listener,
    job: TinyJob | None = None,
    plan: Plan = PLAN,
    resume: bool = False,
    identity: dict[str, str] | None = None,
) -> tuple[dict[str, float], TinyJob]:
    folder.mkdir(exist_ok=True)
    job = job or TinyJob()
    machine = make_accelerator(TrainingMachineOptions(device="cpu", precision="fp32"))
    data = split(100), split(31, seed=1)
    figures = train(job, *data, plan, folder, machine, listeners, resume=resume, identity=identity)
    return figures, job


def at_step(step: int, act: Callable[[], None]) -> Listener:
    def listen(progress: Progress) -> None:
        if progress.step == step:
            act()

    return listen


def same_networks(one: TinyJob, other: TinyJob) -> bool:
    ours, theirs = (job.players["classifier"].bare.state_dict() for job in (one, other))
    return all(torch.equal(ours[name], theirs[name]) for name in ours) and one.pull == other.pull


def signals(*numbers: signal.Signals) -> Callable[[], None]:
    def act() -> None:
        for number in numbers:
            signal.raise_signal(number)

    return act


def told(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "images_per_second"} for line in lines]


if __name__ == "__main__":
    out = Path(sys.argv[1])
    killing = at_step(40, lambda: os.kill(os.getpid(), signal.SIGKILL))
    run(out, MetricsLog(out), killing, plan=Plan(PLAN.epochs, PLAN.batch_size, PLAN.seed, checkpoint_seconds=0))
