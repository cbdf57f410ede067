"""Two processes give what one gives. Run as a script, under torchrun, each process leaves its figures in FOLDER."""

import atexit
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from accelerate import Accelerator
from gap.models.generators import Discriminator, Generator, UniversalGenerator, make_generator
from torch import Tensor, nn

from gap.attacks.criteria import find_criterion
from gap.attacks.generator.tasks import (
    AdversarialGeneratorTraining,
    BoundedGeneratorTraining,
    DirectGeneratorTraining,
    GeneratorTraining,
    UniversalGeneratorTraining,
)
from gap.attacks.losses import find_loss
from gap.classifiers.pretrain import ClassifierTraining
from gap.core.artifact import CHECKPOINT
from gap.core.errors import GapError
from gap.core.process import TrainingInterrupted
from gap.data.dataset import InMemorySplit
from gap.hardening.initializers import GeneratorInit, GeneratorPopulation, PerturbationBank, RandomInit, UniversalInit
from gap.hardening.inner_attacks import InnerAttack
from gap.hardening.task import AdversarialTraining
from gap.threat import L2, Budget
from gap.training.checkpoint import read_checkpoint
from gap.training.options import TrainRuntimeOptions
from gap.training.runtime import allow_unused_weights, make_accelerator
from gap.training.task import Backward, OptimizedModule, with_adamw
from gap.training.trainer import TrainingRun, TrainSchedule, train

HELD_OUT = 513
BUDGET = Budget.parse("linf:0.2")
# How far apart rounding may take a weight in 16 steps of 0.01.
SAME = 1e-4


class Noted(InMemorySplit):
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
    """Noisy pictures, brighter on one side, labeled by which."""
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
    return with_adamw(network, lr), [classifier()], find_criterion("untargeted", 2), find_loss("margin")


def plain() -> Generator:
    """No statistics of a batch, no random choice: its gradient on a batch is the mean of the halves' gradients."""
    return Generator(nn.Conv2d(4, 4, 3, padding=1), 2, 1)


def still() -> GeneratorTraining:
    """No training moves it: a tiny learning rate, no buffers."""
    return BoundedGeneratorTraining(BUDGET, *rest(plain(), 1e-12))


def thresholded() -> GeneratorTraining:
    return BoundedGeneratorTraining(BUDGET, *rest(plain(), 0.01))


def universal() -> GeneratorTraining:
    return UniversalGeneratorTraining(BUDGET, 4, *rest(UniversalGenerator(plain(), 1, (12, 12)), 0.01))


def direct() -> GeneratorTraining:
    return DirectGeneratorTraining(L2, 1.5, *rest(plain(), 0.01))


def discriminated() -> GeneratorTraining:
    judge: OptimizedModule = with_adamw(Discriminator(1, width=4), 0.001)
    return AdversarialGeneratorTraining(judge, *rest(plain(), 0.01))


def with_statistics() -> GeneratorTraining:
    return BoundedGeneratorTraining(
        BUDGET, *rest(make_generator(1, encoder="resnet18", decoder=[8], pixel_unshuffle=2), 0.01)
    )


class Apart(BoundedGeneratorTraining):
    """Each process follows its own gradient: what a sync that is broken would give."""

    def adversarial(self, images: Tensor) -> Tensor:
        return self.budget.apply(images, self.modules["generator"].unwrapped(images))


def apart() -> GeneratorTraining:
    return Apart(BUDGET, *rest(plain(), 0.01))


class Signalled(BoundedGeneratorTraining):
    """One process, of two the second, is sent SIGINT and then SIGTERM, as a launcher would, in its third step."""

    steps = 0

    def training_step(self, images: Tensor, labels: Tensor, backward: Backward) -> dict[str, Tensor]:
        self.steps += 1
        if self.steps == 3 and os.environ.get("RANK", "1") == "1":
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)
        return super().training_step(images, labels, backward)


PLAIN: dict[str, Callable[[], GeneratorTraining]] = {
    training.__name__: training for training in (still, thresholded, universal, direct, discriminated)
}
JOBS = PLAIN | {"with_statistics": with_statistics}


def work(folder: Path) -> dict[str, Any]:
    """Figures of each training, the images that this process learned from, and the first layer's weights at the end."""
    machine = make_accelerator(TrainRuntimeOptions(device="cpu", precision="fp32"))
    left: dict[str, Any] = {}
    for name, make in (JOBS | {"apart": apart}).items():
        torch.manual_seed(0)
        training, data, heard = make(), split(256, seed=1), []
        metrics = train(
            training, data, split(HELD_OUT, seed=2), TrainSchedule(2, 32), TrainingRun(folder, machine, [heard.append])
        )
        weights = next(training.modules["generator"].unwrapped.parameters())
        left[name] = {
            "metrics": metrics,
            "given": data.given,
            "weights": weights.flatten()[:200].tolist(),
            "pictures": [sorted(progress.pictures) for progress in heard if progress.validation_metrics],
        }
    left["hardened"] = hardened(folder, machine)
    left["averaged statistics"] = averaged_statistics(folder, machine)
    left["with an idle head"] = with_an_idle_head(folder, machine)
    few = train(thresholded(), split(64, seed=1), split(1, seed=2), TrainSchedule(1, 32), TrainingRun(folder, machine))
    return left | {"one held out": few, "stopped": stopped(folder, machine), "blocked": blocked(folder, machine)}


def hardened(folder: Path, machine: Accelerator) -> dict[str, list[float]]:
    """Every weight of a classifier, of the generator it was hardened against, and of the classifier's average.

    Nothing is drawn at random but the order of the images, so that two processes can do what one does.
    """
    torch.manual_seed(0)
    classifier = sgd(nn.Sequential(nn.Flatten(), nn.Linear(144, 16), nn.ReLU(), nn.Linear(16, 4)))
    mix = [
        InnerAttack("generator-start", 0.25, GeneratorInit(sgd(GeneratorPopulation(plain))), 2),
        InnerAttack("generator", 0.25, GeneratorInit(sgd(GeneratorPopulation(plain))), 0),
        InnerAttack("universal-start", 0.25, UniversalInit(sgd(PerturbationBank(1, 1, (12, 12)))), 1),
        InnerAttack("universal", 0.25, UniversalInit(sgd(PerturbationBank(1, 1, (12, 12)))), 0),
    ]
    training = AdversarialTraining(classifier, mix, BUDGET, epsilon_warmup=3, decay=0.9)
    train(training, split(256, seed=1), split(HELD_OUT, seed=2), TrainSchedule(1, 32), TrainingRun(folder, machine))
    unwrapped = {name: module.unwrapped for name, module in training.modules.items()} | {
        "averaged": training.averaged.module
    }
    return {
        name: [w for each in network.parameters() for w in each.flatten().tolist()]
        for name, network in unwrapped.items()
    }


def sgd(network: nn.Module) -> OptimizedModule:
    """A module whose steps are as long as its gradients: one that is wrong by a factor shows."""
    return OptimizedModule(network, torch.optim.SGD(network.parameters(), lr=0.1))


class IdleHead(nn.Module):
    """A network with an auxiliary head that its output leaves out: the head's weights get no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.idle = nn.Linear(144, 4), nn.Linear(144, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(images.flatten(1))


def with_an_idle_head(folder: Path, machine: Accelerator) -> list[float]:
    """The weights of a classifier after training, where some weights get no gradient."""
    torch.manual_seed(0)
    network = IdleHead()
    allow_unused_weights(machine)
    try:
        training = ClassifierTraining(sgd(network), 0.0, nn.Identity())
        train(training, split(64, seed=1), split(32, seed=2), TrainSchedule(1, 16), TrainingRun(folder, machine))
    finally:
        machine.ddp_handler = None
    return [value for weight in network.parameters() for value in weight.flatten().tolist()]


def averaged_statistics(folder: Path, machine: Accelerator) -> list[float]:
    """The statistics of the norms of a classifier's average, as they were judged."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(144, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))
    training = AdversarialTraining(
        with_adamw(network, 0.01), [InnerAttack("pgd", 1.0, RandomInit(), 1)], BUDGET, decay=0.5
    )
    train(training, split(64, seed=1), split(32, seed=2), TrainSchedule(1, 32), TrainingRun(folder, machine))
    return [value for buffer in training.averaged.module.buffers() for value in buffer.flatten().tolist()]


def stopped(folder: Path, machine: Accelerator) -> dict[str, Any]:
    """What a process finds as soon as it was stopped, where writing the checkpoint took a while."""

    def slowly(*given: Any) -> None:
        time.sleep(0.5)
        save(*given)

    out = folder / "stopped"
    out.mkdir(exist_ok=True)
    save = torch.save
    training = Signalled(BUDGET, *rest(plain(), 0.01))
    with patch.object(torch, "save", slowly), pytest.raises(TrainingInterrupted) as ended:
        train(training, split(256, seed=1), split(8, seed=2), TrainSchedule(1, 32), TrainingRun(out, machine))
    return {"says": str(ended.value), "step": read_checkpoint(out / CHECKPOINT)["step"]}


def blocked(folder: Path, machine: Accelerator) -> str:
    """What a process says where the checkpoint cannot be written."""
    taken = folder / "taken"
    (taken / CHECKPOINT / "by a folder").mkdir(parents=True, exist_ok=True)
    with pytest.raises(GapError) as ended:
        train(thresholded(), split(256, seed=1), split(8, seed=2), TrainSchedule(2, 32), TrainingRun(taken, machine))
    return str(ended.value)


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
    metrics = alone["still"]["metrics"]
    assert set(metrics) == {"accuracy_under_attack", "fooling_rate", "l1", "l2", "linf"}
    for process in together:
        assert process["still"]["metrics"] == pytest.approx(metrics, abs=1e-6)
    counted = metrics["accuracy_under_attack"] * HELD_OUT
    assert counted == pytest.approx(round(counted), abs=1e-6)


def apartness(one: dict[str, Any], other: dict[str, Any]) -> float:
    """The largest difference of a weight."""
    return max(abs(mine - yours) for mine, yours in zip(one["weights"], other["weights"], strict=True))


@pytest.mark.parametrize("name", PLAIN)
def test_the_same_global_batch_gives_the_same_weights_and_figures(
    alone: dict[str, Any], together: list[dict[str, Any]], name: str
) -> None:
    assert apartness(alone[name], together[0][name]) < SAME
    assert together[0][name]["metrics"] == pytest.approx(alone[name]["metrics"], rel=1e-3, abs=0.005)


def test_processes_that_do_not_share_their_gradients_would_be_noticed(
    alone: dict[str, Any], together: list[dict[str, Any]]
) -> None:
    assert alone["apart"]["weights"] == alone["thresholded"]["weights"]
    assert apartness(alone["apart"], together[0]["apart"]) > 10 * SAME


def test_a_process_without_a_held_out_image_waits_for_the_other(together: list[dict[str, Any]]) -> None:
    first, second = (process["one held out"] for process in together)
    assert first == second
    assert first["accuracy_under_attack"] in (0, 1)


def test_a_signal_to_one_process_stops_all_once_the_work_is_saved(
    alone: dict[str, Any], together: list[dict[str, Any]]
) -> None:
    for process in (alone, *together):
        assert process["stopped"]["step"] == 3
        assert "stopped at step 3 of 8, saved" in process["stopped"]["says"]


def test_a_checkpoint_that_cannot_be_written_ends_all(alone: dict[str, Any], together: list[dict[str, Any]]) -> None:
    assert "cannot be written" in alone["blocked"] and "cannot be written" in together[0]["blocked"]
    assert together[1]["blocked"] == "the main process could not go on; its own message says why"


@pytest.mark.parametrize("name", JOBS)
def test_processes_agree_and_share_the_images(alone: dict[str, Any], together: list[dict[str, Any]], name: str) -> None:
    first, second = (process[name] for process in together)
    assert first["metrics"] == second["metrics"]
    assert first["weights"] == second["weights"]
    assert sorted(first["given"] + second["given"]) == sorted(alone[name]["given"])
    assert first["pictures"] == [["clean", "perturbed"]] * 2
    assert second["pictures"] == []


def test_the_average_is_judged_with_one_set_of_statistics(together: list[dict[str, Any]]) -> None:
    first, second = (process["averaged statistics"] for process in together)
    assert first == second and len(set(first)) > 8


def test_processes_with_weights_that_get_no_gradient_learn_as_one_process(
    alone: dict[str, Any], together: list[dict[str, Any]]
) -> None:
    """Catches: processes that wait for the gradient of an auxiliary head."""
    for process in together:
        assert process["with an idle head"] == pytest.approx(alone["with an idle head"], abs=SAME)


def test_both_players_of_hardening_learn_as_on_one_process(
    alone: dict[str, Any], together: list[dict[str, Any]]
) -> None:
    assert alone["hardened"].keys() == {
        "classifier", "generator-start", "generator", "universal-start", "universal", "averaged",
    }  # fmt: skip
    for name, weights in alone["hardened"].items():
        for process in together:
            assert process["hardened"][name] == pytest.approx(weights, abs=SAME), name


def test_no_thread_of_the_group_outlives_the_work(together: list[dict[str, Any]]) -> None:
    if not Path("/proc/self/task").is_dir():
        pytest.skip("/proc/self/task, which lists the threads of a process, exists on Linux only")
    for process in together:
        working, left = ([name for name in names if "gloo" in name] for names in process["threads"])
        assert working and not left


def threads() -> list[str]:
    """The names of this process's threads, where the system tells."""
    return [name.read_text().strip() for name in Path("/proc/self/task").glob("*/comm")]


def leave(left: Path, metrics: dict[str, Any]) -> None:
    """Writes the figures, and the threads that Python finds after the work and at its end."""
    left.write_text(json.dumps(metrics | {"threads": [metrics["threads"], threads()]}))


if __name__ == "__main__":
    out = Path(sys.argv[1])
    metrics: dict[str, Any] = {}
    atexit.register(leave, out / f"{os.environ['RANK']}.json", metrics)
    metrics |= work(out) | {"threads": threads()}
