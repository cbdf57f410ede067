import copy
from functools import partial

import foreign
import pytest
import torch
from gap.models.generators import make_generator
from torch import nn

from gap.core.errors import GapWarning
from gap.hardening.initializers import GeneratorInit, GeneratorPopulation, RandomInit
from gap.hardening.inner_attacks import InnerAttack
from gap.hardening.task import AdversarialTraining
from gap.threat import Budget
from gap.training.task import with_adamw

BUDGET = Budget("linf", 0.1)


def backward(loss: torch.Tensor) -> None:
    loss.backward()


def make_training(net: nn.Module, **options) -> AdversarialTraining:
    mixture = [InnerAttack("fgsm", 0.5, RandomInit(), 1), InnerAttack("pgd", 0.5, RandomInit(), 2)]
    return AdversarialTraining(with_adamw(copy.deepcopy(net), 0.01), mixture, BUDGET, **{"decay": 0.5} | options)


def validation_metrics(pgd: float, train_attack: float | None = None) -> dict[str, float]:
    return {
        "accuracy": 1.0,
        "pgd_accuracy": pgd,
        "train_attack_accuracy": pgd if train_attack is None else train_attack,
    }


def test_adversarial_training_network_that_checks_its_version_is_restored() -> None:
    """Catches: best weights stored without the versions of the modules, which MNASNet refuses."""
    training = make_training(foreign.Versioned())
    training.on_validation_end(validation_metrics(0.9))
    for weight in training.modules["classifier"].network.parameters():
        nn.init.zeros_(weight)
    with pytest.warns(GapWarning, match="back to the weights with 90"):
        training.on_validation_end(validation_metrics(0.1))
    assert all(weight.any() for weight in training.modules["classifier"].network.parameters())


def test_training_step_repeated_raises_the_pgd_accuracy(pictures) -> None:
    torch.manual_seed(0)
    training = make_training(pictures.net)

    def pgd_accuracy() -> float:
        with torch.no_grad():
            return training.validation_step(pictures.images, pictures.labels)["pgd_accuracy"].float().mean().item()

    before = pgd_accuracy()
    for _ in range(80):
        training.training_step(pictures.images, pictures.labels, backward)
    assert pgd_accuracy() > before + 0.2


def test_training_step_trades_raises_robust_and_keeps_clean_accuracy(pictures) -> None:
    torch.manual_seed(0)
    mixture = [InnerAttack("trades", 1.0, RandomInit(), 2, beta=6.0)]
    training = AdversarialTraining(
        with_adamw(copy.deepcopy(pictures.net), 0.003), mixture, BUDGET, decay=0.5, clean_fraction=0.1
    )

    def mean_metrics() -> dict[str, float]:
        with torch.no_grad():
            return {
                name: values.double().mean().item()
                for name, values in training.validation_step(pictures.images, pictures.labels).items()
            }

    before = mean_metrics()
    for _ in range(100):
        metrics = training.training_step(pictures.images, pictures.labels, backward)
    after = mean_metrics()
    assert after["train_attack_accuracy"] > before["train_attack_accuracy"] + 0.2
    assert after["pgd_accuracy"] > before["pgd_accuracy"] + 0.05
    assert after["accuracy"] > 0.95 and metrics["train_robust_accuracy"] > 0.3


def test_training_step_reset_interval_resets_members_in_turn(pictures) -> None:
    resets: list[int] = []
    training = make_training(pictures.net, reset_interval=3)
    training.mixture[0].start.reset_member = resets.append
    for _ in range(7):
        training.training_step(pictures.images[:8], pictures.labels[:8], backward)
    assert resets == [1, 2]


def test_training_step_epsilon_warmup_is_linear(pictures) -> None:
    training = make_training(pictures.net, epsilon_warmup=9)
    epsilons = []
    for _ in range(12):
        epsilons.append(training._budget_now().epsilon)
        training.training_step(pictures.images[:8], pictures.labels[:8], backward)
    assert epsilons[0] == pytest.approx(0.01) and epsilons[4] == pytest.approx(0.05)
    assert epsilons[9:] == pytest.approx([0.1] * 3)


def test_training_step_clean_fraction_of_the_batch_is_not_attacked(pictures) -> None:
    training = make_training(pictures.net, clean_fraction=0.25)
    network = training.modules["classifier"].network
    batches: list[torch.Tensor] = []
    network.register_forward_pre_hook(lambda module, inputs: batches.append(inputs[0].detach()))
    training.training_step(pictures.images[:40], pictures.labels[:40], backward)
    changed = (batches[-1] != pictures.images[:40]).flatten(1).any(dim=1)
    assert changed.tolist() == [False] * 10 + [True] * 30


def test_training_step_attacks_run_in_eval_mode_and_the_mode_is_restored(pictures) -> None:
    modes: list[bool] = []
    net = nn.Sequential(nn.Dropout(0.5), pictures.net)
    training = make_training(net)
    network = training.modules["classifier"].network.train()
    network.register_forward_pre_hook(lambda module, inputs: modes.append(module.training))
    training.training_step(pictures.images[:8], pictures.labels[:8], backward)
    assert modes == [False, False, False, True]
    assert network.training and all(weight.requires_grad for weight in network.parameters())


def test_training_step_average_is_the_moving_average_of_the_weights(pictures) -> None:
    training = make_training(pictures.net, decay=0.5)
    weight = next(training.modules["classifier"].network.parameters())
    weights = []
    for _ in range(3):
        training.training_step(pictures.images[:8], pictures.labels[:8], backward)
        weights.append(weight.detach().clone())
    expected = 0.25 * weights[0] + 0.25 * weights[1] + 0.5 * weights[2]
    torch.testing.assert_close(next(training.averaged.module.parameters()).data, expected)


def test_on_validation_end_best_weights_are_those_of_the_highest_pgd_accuracy(pictures) -> None:
    training = make_training(pictures.net)
    best = []
    for accuracy in (0.3, 0.6, 0.5):
        training.training_step(pictures.images[:8], pictures.labels[:8], backward)
        training.on_validation_end(validation_metrics(accuracy))
        best.append(copy.deepcopy(training.best))
    assert not torch.equal(best[0]["1.weight"], best[1]["1.weight"])
    assert torch.equal(best[1]["1.weight"], best[2]["1.weight"])
    assert training.best_probe == 0.6


@pytest.mark.parametrize(
    "collapse", [validation_metrics(0.2), validation_metrics(0.55, train_attack=0.95)], ids=["collapsed", "overfitted"]
)
def test_on_validation_end_overfitting_restores_the_best_weights_and_adds_a_step(
    pictures, collapse: dict[str, float]
) -> None:
    training = make_training(pictures.net)
    training.training_step(pictures.images[:8], pictures.labels[:8], backward)
    training.on_validation_end(validation_metrics(0.6))
    training.training_step(pictures.images[:8], pictures.labels[:8], backward)
    with pytest.warns(
        GapWarning, match="back to the weights with 60.0%; gradient steps from now on: 2 of fgsm, 3 of pgd"
    ):
        training.on_validation_end(collapse)
    assert [inner_attack.steps for inner_attack in training.mixture] == [2, 3]
    assert not training.modules["classifier"].optimizer.state
    assert training.state_dict()["recoveries"] == training.recoveries and training.recoveries[0].startswith(
        "step 2: the classifier"
    )
    for network in (training.modules["classifier"].network, training.averaged.module):
        assert all(torch.equal(value, training.best[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize(("last", "steps"), [(None, [20, 20]), (2, [1, 2])], ids=["many steps", "the end"])
def test_on_validation_end_collapse_at_the_limit_of_steps_restores_without_a_step(
    pictures, last: int | None, steps: list[int]
) -> None:
    """At the limit of steps, or at the end of training, weights are restored with a warning, and no step is added."""
    training = make_training(pictures.net, last=last)
    for inner_attack, count in zip(training.mixture, steps, strict=True):
        inner_attack.steps = count
    training.training_step(pictures.images[:8], pictures.labels[:8], backward)
    training.on_validation_end(validation_metrics(0.6))
    training.training_step(pictures.images[:8], pictures.labels[:8], backward)
    with pytest.warns(
        GapWarning, match="fell: 10.0% accuracy under the validation PGD; back to the weights with 60.0%$"
    ):
        training.on_validation_end(validation_metrics(0.1))
    assert [inner_attack.steps for inner_attack in training.mixture] == steps
    assert torch.equal(training.modules["classifier"].network[1].weight, training.best["1.weight"])


def test_recover_classifier_robust_to_its_generator_alone_gets_gradient_steps(pictures) -> None:
    """Without recovery the classifier is robust to its generator alone; with it the PGD accuracy is higher."""

    def train(recover: bool) -> tuple[AdversarialTraining, float]:
        torch.manual_seed(0)
        generator = GeneratorPopulation(
            partial(make_generator, 1, encoder="strided-32", decoder=[16, 8], pixel_unshuffle=2)
        )
        mixture = [InnerAttack("generator", 1.0, GeneratorInit(with_adamw(generator, 0.005)), 0)]
        training = AdversarialTraining(
            with_adamw(copy.deepcopy(pictures.net), 0.01), mixture, Budget("linf", 0.06), decay=0.5, recover=recover
        )
        for step in range(120):
            training.training_step(pictures.images, pictures.labels, backward)
            if step % 20 == 19:
                with torch.no_grad():
                    metrics = training.validation_step(pictures.images, pictures.labels)
                training.on_validation_end({name: values.double().mean().item() for name, values in metrics.items()})
        return training, training.best_probe

    without_recovery, accuracy_without = train(recover=False)
    with pytest.warns(GapWarning, match="is robust only to its training attacks"):
        with_recovery, accuracy_with = train(recover=True)
    assert without_recovery.mixture[0].steps == 0 and not without_recovery.recoveries
    assert with_recovery.mixture[0].steps > 0 and accuracy_with > accuracy_without + 0.1


def test_training_step_averaged_network_has_matching_norm_statistics(pictures) -> None:
    """Catches: running statistics of the trained network in the average, instead of statistics for its own weights."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(144, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4))
    mixture = [InnerAttack("pgd", 1.0, RandomInit(), 1)]
    training = AdversarialTraining(with_adamw(network, 0.001), mixture, BUDGET, decay=0.9)
    for _ in range(120):
        training.training_step(pictures.images, pictures.labels, backward)
    averaged = training.averaged.module.eval()
    with torch.no_grad():
        attacked = mixture[0].attack(averaged, pictures.images, pictures.labels, BUDGET, training.loss).adversarial
        outputs = averaged(attacked)
        recomputed = copy.deepcopy(averaged)
        recomputed[2].reset_running_stats()
        recomputed[2].momentum = None
        recomputed.train()(attacked)
        expected = recomputed.eval()(attacked)
    difference = ((outputs - expected).abs().mean() / expected.std()).item()
    assert difference < 0.1


def test_on_validation_end_without_recover_collapse_changes_nothing(pictures) -> None:
    training = make_training(pictures.net, recover=False)
    training.on_validation_end(validation_metrics(0.6))
    training.on_validation_end(validation_metrics(0.1, train_attack=0.9))
    assert [inner_attack.steps for inner_attack in training.mixture] == [1, 2]
    assert training.best_probe == 0.6


def test_on_validation_end_during_epsilon_warmup_stores_no_best_weights(pictures) -> None:
    training = make_training(pictures.net, epsilon_warmup=5)
    training.on_validation_end(validation_metrics(0.9))
    assert not training.best


def test_adversarial_training_state_dict_is_restored(pictures) -> None:
    saved, restored = make_training(pictures.net), make_training(pictures.net)
    for _ in range(2):
        saved.training_step(pictures.images[:8], pictures.labels[:8], backward)
    saved.on_validation_end(validation_metrics(0.6))
    saved.mixture[0].steps = 4
    restored.load_state_dict(copy.deepcopy(saved.state_dict()))
    assert restored.taken == 2 and restored.best_probe == 0.6 and restored.mixture[0].steps == 4
    for name, value in saved.averaged.state_dict().items():
        assert torch.equal(value, restored.averaged.state_dict()[name])


def test_training_step_attacks_and_classifier_get_augmented_images(pictures) -> None:
    batches = []
    training = make_training(pictures.net, augmentation=lambda images: torch.full_like(images, 0.5))
    training.modules["classifier"].network.register_forward_hook(
        lambda net, inputs, output: batches.append(inputs[0].detach())
    )
    training.training_step(pictures.images, pictures.labels, backward)
    assert len(batches) == 4
    assert all(((images - 0.5).abs() <= BUDGET.epsilon + 1e-6).all() for images in batches)
