"""Two processes give what one gives. Run as a script, under torchrun, each process leaves its figures in FOLDER."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from gap.models.generators import Discriminator, Generator, UniversalGenerator, make_generator
from torch import Tensor, nn

from gap.attacks.goals import find_goal
from gap.attacks.jobs import AttackJob, DirectJob, DiscriminatorJob, ThresholdedJob, UniversalJob
from gap.attacks.losses import find_loss
from gap.budget import Budget
from gap.data.splits import MemorySplit
from gap.training.job import Player, adam
from gap.training.loop import Plan, train
from gap.training.machine import MachineOptions, make_accelerator

HELD_OUT = 513
BUDGET = Budget.parse("linf:0.2")


class Noted(MemorySplit):
    """A split that keeps which images it gave."""

    given: list[int]

    def batches(self, order: Iterable[Tensor], device: torch.device | str = "cpu") -> Iterator[tuple[Tensor, Tensor]]:
        self.given = []

        def noted() -> Iterator[Tensor]:
            for indices in order:
                self.given += indices.tolist()
                yield indices

        return super().batches(noted(), device)


def split(count: int, seed: int) -> Noted:
    """Noisy pictures, brighter on one side, labelled by which."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (count,), generator=generator)
    images = torch.rand(count, 1, 12, 12, generator=generator) * 0.6
    images[:, 0, :, :6] += 0.1 * labels.view(-1, 1, 1)
    images[:, 0, :, 6:] += 0.1 * (1 - labels).view(-1, 1, 1)
    return Noted((images * 255).round().byte(), labels)


def classifier() -> nn.Module:
    """Tells the sides apart."""
    linear = nn.Linear(144, 2)
    side = torch.ones(12, 12)
    side[:, 6:] = -1
    linear.weight.data = torch.stack([-side, side]).flatten(1) / 4
    linear.bias.data.zero_()
    return nn.Sequential(nn.Flatten(), linear).requires_grad_(False)


def rest(network: nn.Module, lr: float) -> tuple[Any, ...]:
    return adam(network, lr), [classifier()], find_goal("untargeted", 2), find_loss("margin")


def generator() -> Generator:
    return make_generator(1, encoder="resnet18", decoder=[8], fold=2)


def still() -> AttackJob:
    """No training moves it: a tiny learning rate, no buffers."""
    return ThresholdedJob(BUDGET, *rest(Generator(nn.Conv2d(4, 4, 3, padding=1), 2, 1), 1e-12))


def thresholded() -> AttackJob:
    return ThresholdedJob(BUDGET, *rest(generator(), 0.01))


def universal() -> AttackJob:
    return UniversalJob(BUDGET, *rest(UniversalGenerator(generator(), 1, (12, 12)), 0.01))


def direct() -> AttackJob:
    return DirectJob("l2", 1.5, *rest(generator(), 0.01))


def discriminated() -> AttackJob:
    judge: Player = adam(Discriminator(1, width=4), 0.001)
    return DiscriminatorJob(judge, *rest(generator(), 0.01))


JOBS: dict[str, Callable[[], AttackJob]] = {
    job.__name__: job for job in (still, thresholded, universal, direct, discriminated)
}


def work(folder: Path) -> dict[str, Any]:
    """Figures of each job, the images that this process learned from, and a sum of the weights it ends with."""
    machine = make_accelerator(MachineOptions(device="cpu", precision="fp32"))
    left: dict[str, Any] = {}
    for name, make in JOBS.items():
        torch.manual_seed(0)
        job, data, heard = make(), split(256, seed=1), []
        figures = train(job, data, split(HELD_OUT, seed=2), Plan(2, 32), folder, machine, [heard.append])
        weights = sum(weight.double().sum().item() for weight in job.players["generator"].bare.parameters())
        left[name] = {
            "figures": figures,
            "given": data.given,
            "weights": weights,
            "pictures": [sorted(progress.pictures) for progress in heard if progress.judged],
        }
    few = train(thresholded(), split(64, seed=1), split(1, seed=2), Plan(1, 32), folder, machine)
    return left | {"one held out": few}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return work(tmp_path_factory.mktemp("alone"))


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("together")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__, folder]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(launch, env=environment, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def test_every_figure_of_a_network_that_holds_still_is_exact(
    alone: dict[str, Any], together: list[dict[str, Any]]
) -> None:
    figures = alone["still"]["figures"]
    assert set(figures) == {"accuracy_under_attack", "fooling_rate", "l2", "linf"}
    for process in together:
        assert process["still"]["figures"] == pytest.approx(figures, abs=1e-6)
    counted = figures["accuracy_under_attack"] * HELD_OUT
    assert counted == pytest.approx(round(counted), abs=1e-6)


@pytest.mark.parametrize("name", [name for name in JOBS if name != "discriminated"])
def test_the_same_global_batch_gives_the_same_figures_within_noise(
    alone: dict[str, Any], together: list[dict[str, Any]], name: str
) -> None:
    one, two = alone[name]["figures"], together[0][name]["figures"]
    assert abs(one["accuracy_under_attack"] - two["accuracy_under_attack"]) < 0.12
    assert one["l2"] == pytest.approx(two["l2"], rel=0.2)


def test_a_process_without_a_held_out_image_waits_for_the_other(together: list[dict[str, Any]]) -> None:
    first, second = (process["one held out"] for process in together)
    assert first == second
    assert first["accuracy_under_attack"] in (0, 1)


def test_a_network_without_statistics_learns_the_same(alone: dict[str, Any], together: list[dict[str, Any]]) -> None:
    assert together[0]["universal"]["figures"] == pytest.approx(alone["universal"]["figures"], abs=0.01)


@pytest.mark.parametrize("name", JOBS)
def test_processes_agree_and_share_the_images(alone: dict[str, Any], together: list[dict[str, Any]], name: str) -> None:
    first, second = (process[name] for process in together)
    assert first["figures"] == second["figures"]
    assert first["weights"] == second["weights"]
    assert sorted(first["given"] + second["given"]) == sorted(alone[name]["given"])
    assert first["pictures"] == [["clean", "perturbed"]] * 2
    assert second["pictures"] == []


if __name__ == "__main__":
    out = Path(sys.argv[1])
    (out / f"{os.environ['RANK']}.json").write_text(json.dumps(work(out)))
