import copy
from functools import partial

import pytest
import torch
from gap.models.generators import make_generator
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from gap.attacks.losses import find_loss
from gap.classifiers.classifier import load_classifier
from gap.core.errors import GapError
from gap.core.frozen import frozen
from gap.hardening.initializers import (
    FedGeneratorStart,
    Generators,
    GeneratorStart,
    RandomStart,
    Universals,
    UniversalStart,
)
from gap.hardening.inner_attacks import (
    KINDS,
    Named,
    Sparring,
    check_shares,
    closeness,
    parse_mix,
    parse_name,
    portions,
)
from gap.hardening.train import HardenOptions, make_job, make_sparring
from gap.threat import Budget
from gap.training.task import Player, adam

LOSS = find_loss("capped-cross-entropy")
BUDGETS = [Budget("linf", 0.1), Budget("l2", 0.8)]


def generator(channels: int = 1, count: int = 1) -> Player:
    make = partial(make_generator, channels, encoder="strided-32", decoder=[16, 8], fold=2)
    return adam(Generators(make, count), 0.005)


def backward(loss: Tensor) -> None:
    loss.backward()


STARTS = {
    "random": RandomStart,
    "generator": lambda: GeneratorStart(generator()),
    "noisy generator": lambda: GeneratorStart(generator(), 0.5),
    "population": lambda: GeneratorStart(generator(count=3)),
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
    assert 0.29 < moved.max() <= 0.3 + 1e-6


@pytest.mark.parametrize(("steps", "smoothing"), [(0, 0.0), (0, 0.3), (1, 0.0)])
@pytest.mark.parametrize("name", ["generator", "population", "fed generator", "universal"])
def test_starts_learn_to_do_harm(pictures, net: nn.Module, name: str, steps: int, smoothing: float) -> None:
    """From the first gradient step where there is one, else from the gradient of the classifier's own loss, which must
    not praise a sure classifier for being less sure."""
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
            bout.lesson(net(bout.seen), smoothing).backward()
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


def test_a_population_shares_the_batch_and_is_renewed_in_turn() -> None:
    torch.manual_seed(0)
    player = generator(count=3)
    start, images = GeneratorStart(player), torch.rand(7, 1, 12, 12)
    members = player.network.eval().members
    expected = torch.cat([members[0](images[:3]), members[1](images[3:5]), members[2](images[5:])])
    assert torch.equal(player.network(images), expected)
    player.network.train()(images[:2]).sum().backward()
    assert player.network(images[:2]).shape == images[:2].shape
    assert all(weight.grad is not None for weight in player.network.parameters() if weight.requires_grad)
    player.network.train()(images).square().sum().backward()
    player.optimizer.step()
    before, drawn = [copy.deepcopy(member.state_dict()) for member in members], torch.random.get_rng_state()
    start.renew(4)
    same = [
        all(torch.equal(value, old[name]) for name, value in member.state_dict().items())
        for member, old in zip(members, before, strict=True)
    ]
    assert same == [True, False, True]
    assert not any(
        torch.equal(value, before[1][name]) for name, value in members[1].named_parameters() if value.std() > 0
    )
    assert not any(weight in player.optimizer.state for weight in members[1].parameters())
    assert all(weight in player.optimizer.state for weight in members[2].parameters())
    assert torch.equal(torch.random.get_rng_state(), drawn)


def test_no_two_populations_are_renewed_alike() -> None:
    """Neither those of two attacks, nor those of two seeds; with the same seed, they are."""

    def renewed() -> list[Tensor]:
        players = [generator(count=2) for _ in range(2)]
        return [next(player.network.renew(1).parameters()).detach().clone() for player in players]

    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(renewed())
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
    assert not torch.equal(found[0][0], found[0][1]) and not torch.equal(found[0][0], found[2][0])


def test_closeness_is_minus_the_divergence() -> None:
    torch.manual_seed(0)
    clean, attacked = torch.randn(6, 4, dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64)
    p, q = clean.softmax(dim=1), attacked.softmax(dim=1)
    assert torch.allclose(closeness(attacked, clean, None).double(), -(p * (p / q).log()).sum(dim=1), atol=1e-5)
    assert closeness(clean, clean, None).abs().max() < 1e-6


def test_trades_keeps_the_clean_prediction(pictures, net: nn.Module) -> None:
    """Its images are far from the clean prediction, also of a wrong label; its lesson is Zhang et al.'s sum."""
    torch.manual_seed(0)
    images, labels = pictures.images[:50], (pictures.labels[:50] + 1) % 4
    sparring = Sparring("trades", 1.0, RandomStart(), 3, beta=6.0)
    with frozen(net), torch.no_grad():
        bout = sparring.attack(net, images, labels, BUDGETS[0], LOSS)
        random = RandomStart()(net, images, labels, BUDGETS[0])
        clean, attacked = net(images), net(bout.adversarial)
    assert BUDGETS[0].measure(bout.adversarial - images).max() <= 0.1 + 1e-6
    assert closeness(attacked, clean, None).mean() < 2 * closeness(net(random), clean, None).mean() < 0
    assert torch.equal(bout.seen, torch.cat([images, bout.adversarial]))
    expected = nn.functional.cross_entropy(clean, labels) - 6.0 * closeness(attacked, clean, None).mean()
    lesson = bout.lesson(torch.cat([clean, attacked]), 0.0) / 50
    assert lesson.item() == pytest.approx(expected.item(), rel=1e-4)


def test_trades_climbs_in_float32_where_networks_multiply_in_bfloat16(pictures, net: nn.Module) -> None:
    images, labels, budget = pictures.images[:100], pictures.labels[:100], Budget("l2", 0.05)
    sparring = Sparring("trades", 1.0, RandomStart(), 1, beta=6.0)
    moved = []
    for enabled in (False, True):
        torch.manual_seed(0)
        with frozen(net), torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            moved.append(sparring.attack(net, images, labels, budget, LOSS).adversarial - images)
    assert torch.equal(*moved) and budget.measure(moved[0]).min() > 0


def test_mix_sums_to_one() -> None:
    mix = parse_mix(["generator-start=0.3", "universal-start=0.3", "pgd=0.6", "fgsm=0"])
    assert mix == pytest.approx({"generator-start": 0.25, "universal-start": 0.25, "pgd": 0.5})
    assert parse_mix(["pgd"]) == {"pgd": 1.0}
    assert parse_mix(["generator-start@a/b=3", "generator-start"]) == {
        "generator-start@a/b": 0.75,
        "generator-start": 0.25,
    }
    assert parse_mix(["generator-start@runs/lr=0.1/g", "pgd=3"]) == {"generator-start@runs/lr=0.1/g": 0.25, "pgd": 0.75}
    assert parse_mix(["generator@lr=0.1/g=3", "pgd"]) == {"generator@lr=0.1/g": 0.75, "pgd": 0.25}
    assert parse_mix(["pgd", "pgd", "fgsm=2"]) == {"pgd": 0.5, "fgsm": 0.5}
    assert parse_mix(["pgd:steps=7", "trades:steps=2=3"]) == {"pgd:steps=7": 0.25, "trades:steps=2": 0.75}
    assert parse_mix(["pgd:steps=2", "pgd:steps=02"]) == {"pgd:steps=2": 1.0}
    assert parse_mix(["generator-start@lr=0.1/g:steps=3"]) == {"generator-start@lr=0.1/g:steps=3": 1.0}


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["pgb"], "did you mean pgd"),
        (["pgd=0"], "sum to 0"),
        (["pgd=-1"], "at least 0"),
        (["pgd=nan"], "finite"),
        (["pgd=much"], "cannot read the weight"),
        (["pgd@runs/a"], "only generator, generator-start, trades-start come from a folder"),
        (["generator@=1"], "only generator"),
        (["fgsm:steps=2"], "are given steps, not fgsm"),
        (["pgd:steps=0"], "whole number from 1 to 50"),
        (["pgd:steps=two"], "whole number from 1 to 50"),
        (["pgd:steps==0.5"], "whole number from 1 to 50"),
        (["pgd:steps=7:steps=3"], "cannot read the attack"),
        (["pgd:step=2=0.5"], "cannot read the attack 'pgd:step=2'; write NAME, NAME:steps=3"),
        (["generator-start:steps=3@runs/a"], "at its end"),
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
    assert steps * Sparring("pgd", 1.0, RandomStart(), steps).step_size >= 1.25
    assert steps * Sparring("fgsm", 1.0, RandomStart(), steps, projected=False).step_size == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("attack", "given", "option"),
    [
        (["fgsm"], {"steps": 7}, "--steps"),
        (["pgd:steps=3"], {"steps": 7}, "--steps"),
        (["pgd"], {"beta": 2.0}, "--beta"),
        (["pgd"], {"generators": 2}, "--generators"),
        (["universal-start"], {"renew": 1.0}, "--renew"),
        (["pgd", "trades"], {"generator_lr": 0.1}, "--generator-lr"),
        (["generator-start"], {"universals": 3}, "--universals"),
        (["pgd"], {"generator": {"encoder": "resnet18"}}, "--encoder"),
        (["generator-start@somewhere"], {"generator": {"fold": 2}}, "--fold"),
    ],
)
def test_an_option_that_no_attack_takes_is_refused(attack: list[str], given: dict[str, float], option: str) -> None:
    told = {"classifier": "mnist-cnn", "budget": "linf:0.1", **given}
    with pytest.raises(GapError, match=f"{option} does nothing"):
        HardenOptions.read({**told, "attack": attack})
    HardenOptions.read({**told, "attack": ["pgd", "trades", "generator-start", "universal"]})


def test_a_share_that_is_no_image_is_refused() -> None:
    check_shares(128, 0.5, {"pgd": 0.99, "fgsm": 0.01})
    with pytest.raises(GapError, match="fgsm would get none of the 128 images"):
        check_shares(128, 0.5, {"pgd": 0.997, "fgsm": 0.003})


def test_each_attack_of_a_mix_takes_its_own_steps_in_training() -> None:
    """Forward passes of single images by the attacks, and by the classifier that learns: of TRADES two."""
    options = HardenOptions.read(
        {"classifier": "mnist-cnn", "budget": "linf:0.1", "attack": ["pgd:steps=1", "trades:steps=3"], "warmup": 0.0}
    )
    classifier = load_classifier("mnist-cnn")
    job = make_job(options, classifier, steps=10)
    seen: list[int] = []
    job.lean = lambda: Counted(classifier, seen)
    job.step(torch.rand(20, 1, 28, 28), torch.arange(20) % 10, backward)
    assert seen == [10, *[10] * 4]


class Counted(nn.Module):
    """A classifier that notes how many images it is shown."""

    def __init__(self, classifier: nn.Module, seen: list[int]) -> None:
        super().__init__()
        self.classifier, self.seen = classifier, seen

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(len(images))
        return self.classifier(images)


def test_steps_of_their_own_in_one_mix() -> None:
    options = HardenOptions.read({"classifier": "mnist-cnn", "budget": "linf:0.1", "steps": 4})
    made = load_classifier("mnist-cnn")
    steps = {name: make_sparring(name, 0.5, options, made).steps for name in ("pgd", "pgd:steps=7", "trades:steps=2")}
    assert steps == {"pgd": 4, "pgd:steps=7": 7, "trades:steps=2": 2}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_can_be_made(kind: str) -> None:
    small = {"encoder": "strided-32", "decoder": [8], "fold": 4}
    options = HardenOptions.read({"classifier": "mnist-cnn", "budget": "linf:0.1", "generator": small})
    made, images = load_classifier("mnist-cnn"), torch.rand(4, 1, 28, 28)
    sparring = make_sparring(kind, 0.5, options, made)
    assert (sparring.name, sparring.share, sparring.projected, sparring.beta) == (
        kind, 0.5, kind != "fgsm", 6.0 if "trades" in kind else None,
    )  # fmt: skip
    with frozen(made):
        bout = sparring.attack(made, images, torch.arange(4), Budget("linf", 0.1), LOSS, backward)
    assert bout.adversarial.shape == images.shape


@pytest.mark.parametrize("folder", ["me@lab", "a=0.5", "a:steps=3", "b=1:steps=3", "a:b"])
def test_a_folder_that_exists_keeps_the_separators_in_its_name(tmp_path, monkeypatch, folder: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / folder).mkdir()
    name = f"generator-start@{folder}"
    assert parse_name(name) == Named("generator-start", folder, None)
    assert parse_name(f"{name}:steps=2") == Named("generator-start", folder, 2)
    assert parse_mix([name, "pgd=3"]) == {name: 0.25, "pgd": 0.75}
    assert parse_mix([f"{name}=3", "pgd"]) == {name: 0.75, "pgd": 0.25}
    assert parse_mix([f"{name}:steps=2=3", "pgd"]) == {f"{name}:steps=2": 0.75, "pgd": 0.25}


def test_a_folder_that_does_not_exist_ends_at_its_steps_and_its_weight() -> None:
    assert parse_mix(["generator-start@a:steps=2=3", "pgd"]) == {"generator-start@a:steps=2": 0.75, "pgd": 0.25}


@pytest.mark.parametrize("steps", ["9" * 5000, "²", "-1", ""])
def test_steps_that_are_no_number_are_refused(steps: str) -> None:
    with pytest.raises(GapError, match="must be a whole number from 1"):
        parse_name(f"pgd:steps={steps}")
