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
    GeneratorInit,
    GeneratorPopulation,
    GradientGeneratorInit,
    PerturbationBank,
    RandomInit,
    UniversalInit,
)
from gap.hardening.inner_attacks import (
    InnerAttack,
    InnerAttackSpec,
    allocate,
    check_mixture,
    negative_kl,
    parse_inner_attack,
    parse_mixture,
)
from gap.hardening.options import INNER_ATTACKS, HardenOptions
from gap.hardening.train import make_inner_attack, make_training
from gap.threat import Budget
from gap.training.task import OptimizedModule, with_adamw

LOSS = find_loss("capped-cross-entropy")
BUDGETS = [Budget("linf", 0.1), Budget("l2", 0.8)]


def generator(channels: int = 1, count: int = 1) -> OptimizedModule:
    make = partial(make_generator, channels, encoder="strided-32", decoder=[16, 8], pixel_unshuffle=2)
    return with_adamw(GeneratorPopulation(make, count), 0.005)


def backward(loss: Tensor) -> None:
    loss.backward()


INITIALIZERS = {
    "random": RandomInit,
    "generator": lambda: GeneratorInit(generator()),
    "noisy generator": lambda: GeneratorInit(generator(), 0.5),
    "population": lambda: GeneratorInit(generator(count=3)),
    "gradient generator": lambda: GradientGeneratorInit(generator(2)),
    "universal": lambda: UniversalInit(with_adamw(PerturbationBank(3, 1, (12, 12)), 0.05)),
    "noisy universal": lambda: UniversalInit(with_adamw(PerturbationBank(3, 1, (12, 12)), 0.05), 0.5),
}


@pytest.fixture
def net(pictures) -> nn.Module:
    return copy.deepcopy(pictures.net)


@pytest.mark.parametrize("budget", BUDGETS, ids=str)
@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("name", INITIALIZERS)
def test_inner_attack_images_stay_within_the_budget(
    pictures, net: nn.Module, name: str, steps: int, budget: Budget
) -> None:
    torch.manual_seed(0)
    inner_attack = InnerAttack(name, 1.0, INITIALIZERS[name](), steps)
    with frozen(net):
        attack_batch = inner_attack.attack(net, pictures.images, pictures.labels, budget, LOSS, backward)
    perturbation = attack_batch.adversarial.detach() - pictures.images
    assert budget.norm_of(perturbation).max() <= budget.epsilon * (1 + 1e-5)
    assert budget.norm_of(perturbation).mean() > 0.3 * budget.epsilon
    assert attack_batch.adversarial.min() >= 0 and attack_batch.adversarial.max() <= 1


@pytest.mark.parametrize("budget", BUDGETS, ids=str)
def test_inner_attack_more_steps_lower_the_accuracy(pictures, net: nn.Module, budget: Budget) -> None:
    torch.manual_seed(0)
    accuracies = []
    for steps in (0, 1, 4):
        with frozen(net):
            attack_batch = InnerAttack("pgd", 1.0, RandomInit(), steps).attack(
                net, pictures.images, pictures.labels, budget, LOSS
            )
        accuracies.append(pictures.accuracy(attack_batch.adversarial))
    assert accuracies[0] > accuracies[1] + 0.1 and accuracies[1] >= accuracies[2]


def test_inner_attack_without_projection_noise_and_step_add_up(pictures, net: nn.Module) -> None:
    torch.manual_seed(0)
    with frozen(net):
        attack_batch = InnerAttack("fgsm", 1.0, RandomInit(radius_scale=2.0), 1, projected=False).attack(
            net, torch.full((50, 1, 12, 12), 0.5), pictures.labels[:50], Budget("linf", 0.1), LOSS
        )
    perturbation = (attack_batch.adversarial - 0.5).abs()
    assert 0.29 < perturbation.max() <= 0.3 + 1e-6


@pytest.mark.parametrize(("steps", "label_smoothing"), [(0, 0.0), (0, 0.3), (1, 0.0)])
@pytest.mark.parametrize("name", ["generator", "population", "gradient generator", "universal"])
def test_initializer_trained_on_a_classifier_lowers_its_accuracy(
    pictures, net: nn.Module, name: str, steps: int, label_smoothing: float
) -> None:
    """With 0 steps an initializer learns from the loss of the classifier; label smoothing may reverse its gradient."""
    torch.manual_seed(0)
    budget, initializer = BUDGETS[0], INITIALIZERS[name]()
    inner_attack = InnerAttack(name, 1.0, initializer, steps)

    def accuracy() -> float:
        with frozen(net), torch.no_grad():
            return pictures.accuracy(initializer(net, pictures.images, pictures.labels, budget))

    before = accuracy()
    for _ in range(60):
        with frozen(net):
            attack_batch = inner_attack.attack(net, pictures.images, pictures.labels, budget, LOSS, backward)
        if steps == 0:
            attack_batch.classifier_loss(net(attack_batch.classifier_inputs), label_smoothing).backward()
        attack_batch.update(backward)
    assert accuracy() < before - 0.2


def test_inner_attack_leaves_the_classifier_unchanged(pictures, net: nn.Module) -> None:
    before = copy.deepcopy(net.state_dict())
    with frozen(net):
        for name, make in INITIALIZERS.items():
            InnerAttack(name, 1.0, make(), 2).attack(net, pictures.images, pictures.labels, BUDGETS[0], LOSS, backward)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(weight.grad is None for weight in net.parameters())


def test_inner_attack_in_validation_does_not_train_its_generator(pictures, net: nn.Module) -> None:
    initializer = GeneratorInit(generator())
    before = copy.deepcopy(initializer.module.network.state_dict())
    with frozen(net), torch.no_grad():
        attack_batch = InnerAttack("generator-start", 1.0, initializer, 2).attack(
            net, pictures.images, pictures.labels, BUDGETS[0], LOSS
        )
        attack_batch.update(backward)
    weights = {name for name, _ in initializer.module.network.named_parameters()}
    after = initializer.module.network.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in weights)


def test_generator_population_splits_the_batch_and_resets_one_member_at_a_time() -> None:
    torch.manual_seed(0)
    module = generator(count=3)
    initializer, images = GeneratorInit(module), torch.rand(7, 1, 12, 12)
    members = module.network.eval().members
    expected = torch.cat([members[0](images[:3]), members[1](images[3:5]), members[2](images[5:])])
    assert torch.equal(module.network(images), expected)
    module.network.train()(images[:2]).sum().backward()
    assert module.network(images[:2]).shape == images[:2].shape
    assert all(weight.grad is not None for weight in module.network.parameters() if weight.requires_grad)
    module.network.train()(images).square().sum().backward()
    module.optimizer.step()
    before, random_state = [copy.deepcopy(member.state_dict()) for member in members], torch.random.get_rng_state()
    initializer.reset_member(4)
    unchanged = [
        all(torch.equal(value, old[name]) for name, value in member.state_dict().items())
        for member, old in zip(members, before, strict=True)
    ]
    assert unchanged == [True, False, True]
    assert not any(
        torch.equal(value, before[1][name]) for name, value in members[1].named_parameters() if value.std() > 0
    )
    assert not any(weight in module.optimizer.state for weight in members[1].parameters())
    assert all(weight in module.optimizer.state for weight in members[2].parameters())
    assert torch.equal(torch.random.get_rng_state(), random_state)


def test_generator_population_reset_weights_depend_on_the_population_and_the_seed() -> None:
    """Catches: equal weights after a reset in two attacks or two seeds, and other weights with the same seed."""

    def reset_weights() -> list[Tensor]:
        modules = [generator(count=2) for _ in range(2)]
        return [next(module.network.reset_member(1).parameters()).detach().clone() for module in modules]

    weights = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        weights.append(reset_weights())
    assert torch.equal(weights[0][0], weights[1][0]) and torch.equal(weights[0][1], weights[1][1])
    assert not torch.equal(weights[0][0], weights[0][1]) and not torch.equal(weights[0][0], weights[2][0])


def test_negative_kl_equals_minus_the_divergence() -> None:
    torch.manual_seed(0)
    clean, attacked = torch.randn(6, 4, dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64)
    p, q = clean.softmax(dim=1), attacked.softmax(dim=1)
    assert torch.allclose(negative_kl(attacked, clean, None).double(), -(p * (p / q).log()).sum(dim=1), atol=1e-5)
    assert negative_kl(clean, clean, None).abs().max() < 1e-6


def test_trades_attacks_the_clean_prediction_and_has_the_loss_of_its_paper(pictures, net: nn.Module) -> None:
    """Catches: images or a loss that use the labels where Zhang et al. (2019) use the clean prediction."""
    torch.manual_seed(0)
    images, labels = pictures.images[:50], (pictures.labels[:50] + 1) % 4
    inner_attack = InnerAttack("trades", 1.0, RandomInit(), 3, beta=6.0)
    with frozen(net), torch.no_grad():
        attack_batch = inner_attack.attack(net, images, labels, BUDGETS[0], LOSS)
        random = RandomInit()(net, images, labels, BUDGETS[0])
        clean, attacked = net(images), net(attack_batch.adversarial)
    assert BUDGETS[0].norm_of(attack_batch.adversarial - images).max() <= 0.1 + 1e-6
    assert negative_kl(attacked, clean, None).mean() < 2 * negative_kl(net(random), clean, None).mean() < 0
    assert torch.equal(attack_batch.classifier_inputs, torch.cat([images, attack_batch.adversarial]))
    expected = nn.functional.cross_entropy(clean, labels) - 6.0 * negative_kl(attacked, clean, None).mean()
    classifier_loss = attack_batch.classifier_loss(torch.cat([clean, attacked]), 0.0) / 50
    assert classifier_loss.item() == pytest.approx(expected.item(), rel=1e-4)


def test_trades_under_autocast_computes_its_divergence_in_float32(pictures, net: nn.Module) -> None:
    images, labels, budget = pictures.images[:100], pictures.labels[:100], Budget("l2", 0.05)
    inner_attack = InnerAttack("trades", 1.0, RandomInit(), 1, beta=6.0)
    perturbations = []
    for enabled in (False, True):
        torch.manual_seed(0)
        with frozen(net), torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            perturbations.append(inner_attack.attack(net, images, labels, budget, LOSS).adversarial - images)
    assert torch.equal(*perturbations) and budget.norm_of(perturbations[0]).min() > 0


def test_parse_mixture_fractions_sum_to_one() -> None:
    mixture = parse_mixture(["generator-start=0.3", "universal-start=0.3", "pgd=0.6", "fgsm=0"])
    assert mixture == pytest.approx({"generator-start": 0.25, "universal-start": 0.25, "pgd": 0.5})
    assert parse_mixture(["pgd"]) == {"pgd": 1.0}
    assert parse_mixture(["generator-start@a/b=3", "generator-start"]) == {
        "generator-start@a/b": 0.75,
        "generator-start": 0.25,
    }
    assert parse_mixture(["generator-start@runs/lr=0.1/g", "pgd=3"]) == {
        "generator-start@runs/lr=0.1/g": 0.25,
        "pgd": 0.75,
    }
    assert parse_mixture(["generator@lr=0.1/g=3", "pgd"]) == {"generator@lr=0.1/g": 0.75, "pgd": 0.25}
    assert parse_mixture(["pgd", "pgd", "fgsm=2"]) == {"pgd": 0.5, "fgsm": 0.5}
    assert parse_mixture(["pgd:steps=7", "trades:steps=2=3"]) == {"pgd:steps=7": 0.25, "trades:steps=2": 0.75}
    assert parse_mixture(["pgd:steps=2", "pgd:steps=02"]) == {"pgd:steps=2": 1.0}
    assert parse_mixture(["generator-start@lr=0.1/g:steps=3"]) == {"generator-start@lr=0.1/g:steps=3": 1.0}


@pytest.mark.parametrize(("texts", "others"), [(["pgd"], ["pgd"]), ([], ["mine", "mine"])])
def test_parse_mixture_two_attacks_of_one_name_are_refused(texts: list[str], others: list[str]) -> None:
    """Catches: an attack object that replaces another one in training."""
    with pytest.raises(GapError, match=r"two attacks are named '(pgd|mine)'; give one of them another `name`"):
        parse_mixture(texts, others)


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
def test_parse_mixture_invalid_text_is_refused(texts: list[str], message: str) -> None:
    with pytest.raises(GapError, match=message):
        parse_mixture(texts)


@given(st.integers(0, 300), st.lists(st.floats(0, 1), min_size=1, max_size=8).filter(lambda shares: sum(shares) > 0.01))
def test_allocate_counts_are_whole_and_proportional(count: int, shares: list[float]) -> None:
    fractions = [share / sum(shares) for share in shares]
    counts = allocate(count, fractions)
    assert sum(counts) == count and min(counts) >= 0
    assert all(abs(part - count * fraction) <= 1 + 1e-6 for part, fraction in zip(counts, fractions, strict=True))


@given(st.integers(1, 100))
def test_inner_attack_steps_together_reach_across_the_ball(steps: int) -> None:
    assert steps * InnerAttack("pgd", 1.0, RandomInit(), steps).step_size >= 1.25
    assert steps * InnerAttack("fgsm", 1.0, RandomInit(), steps, projected=False).step_size == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("attack", "options", "option"),
    [
        (["fgsm"], {"steps": 7}, "`steps`"),
        (["pgd:steps=3"], {"steps": 7}, "`steps`"),
        (["pgd"], {"beta": 2.0}, "`beta`"),
        (["pgd"], {"num_generators": 2}, "`num_generators`"),
        (["universal-start"], {"reset_every": 1.0}, "`reset_every`"),
        (["pgd", "trades"], {"generator_lr": 0.1}, "`generator_lr`"),
        (["generator-start"], {"num_universal": 3}, "`num_universal`"),
        (["pgd"], {"generator": {"encoder": "resnet18"}}, "`encoder`"),
        (["generator-start@somewhere"], {"generator": {"pixel_unshuffle": 2}}, "`pixel_unshuffle`"),
    ],
)
def test_harden_options_option_that_no_attack_uses_is_refused(
    attack: list[str], options: dict[str, float], option: str
) -> None:
    options = {"classifier": "mnist-cnn", "budget": "linf:0.1", **options}
    with pytest.raises(GapError, match=f"{option} does nothing"):
        HardenOptions.read({**options, "attack": attack})
    HardenOptions.read({**options, "attack": ["pgd", "trades", "generator-start", "universal"]})


def test_check_mixture_attack_without_an_image_is_refused() -> None:
    check_mixture(128, 0.5, {"pgd": 0.99, "fgsm": 0.01})
    with pytest.raises(GapError, match="fgsm would get none of the 128 images"):
        check_mixture(128, 0.5, {"pgd": 0.997, "fgsm": 0.003})


def test_training_step_each_attack_of_a_mixture_takes_its_own_steps() -> None:
    """The sizes of the batches in the forward passes of the attacks: one pass of PGD, then four of TRADES."""
    options = HardenOptions.read(
        {
            "classifier": "mnist-cnn",
            "budget": "linf:0.1",
            "attack": ["pgd:steps=1", "trades:steps=3"],
            "epsilon_warmup": 0.0,
        }
    )
    classifier = load_classifier("mnist-cnn")
    training = make_training(options, classifier, steps=10)
    batch_sizes: list[int] = []
    training.fused_classifier = lambda: BatchSizeRecorder(classifier, batch_sizes)
    training.training_step(torch.rand(20, 1, 28, 28), torch.arange(20) % 10, backward)
    assert batch_sizes == [10, *[10] * 4]


class BatchSizeRecorder(nn.Module):
    """A classifier that records the size of each batch."""

    def __init__(self, classifier: nn.Module, batch_sizes: list[int]) -> None:
        super().__init__()
        self.classifier, self.batch_sizes = classifier, batch_sizes

    def forward(self, images: Tensor) -> Tensor:
        self.batch_sizes.append(len(images))
        return self.classifier(images)


def test_make_inner_attack_steps_of_the_name_override_the_option() -> None:
    options = HardenOptions.read({"classifier": "mnist-cnn", "budget": "linf:0.1", "steps": 4})
    classifier = load_classifier("mnist-cnn")
    steps = {
        name: make_inner_attack(name, 0.5, options, classifier).steps
        for name in ("pgd", "pgd:steps=7", "trades:steps=2")
    }
    assert steps == {"pgd": 4, "pgd:steps=7": 7, "trades:steps=2": 2}


@pytest.mark.parametrize("kind", INNER_ATTACKS)
def test_make_inner_attack_each_kind_gives_an_attack(kind: str) -> None:
    small = {"encoder": "strided-32", "decoder": [8], "pixel_unshuffle": 4}
    options = HardenOptions.read({"classifier": "mnist-cnn", "budget": "linf:0.1", "generator": small})
    classifier, images = load_classifier("mnist-cnn"), torch.rand(4, 1, 28, 28)
    inner_attack = make_inner_attack(kind, 0.5, options, classifier)
    assert (inner_attack.name, inner_attack.share, inner_attack.projected, inner_attack.beta) == (
        kind, 0.5, kind != "fgsm", 6.0 if "trades" in kind else None,
    )  # fmt: skip
    with frozen(classifier):
        attack_batch = inner_attack.attack(classifier, images, torch.arange(4), Budget("linf", 0.1), LOSS, backward)
    assert attack_batch.adversarial.shape == images.shape


@pytest.mark.parametrize("folder", ["me@lab", "a=0.5", "a:steps=3", "b=1:steps=3", "a:b"])
def test_parse_inner_attack_existing_folder_keeps_separators_in_its_name(tmp_path, monkeypatch, folder: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / folder).mkdir()
    name = f"generator-start@{folder}"
    assert parse_inner_attack(name) == InnerAttackSpec("generator-start", folder, None)
    assert parse_inner_attack(f"{name}:steps=2") == InnerAttackSpec("generator-start", folder, 2)
    assert parse_mixture([name, "pgd=3"]) == {name: 0.25, "pgd": 0.75}
    assert parse_mixture([f"{name}=3", "pgd"]) == {name: 0.75, "pgd": 0.25}
    assert parse_mixture([f"{name}:steps=2=3", "pgd"]) == {f"{name}:steps=2": 0.75, "pgd": 0.25}


def test_parse_mixture_missing_folder_ends_at_its_steps_and_weight() -> None:
    assert parse_mixture(["generator-start@a:steps=2=3", "pgd"]) == {"generator-start@a:steps=2": 0.75, "pgd": 0.25}


@pytest.mark.parametrize("steps", ["9" * 5000, "²", "-1", ""])
def test_parse_inner_attack_steps_that_are_no_number_are_refused(steps: str) -> None:
    with pytest.raises(GapError, match="must be a whole number from 1"):
        parse_inner_attack(f"pgd:steps={steps}")
