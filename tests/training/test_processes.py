"""Training on two processes equals training on one. Run as a script by torchrun, each process writes its results."""

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
# The largest difference that rounding may make in a weight in 16 steps of 0.01.
TOLERANCE = 1e-4


class RecordingSplit(InMemorySplit):
    """A split that records the indices of the images in its batches."""

    indices: list[int]

    def batches(self, order: Iterable[Tensor], device: torch.device | str = "cpu") -> Iterator[tuple[Tensor, Tensor]]:
        self.indices = []

        def recorded() -> Iterator[Tensor]:
            for indices in order:
                self.indices += indices.tolist()
                yield indices

        return super().batches(recorded(), device)


def split(count: int, seed: int) -> RecordingSplit:
    """Noisy images that are brighter on one side; the label is this side."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (count,), generator=generator)
    images = torch.rand(count, 1, 12, 12, generator=generator) * 0.6
    images[:, 0, :, :6] += 0.1 * labels.view(-1, 1, 1)
    images[:, 0, :, 6:] += 0.1 * (1 - labels).view(-1, 1, 1)
    return RecordingSplit((images * 255).round().byte(), labels)


def classifier() -> nn.Module:
    """A linear classifier of the brighter side."""
    linear = nn.Linear(144, 2)
    side = torch.ones(12, 12)
    side[:, 6:] = -1
    linear.weight.data = torch.stack([-side, side]).flatten(1) / 4
    linear.bias.data.zero_()
    return nn.Sequential(nn.Flatten(), linear).requires_grad_(False)


def generator_arguments(network: nn.Module, lr: float) -> tuple[Any, ...]:
    return with_adamw(network, lr), [classifier()], find_criterion("untargeted", 2), find_loss("margin")


def plain_generator() -> Generator:
    """A generator without batch statistics or randomness: its gradient is the mean of that on each half of a batch."""
    return Generator(nn.Conv2d(4, 4, 3, padding=1), 2, 1)


def constant() -> GeneratorTraining:
    """A generator that training does not change: a tiny learning rate, and no buffers."""
    return BoundedGeneratorTraining(BUDGET, *generator_arguments(plain_generator(), 1e-12))


def thresholded() -> GeneratorTraining:
    return BoundedGeneratorTraining(BUDGET, *generator_arguments(plain_generator(), 0.01))


def universal() -> GeneratorTraining:
    return UniversalGeneratorTraining(
        BUDGET, 4, *generator_arguments(UniversalGenerator(plain_generator(), 1, (12, 12)), 0.01)
    )


def direct() -> GeneratorTraining:
    return DirectGeneratorTraining(L2, 1.5, *generator_arguments(plain_generator(), 0.01))


def discriminated() -> GeneratorTraining:
    discriminator: OptimizedModule = with_adamw(Discriminator(1, width=4), 0.001)
    return AdversarialGeneratorTraining(discriminator, *generator_arguments(plain_generator(), 0.01))


def with_statistics() -> GeneratorTraining:
    return BoundedGeneratorTraining(
        BUDGET, *generator_arguments(make_generator(1, encoder="resnet18", decoder=[8], pixel_unshuffle=2), 0.01)
    )


class Unsynchronized(BoundedGeneratorTraining):
    """Each process follows its own gradient, as if gradients were not synchronized."""

    def adversarial(self, images: Tensor) -> Tensor:
        return self.budget.apply(images, self.modules["generator"].unwrapped(images))


def unsynchronized() -> GeneratorTraining:
    return Unsynchronized(BUDGET, *generator_arguments(plain_generator(), 0.01))


class Interrupted(BoundedGeneratorTraining):
    """The only process, or the second of two, gets SIGINT and then SIGTERM in its third step, as from a launcher."""

    steps = 0

    def training_step(self, images: Tensor, labels: Tensor, backward: Backward) -> dict[str, Tensor]:
        self.steps += 1
        if self.steps == 3 and os.environ.get("RANK", "1") == "1":
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)
        return super().training_step(images, labels, backward)


PLAIN: dict[str, Callable[[], GeneratorTraining]] = {
    training.__name__: training for training in (constant, thresholded, universal, direct, discriminated)
}
JOBS = PLAIN | {"with_statistics": with_statistics}


def train_all(folder: Path) -> dict[str, Any]:
    """The metrics of each training, the images that this process used, and the final weights of the first layer."""
    machine = make_accelerator(TrainRuntimeOptions(device="cpu", precision="fp32"))
    results: dict[str, Any] = {}
    for name, make in (JOBS | {"unsynchronized": unsynchronized}).items():
        torch.manual_seed(0)
        training, data, reports = make(), split(256, seed=1), []
        metrics = train(
            training,
            data,
            split(HELD_OUT, seed=2),
            TrainSchedule(2, 32),
            TrainingRun(folder, machine, [reports.append]),
        )
        weights = next(training.modules["generator"].unwrapped.parameters())
        results[name] = {
            "metrics": metrics,
            "indices": data.indices,
            "weights": weights.flatten()[:200].tolist(),
            "pictures": [sorted(progress.pictures) for progress in reports if progress.validation_metrics],
        }
    results["hardened"] = hardened(folder, machine)
    results["averaged statistics"] = averaged_statistics(folder, machine)
    results["with an idle head"] = with_an_idle_head(folder, machine)
    one_held_out = train(
        thresholded(), split(64, seed=1), split(1, seed=2), TrainSchedule(1, 32), TrainingRun(folder, machine)
    )
    return results | {
        "one held out": one_held_out,
        "stopped": stopped(folder, machine),
        "blocked": blocked(folder, machine),
    }


def hardened(folder: Path, machine: Accelerator) -> dict[str, list[float]]:
    """Every weight of a classifier, of the generators it was hardened against, and of the averaged classifier.

    Only the order of the images is random, so that two processes can give what one gives.
    """
    torch.manual_seed(0)
    classifier = sgd(nn.Sequential(nn.Flatten(), nn.Linear(144, 16), nn.ReLU(), nn.Linear(16, 4)))
    mix = [
        InnerAttack("generator-start", 0.25, GeneratorInit(sgd(GeneratorPopulation(plain_generator))), 2),
        InnerAttack("generator", 0.25, GeneratorInit(sgd(GeneratorPopulation(plain_generator))), 0),
        InnerAttack("universal-start", 0.25, UniversalInit(sgd(PerturbationBank(1, 1, (12, 12)))), 1),
        InnerAttack("universal", 0.25, UniversalInit(sgd(PerturbationBank(1, 1, (12, 12)))), 0),
    ]
    training = AdversarialTraining(classifier, mix, BUDGET, epsilon_warmup=3, decay=0.9)
    train(training, split(256, seed=1), split(HELD_OUT, seed=2), TrainSchedule(1, 32), TrainingRun(folder, machine))
    unwrapped = {name: module.unwrapped for name, module in training.modules.items()} | {
        "averaged": training.averaged.module
    }
    return {
        name: [value for weight in network.parameters() for value in weight.flatten().tolist()]
        for name, network in unwrapped.items()
    }


def sgd(network: nn.Module) -> OptimizedModule:
    """A module with SGD, whose steps are proportional to the gradients: a gradient with a wrong factor is detected."""
    return OptimizedModule(network, torch.optim.SGD(network.parameters(), lr=0.1))


class IdleHead(nn.Module):
    """A network with an auxiliary head that its output does not use: the weights of this head get no gradient."""

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
    """The statistics of the norms of the averaged classifier, as in the validation."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(144, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))
    training = AdversarialTraining(
        with_adamw(network, 0.01), [InnerAttack("pgd", 1.0, RandomInit(), 1)], BUDGET, decay=0.5
    )
    train(training, split(64, seed=1), split(32, seed=2), TrainSchedule(1, 32), TrainingRun(folder, machine))
    return [value for buffer in training.averaged.module.buffers() for value in buffer.flatten().tolist()]


def stopped(folder: Path, machine: Accelerator) -> dict[str, Any]:
    """The error of a process that is stopped while a checkpoint is written slowly, and the step of this checkpoint."""

    def slow_save(*arguments: Any) -> None:
        time.sleep(0.5)
        save(*arguments)

    out = folder / "stopped"
    out.mkdir(exist_ok=True)
    save = torch.save
    training = Interrupted(BUDGET, *generator_arguments(plain_generator(), 0.01))
    with patch.object(torch, "save", slow_save), pytest.raises(TrainingInterrupted) as error:
        train(training, split(256, seed=1), split(8, seed=2), TrainSchedule(1, 32), TrainingRun(out, machine))
    return {"message": str(error.value), "step": read_checkpoint(out / CHECKPOINT)["step"]}


def blocked(folder: Path, machine: Accelerator) -> str:
    """The error of a process where the checkpoint cannot be written."""
    taken = folder / "taken"
    (taken / CHECKPOINT / "by a folder").mkdir(parents=True, exist_ok=True)
    with pytest.raises(GapError) as error:
        train(thresholded(), split(256, seed=1), split(8, seed=2), TrainSchedule(2, 32), TrainingRun(taken, machine))
    return str(error.value)


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return train_all(tmp_path_factory.mktemp("one-process"))


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("two-processes")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__, folder]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(launch, env=environment, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def test_train_constant_network_two_processes_give_the_exact_metrics(
    one_process: dict[str, Any], two_processes: list[dict[str, Any]]
) -> None:
    metrics = one_process["constant"]["metrics"]
    assert set(metrics) == {"accuracy_under_attack", "fooling_rate", "l1", "l2", "linf"}
    for process in two_processes:
        assert process["constant"]["metrics"] == pytest.approx(metrics, abs=1e-6)
    counted = metrics["accuracy_under_attack"] * HELD_OUT
    assert counted == pytest.approx(round(counted), abs=1e-6)


def max_difference(one: dict[str, Any], other: dict[str, Any]) -> float:
    """The largest difference of a weight."""
    return max(abs(mine - yours) for mine, yours in zip(one["weights"], other["weights"], strict=True))


@pytest.mark.parametrize("name", PLAIN)
def test_train_two_processes_give_the_weights_and_metrics_of_one(
    one_process: dict[str, Any], two_processes: list[dict[str, Any]], name: str
) -> None:
    assert max_difference(one_process[name], two_processes[0][name]) < TOLERANCE
    assert two_processes[0][name]["metrics"] == pytest.approx(one_process[name]["metrics"], rel=1e-3, abs=0.005)


def test_train_unsynchronized_gradients_exceed_the_tolerance(
    one_process: dict[str, Any], two_processes: list[dict[str, Any]]
) -> None:
    """Shows that the tolerance of the tests above detects gradients that are not synchronized."""
    assert one_process["unsynchronized"]["weights"] == one_process["thresholded"]["weights"]
    assert max_difference(one_process["unsynchronized"], two_processes[0]["unsynchronized"]) > 10 * TOLERANCE


def test_train_process_without_a_validation_image_waits_for_the_other(two_processes: list[dict[str, Any]]) -> None:
    first, second = (process["one held out"] for process in two_processes)
    assert first == second
    assert first["accuracy_under_attack"] in (0, 1)


def test_train_signal_to_one_process_saves_and_stops_all(
    one_process: dict[str, Any], two_processes: list[dict[str, Any]]
) -> None:
    for process in (one_process, *two_processes):
        assert process["stopped"]["step"] == 3
        assert "stopped at step 3 of 8, saved" in process["stopped"]["message"]


def test_train_unwritable_checkpoint_stops_all_processes(
    one_process: dict[str, Any], two_processes: list[dict[str, Any]]
) -> None:
    assert "cannot be written" in one_process["blocked"] and "cannot be written" in two_processes[0]["blocked"]
    assert two_processes[1]["blocked"] == "the main process failed; see its error message"


@pytest.mark.parametrize("name", JOBS)
def test_train_two_processes_agree_and_split_the_images(
    one_process: dict[str, Any], two_processes: list[dict[str, Any]], name: str
) -> None:
    first, second = (process[name] for process in two_processes)
    assert first["metrics"] == second["metrics"]
    assert first["weights"] == second["weights"]
    assert sorted(first["indices"] + second["indices"]) == sorted(one_process[name]["indices"])
    assert first["pictures"] == [["clean", "perturbed"]] * 2
    assert second["pictures"] == []


def test_train_averaged_network_has_equal_statistics_on_all_processes(two_processes: list[dict[str, Any]]) -> None:
    first, second = (process["averaged statistics"] for process in two_processes)
    assert first == second and len(set(first)) > 8


def test_train_weights_without_gradient_two_processes_equal_one(
    one_process: dict[str, Any], two_processes: list[dict[str, Any]]
) -> None:
    """Catches: processes that wait for the gradient of an auxiliary head."""
    for process in two_processes:
        assert process["with an idle head"] == pytest.approx(one_process["with an idle head"], abs=TOLERANCE)


def test_train_adversarial_training_two_processes_equal_one(
    one_process: dict[str, Any], two_processes: list[dict[str, Any]]
) -> None:
    assert one_process["hardened"].keys() == {
        "classifier", "generator-start", "generator", "universal-start", "universal", "averaged",
    }  # fmt: skip
    for name, weights in one_process["hardened"].items():
        for process in two_processes:
            assert process["hardened"][name] == pytest.approx(weights, abs=TOLERANCE), name


def test_train_threads_of_the_process_group_end_with_it(two_processes: list[dict[str, Any]]) -> None:
    if not Path("/proc/self/task").is_dir():
        pytest.skip("/proc/self/task, which lists the threads of a process, exists on Linux only")
    for process in two_processes:
        during_training, remaining = ([name for name in names if "gloo" in name] for names in process["threads"])
        assert during_training and not remaining


def threads() -> list[str]:
    """The names of the threads of this process, where the system lists them."""
    return [name.read_text().strip() for name in Path("/proc/self/task").glob("*/comm")]


def write_results(path: Path, metrics: dict[str, Any]) -> None:
    """Write the results, with the threads after the training and those at the exit of the process."""
    path.write_text(json.dumps(metrics | {"threads": [metrics["threads"], threads()]}))


if __name__ == "__main__":
    out = Path(sys.argv[1])
    metrics: dict[str, Any] = {}
    atexit.register(write_results, out / f"{os.environ['RANK']}.json", metrics)
    metrics |= train_all(out) | {"threads": threads()}
