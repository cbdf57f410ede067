import copy

import pytest
import torch
from gap.models.generators import make_generator
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from gap.attacks.losses import find_loss
from gap.budget import Budget
from gap.errors import GapError
from gap.frozen import frozen
from gap.hardening.sparring import KINDS, Sparring, parse_mix, portions, step_size
from gap.hardening.starts import (
    FedGeneratorStart,
    GeneratorStart,
    RandomStart,
    Universals,
    UniversalStart,
)
from gap.training.job import Player, adam

LOSS = find_loss("capped-cross-entropy")
BUDGETS = [Budget("linf", 0.1), Budget("l2", 0.8)]


def generator(channels: int = 1) -> Player:
    return adam(make_generator(channels, encoder="strided-32", decoder=[16, 8], fold=2), 0.005)


def backward(loss: Tensor) -> None:
    loss.backward()


STARTS = {
    "random": RandomStart,
    "generator": lambda: GeneratorStart(generator()),
    "noisy generator": lambda: GeneratorStart(generator(), 0.5),
    "fed generator": lambda: FedGeneratorStart(generator(2)),
    "universal": lambda: UniversalStart(adam(Universals(3, 1, (12, 12)), 0.05)),
    "noisy universal": lambda: UniversalStart(adam(Universals(3, 1, (12, 12)), 0.05), 0.5),
}


@pytest.fixture
def net(pictures) -> nn.Module:
    return copy.deepcopy(pictures.net)


@pytest.mark.parametrize("budget", BUDGETS, ids=str)
@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("name", STARTS)
def test_attacks_stay_inside_the_budget(pictures, net: nn.Module, name: str, steps: int, budget: Budget) -> None:
    torch.manual_seed(0)
    sparring = Sparring(name, 1.0, STARTS[name](), steps)
    with frozen(net):
        bout = sparring.attack(net, pictures.images, pictures.labels, budget, LOSS, backward)
    moved = bout.adversarial.detach() - pictures.images
    assert budget.measure(moved).max() <= budget.epsilon * (1 + 1e-5)
    assert budget.measure(moved).mean() > 0.3 * budget.epsilon
    assert bout.adversarial.min() >= 0 and bout.adversarial.max() <= 1


@pytest.mark.parametrize("budget", BUDGETS, ids=str)
def test_more_steps_leave_less(pictures, net: nn.Module, budget: Budget) -> None:
    torch.manual_seed(0)
    left = []
    for steps in (0, 1, 4):
        with frozen(net):
            bout = Sparring("pgd", 1.0, RandomStart(), steps).attack(
                net, pictures.images, pictures.labels, budget, LOSS
            )
        left.append(pictures.accuracy(bout.adversarial))
    assert left[0] > left[1] + 0.1 and left[1] >= left[2]


def test_without_projection_noise_adds_to_the_step(pictures, net: nn.Module) -> None:
    torch.manual_seed(0)
    with frozen(net):
        bout = Sparring("fgsm", 1.0, RandomStart(reach=2.0), 1, projected=False).attack(
            net, torch.full((50, 1, 12, 12), 0.5), pictures.labels[:50], Budget("linf", 0.1), LOSS
        )
    moved = (bout.adversarial - 0.5).abs()
    assert 0.3 < moved.max() <= 0.325 + 1e-6


@pytest.mark.parametrize("steps", [0, 1])
@pytest.mark.parametrize("name", ["generator", "fed generator", "universal"])
def test_starts_learn_to_do_harm(pictures, net: nn.Module, name: str, steps: int) -> None:
    """From the first gradient step where there is one, else from the gradient of the classifier's own loss."""
    torch.manual_seed(0)
    budget, start = BUDGETS[0], STARTS[name]()
    sparring = Sparring(name, 1.0, start, steps)

    def left() -> float:
        with frozen(net), torch.no_grad():
            return pictures.accuracy(start(net, pictures.images, pictures.labels, budget))

    before = left()
    for _ in range(60):
        with frozen(net):
            bout = sparring.attack(net, pictures.images, pictures.labels, budget, LOSS, backward)
        if steps == 0:
            nn.functional.cross_entropy(net(bout.adversarial), pictures.labels).backward()
        bout.learn(backward)
    assert left() < before - 0.2


def test_the_classifier_is_not_touched(pictures, net: nn.Module) -> None:
    before = copy.deepcopy(net.state_dict())
    with frozen(net):
        for name, make in STARTS.items():
            Sparring(name, 1.0, make(), 2).attack(net, pictures.images, pictures.labels, BUDGETS[0], LOSS, backward)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(weight.grad is None for weight in net.parameters())


def test_no_attack_learns_while_it_is_judged(pictures, net: nn.Module) -> None:
    start = GeneratorStart(generator())
    before = copy.deepcopy(start.player.network.state_dict())
    with frozen(net), torch.no_grad():
        bout = Sparring("generator-start", 1.0, start, 2).attack(
            net, pictures.images, pictures.labels, BUDGETS[0], LOSS
        )
        bout.learn(backward)
    weights = {name for name, _ in start.player.network.named_parameters()}
    after = start.player.network.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in weights)


def test_mix_sums_to_one() -> None:
    mix = parse_mix(["generator-start=0.3", "universal-start=0.3", "pgd=0.6", "fgsm=0"])
    assert mix == pytest.approx({"generator-start": 0.25, "universal-start": 0.25, "pgd": 0.5})
    assert parse_mix(["pgd"]) == {"pgd": 1.0}
    assert parse_mix(["pgd", "pgd", "fgsm=2"]) == {"pgd": 0.5, "fgsm": 0.5}


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["pgb"], "did you mean pgd"),
        (["pgd=0"], "sum to 0"),
        (["pgd=-1"], "at least 0"),
        (["pgd=nan"], "finite"),
        (["pgd=much"], "cannot read the weight"),
    ],
)
def test_a_mix_that_cannot_be(texts: list[str], message: str) -> None:
    with pytest.raises(GapError, match=message):
        parse_mix(texts)


@given(st.integers(0, 300), st.lists(st.floats(0, 1), min_size=1, max_size=8).filter(lambda shares: sum(shares) > 0.01))
def test_portions_are_fair_and_whole(count: int, shares: list[float]) -> None:
    shares = [share / sum(shares) for share in shares]
    given_out = portions(count, shares)
    assert sum(given_out) == count and min(given_out) >= 0
    assert all(abs(got - count * share) <= 1 + 1e-6 for got, share in zip(given_out, shares, strict=True))


@given(st.integers(1, 100))
def test_steps_can_cross_the_ball(steps: int) -> None:
    assert steps * step_size(steps) >= 1.25


def test_every_kind_is_described() -> None:
    assert all(KINDS.values())
