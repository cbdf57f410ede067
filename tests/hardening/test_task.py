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


def make(net: nn.Module, **options) -> AdversarialTraining:
    mixture = [InnerAttack("fgsm", 0.5, RandomInit(), 1), InnerAttack("pgd", 0.5, RandomInit(), 2)]
    return AdversarialTraining(with_adamw(copy.deepcopy(net), 0.01), mixture, BUDGET, **{"decay": 0.5} | options)


def found(probe: float, inner_attack: float | None = None) -> dict[str, float]:
    return {
        "accuracy": 1.0,
        "pgd_accuracy": probe,
        "train_attack_accuracy": probe if inner_attack is None else inner_attack,
    }


def test_adversarial_training_restores_network_that_asks_for_its_version() -> None:
    """Catches: best weights that lose the versions of the modules, which MNASNet refuses."""
    training = make(foreign.Versioned())
    training.on_validation_end(found(0.9))
    for weight in training.modules["classifier"].network.parameters():
        nn.init.zeros_(weight)
    with pytest.warns(GapWarning, match="back to the weights with 90"):
        training.on_validation_end(found(0.1))
    assert all(weight.any() for weight in training.modules["classifier"].network.parameters())


def test_it_hardens(pictures) -> None:
    torch.manual_seed(0)
    training = make(pictures.net)

    def left() -> float:
        with torch.no_grad():
            return training.validation_step(pictures.images, pictures.labels)["pgd_accuracy"].float().mean().item()

    before = left()
    for _ in range(80):
        training.training_step(pictures.images, pictures.labels, backward)
    assert left() > before + 0.2


def test_trades_hardens_and_stays_right(pictures) -> None:
    torch.manual_seed(0)
    mixture = [InnerAttack("trades", 1.0, RandomInit(), 2, beta=6.0)]
    training = AdversarialTraining(
        with_adamw(copy.deepcopy(pictures.net), 0.003), mixture, BUDGET, decay=0.5, clean_fraction=0.1
    )

    def left() -> dict[str, float]:
        with torch.no_grad():
            return {
                name: each.double().mean().item()
                for name, each in training.validation_step(pictures.images, pictures.labels).items()
            }

    before = left()
    for _ in range(100):
        metrics = training.training_step(pictures.images, pictures.labels, backward)
    after = left()
    assert after["train_attack_accuracy"] > before["train_attack_accuracy"] + 0.2
    assert after["pgd_accuracy"] > before["pgd_accuracy"] + 0.05
    assert after["accuracy"] > 0.95 and metrics["train_robust_accuracy"] > 0.3


def test_generators_are_renewed_on_time(pictures) -> None:
    turns: list[int] = []
    training = make(pictures.net, reset_interval=3)
    training.mixture[0].start.reset_member = turns.append
    for _ in range(7):
        training.training_step(pictures.images[:8], pictures.labels[:8], backward)
    assert turns == [1, 2]


def test_epsilon_rises(pictures) -> None:
    training = make(pictures.net, epsilon_warmup=9)
    seen = []
    for _ in range(12):
        seen.append(training._budget_now().epsilon)
        training.training_step(pictures.images[:8], pictures.labels[:8], backward)
    assert seen[0] == pytest.approx(0.01) and seen[4] == pytest.approx(0.05)
    assert seen[9:] == pytest.approx([0.1] * 3)


def test_the_clean_share_stays_clean(pictures) -> None:
    training = make(pictures.net, clean_fraction=0.25)
    network = training.modules["classifier"].network
    given: list[torch.Tensor] = []
    network.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0].detach()))
    training.training_step(pictures.images[:40], pictures.labels[:40], backward)
    changed = (given[-1] != pictures.images[:40]).flatten(1).any(dim=1)
    assert changed.tolist() == [False] * 10 + [True] * 30


def test_modes_are_put_back_and_attacks_see_eval_mode(pictures) -> None:
    modes: list[bool] = []
    net = nn.Sequential(nn.Dropout(0.5), pictures.net)
    training = make(net)
    network = training.modules["classifier"].network.train()
    network.register_forward_pre_hook(lambda module, inputs: modes.append(module.training))
    training.training_step(pictures.images[:8], pictures.labels[:8], backward)
    assert modes == [False, False, False, True]
    assert network.training and all(weight.requires_grad for weight in network.parameters())


def test_the_average_is_of_the_weights(pictures) -> None:
    training = make(pictures.net, decay=0.5)
    weight = next(training.modules["classifier"].network.parameters())
    seen = []
    for _ in range(3):
        training.training_step(pictures.images[:8], pictures.labels[:8], backward)
        seen.append(weight.detach().clone())
    expected = 0.25 * seen[0] + 0.25 * seen[1] + 0.5 * seen[2]
    torch.testing.assert_close(next(training.averaged.module.parameters()).data, expected)


def test_the_best_under_the_probe_is_kept(pictures) -> None:
    training = make(pictures.net)
    kept = []
    for probe in (0.3, 0.6, 0.5):
        training.training_step(pictures.images[:8], pictures.labels[:8], backward)
        training.on_validation_end(found(probe))
        kept.append(copy.deepcopy(training.best))
    assert not torch.equal(kept[0]["1.weight"], kept[1]["1.weight"])
    assert torch.equal(kept[1]["1.weight"], kept[2]["1.weight"])
    assert training.best_probe == 0.6


@pytest.mark.parametrize("collapse", [found(0.2), found(0.55, inner_attack=0.95)], ids=["fallen", "deceived"])
def test_a_collapse_brings_back_the_best_weights_and_adds_a_step(pictures, collapse: dict[str, float]) -> None:
    training = make(pictures.net)
    training.training_step(pictures.images[:8], pictures.labels[:8], backward)
    training.on_validation_end(found(0.6))
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
def test_where_no_step_is_to_be_given_a_collapse_is_told(pictures, last: int | None, steps: list[int]) -> None:
    training = make(pictures.net, last=last)
    for inner_attack, given in zip(training.mixture, steps, strict=True):
        inner_attack.steps = given
    training.training_step(pictures.images[:8], pictures.labels[:8], backward)
    training.on_validation_end(found(0.6))
    training.training_step(pictures.images[:8], pictures.labels[:8], backward)
    with pytest.warns(
        GapWarning, match="fell: 10.0% accuracy under the validation PGD; back to the weights with 60.0%$"
    ):
        training.on_validation_end(found(0.1))
    assert [inner_attack.steps for inner_attack in training.mixture] == steps
    assert torch.equal(training.modules["classifier"].network[1].weight, training.best["1.weight"])


def test_the_probe_catches_who_is_robust_to_its_generator_alone(pictures) -> None:
    """The plain form: the classifier learns what its generator does, and falls to gradients. With the probe it gets
    gradient steps, and withstands them better than without."""

    def trained(recover: bool) -> tuple[AdversarialTraining, float]:
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
                    judged = training.validation_step(pictures.images, pictures.labels)
                training.on_validation_end({name: each.double().mean().item() for name, each in judged.items()})
        return training, training.best_probe

    plain, left_plain = trained(recover=False)
    with pytest.warns(GapWarning, match="is robust only to its training attacks"):
        caught, left_caught = trained(recover=True)
    assert plain.mixture[0].steps == 0 and not plain.recoveries
    assert caught.mixture[0].steps > 0 and left_caught > left_plain + 0.1


def test_the_averages_norms_have_the_statistics_of_its_weights(pictures) -> None:
    """What the average gives in eval mode is what it gives with statistics taken anew from what it learned on."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(144, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4))
    mixture = [InnerAttack("pgd", 1.0, RandomInit(), 1)]
    training = AdversarialTraining(with_adamw(network, 0.001), mixture, BUDGET, decay=0.9)
    for _ in range(120):
        training.training_step(pictures.images, pictures.labels, backward)
    averaged = training.averaged.module.eval()
    with torch.no_grad():
        attacked = mixture[0].attack(averaged, pictures.images, pictures.labels, BUDGET, training.loss).adversarial
        kept = averaged(attacked)
        anew = copy.deepcopy(averaged)
        anew[2].reset_running_stats()
        anew[2].momentum = None
        anew.train()(attacked)
        fresh = anew.eval()(attacked)
    apart = ((kept - fresh).abs().mean() / fresh.std()).item()
    assert apart < 0.1


def test_who_does_not_watch_sees_no_collapse(pictures) -> None:
    training = make(pictures.net, recover=False)
    training.on_validation_end(found(0.6))
    training.on_validation_end(found(0.1, inner_attack=0.9))
    assert [inner_attack.steps for inner_attack in training.mixture] == [1, 2]
    assert training.best_probe == 0.6


def test_nothing_is_kept_while_epsilon_rises(pictures) -> None:
    training = make(pictures.net, epsilon_warmup=5)
    training.on_validation_end(found(0.9))
    assert not training.best


def test_state_comes_back(pictures) -> None:
    one, two = make(pictures.net), make(pictures.net)
    for _ in range(2):
        one.training_step(pictures.images[:8], pictures.labels[:8], backward)
    one.on_validation_end(found(0.6))
    one.mixture[0].steps = 4
    two.load_state_dict(copy.deepcopy(one.state_dict()))
    assert two.taken == 2 and two.best_probe == 0.6 and two.mixture[0].steps == 4
    for name, value in one.averaged.state_dict().items():
        assert torch.equal(value, two.averaged.state_dict()[name])


def test_everyone_sees_augmented_images(pictures) -> None:
    seen = []
    training = make(pictures.net, augmentation=lambda images: torch.full_like(images, 0.5))
    training.modules["classifier"].network.register_forward_hook(lambda net, given, out: seen.append(given[0].detach()))
    training.training_step(pictures.images, pictures.labels, backward)
    assert len(seen) == 4
    assert all(((images - 0.5).abs() <= BUDGET.epsilon + 1e-6).all() for images in seen)
