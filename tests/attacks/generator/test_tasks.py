"""The tasks that train generators: one step, the perturbation, the criterion, what training reaches."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from gap.models.generators import Discriminator, UniversalGenerator, make_generator
from torch import Tensor, nn

from gap.attacks.criteria import find_criterion
from gap.attacks.generator.model import direct_output
from gap.attacks.generator.tasks import (
    AdversarialGeneratorTraining,
    BoundedGeneratorTraining,
    DirectGeneratorTraining,
    GeneratorTraining,
    UniversalGeneratorTraining,
    num_survivors,
)
from gap.attacks.losses import LOSSES, Criterion, find_loss, margin
from gap.core.errors import GapError
from gap.threat import Budget, find_norm
from gap.training.task import OptimizedModule, with_adamw

LINF, L2 = Budget.parse("linf:0.2"), Budget.parse("l2:1.5")
MakeTraining = Callable[..., GeneratorTraining]


def generator(channels: int = 1) -> nn.Module:
    return make_generator(channels, encoder="strided-32", decoder=[16, 8], pixel_unshuffle=2)


def arguments(nets: list[nn.Module], network: nn.Module, criterion: str, loss: str) -> tuple[Any, ...]:
    return with_adamw(network, 0.01), nets, find_criterion(criterion, 4), find_loss(loss)


def bounded(nets: list[nn.Module], criterion: str = "untargeted", loss: str = "margin") -> GeneratorTraining:
    return BoundedGeneratorTraining(LINF, *arguments(nets, generator(), criterion, loss))


def universal(
    nets: list[nn.Module], criterion: str = "untargeted", loss: str = "margin", candidates: int = 1, steps: int = 10
) -> UniversalGeneratorTraining:
    return UniversalGeneratorTraining(
        LINF, steps, *arguments(nets, UniversalGenerator(generator(), 1, (12, 12), candidates), criterion, loss)
    )


def direct(
    nets: list[nn.Module],
    criterion: str = "untargeted",
    loss: str = "margin",
    norm: str = "l2",
    target_norm: float = 1.5,
) -> GeneratorTraining:
    return DirectGeneratorTraining(find_norm(norm), target_norm, *arguments(nets, generator(), criterion, loss))


def with_discriminator(nets: list[nn.Module], criterion: str = "untargeted", loss: str = "margin") -> GeneratorTraining:
    return AdversarialGeneratorTraining(
        with_adamw(Discriminator(1, width=4), 0.002), *arguments(nets, generator(), criterion, loss)
    )


class ConstantLogits(nn.Module):
    """A classifier with the same logits for every image."""

    def __init__(self, *logits: float) -> None:
        super().__init__()
        self.logits = torch.tensor([logits])

    def forward(self, images: Tensor) -> Tensor:
        return self.logits + 0 * images.mean(dim=(1, 2, 3)).view(-1, 1)


TRAININGS: list[MakeTraining] = [bounded, universal, direct, with_discriminator]


@pytest.fixture
def net(pictures) -> nn.Module:
    """The classifier with `requires_grad` off, as in training."""
    return copy.deepcopy(pictures.net).requires_grad_(False)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def cloned_weights(network: nn.Module) -> list[Tensor]:
    return [weight.detach().clone() for weight in network.parameters()]


@pytest.mark.parametrize("make", TRAININGS)
@pytest.mark.parametrize("loss", LOSSES)
def test_generator_training_step_changes_the_generator_and_not_the_classifier(
    make: MakeTraining, loss: str, pictures, net: nn.Module
) -> None:
    training = make([net], loss=loss)
    before = {name: cloned_weights(module.network) for name, module in training.modules.items()}
    state = copy.deepcopy(net.state_dict())
    metrics = training.training_step(pictures.images[:20], pictures.labels[:20], Tensor.backward)
    for name, module in training.modules.items():
        moved = [not torch.equal(*pair) for pair in zip(before[name], cloned_weights(module.network), strict=True)]
        assert sum(moved) >= len(moved) - 1
        assert all(weight.requires_grad for weight in module.network.parameters())
    assert all(torch.equal(state[name], tensor) for name, tensor in net.state_dict().items())
    assert all(weight.grad is None for weight in net.parameters())
    assert all(value.ndim == 0 and value.isfinite() for value in metrics.values())
    assert {"loss", "accuracy_under_attack"} <= metrics.keys()


@pytest.mark.parametrize("make", TRAININGS)
@pytest.mark.parametrize("size", [(12, 12), (9, 13)])
def test_generator_adversarial_odd_sizes_keep_shape_range_and_budget(
    make: MakeTraining, size: tuple[int, int], net: nn.Module
) -> None:
    """Catches: padding, needed at sizes that the network does not divide, that remains in the output."""
    training = make([net])
    if isinstance(training, UniversalGeneratorTraining):
        training.modules["generator"] = with_adamw(UniversalGenerator(generator(), 1, size), 0.01)
    images = torch.rand(6, 1, *size)
    adversarial = training.adversarial(images)
    assert adversarial.shape == images.shape
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    assert not torch.equal(adversarial, images)
    if isinstance(training, BoundedGeneratorTraining | UniversalGeneratorTraining):
        assert (adversarial - images).abs().max() <= LINF.epsilon + 1e-6


def test_universal_generator_one_candidate_adds_one_perturbation_to_all_images(net: nn.Module) -> None:
    training = universal([net])
    images = torch.rand(5, 1, 12, 12) * 0.4 + 0.3
    perturbation = training.perturbations()
    assert perturbation.shape == (1, 1, 12, 12)
    assert torch.allclose(training.adversarial(images) - images, perturbation.expand(5, -1, -1, -1), atol=1e-6)


def test_universal_generator_several_candidates_are_halved_until_one_survives(pictures, net: nn.Module) -> None:
    """Catches: successive halving that cuts at other steps, or loses its state in a checkpoint."""
    torch.manual_seed(0)
    training, resumed = (universal([net], candidates=4, steps=40) for _ in range(2))
    images, labels = pictures.images[:20], pictures.labels[:20]
    adversarial, perturbations = training.adversarial(images), training.perturbations()
    assert perturbations.shape == (4, 1, 12, 12)
    for index in range(20):
        assert torch.equal(adversarial[index], (images[index] + perturbations[index % 4]).clamp(0, 1))
    survivors = []
    for _ in range(12):
        training.training_step(images, labels, Tensor.backward)
        survivors.append(len(training.survivors))
    assert survivors == [4, 4, 4, 2, 2, 1, 1, 1, 1, 1, 1, 1]
    resumed.modules["generator"].network.load_state_dict(training.modules["generator"].network.state_dict())
    resumed.load_state_dict(training.state_dict())
    assert torch.equal(resumed.perturbations(), training.perturbations())


def test_universal_generator_compare_removes_the_candidates_with_the_highest_loss(net: nn.Module) -> None:
    training = universal([net], candidates=4, steps=100)
    training.step = 1
    training._compare(torch.tensor([0.5, -1.0, 2.0, -2.0, 0.7, -1.2, 3.0, -2.0]))
    assert training.survivors.tolist() == [0, 1, 2, 3]
    training.step = 10
    training._compare(torch.tensor([0.5, -1.0, 2.0, -2.0]))
    assert training.survivors.tolist() == [1, 3]
    training.step = 25
    training._compare(torch.tensor([-1.0, -2.0]))
    assert training.survivors.tolist() == [3]


@pytest.mark.parametrize("candidates", [1, 2, 3, 5, 8])
def test_num_survivors_falls_to_one_in_the_first_quarter(candidates: int) -> None:
    counts = [num_survivors(candidates, percent / 100) for percent in range(101)]
    assert counts[0] == candidates and counts[25:] == [1] * 76
    assert counts == sorted(counts, reverse=True)


def test_attack_losses_ensemble_is_the_mean_of_its_members(pictures, small_net) -> None:
    nets = [small_net(4).eval().requires_grad_(False), pictures.net]
    images, labels = pictures.images[:20], pictures.labels[:20]
    training = bounded(nets)
    adversarial = training.adversarial(images)
    losses, metrics = training.attack_losses(images, labels, adversarial)
    member_losses = [margin(net(adversarial), None, Criterion(labels)) for net in nets]
    assert not torch.allclose(*member_losses)
    assert torch.allclose(losses, (member_losses[0] + member_losses[1]) / 2, atol=1e-5)
    assert metrics["accuracy_under_attack"] == (nets[0](adversarial).argmax(dim=1) == labels).float().mean()


def test_training_step_computes_clean_logits_only_where_needed(pictures, net: nn.Module) -> None:
    """Catches: a forward pass of the clean images that loss and criterion do not use."""
    passes: list[int] = []
    net.register_forward_hook(lambda *_: passes.append(1))
    images, labels = pictures.images[:8], pictures.labels[:8]
    for criterion, loss, expected in [
        ("untargeted", "margin", 1),
        ("target:2", "log-cross-entropy", 1),
        ("untargeted", "relativistic", 2),
        ("least-likely", "margin", 2),
    ]:
        passes.clear()
        bounded([net], criterion, loss).training_step(images, labels, Tensor.backward)
        assert len(passes) == expected, (criterion, loss)


def test_find_criterion_each_name_gives_its_classes() -> None:
    logits, labels = torch.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, 1.0]]), torch.tensor([0, 2])
    untargeted_criterion = find_criterion("untargeted", 3)(None, labels)
    target_criterion = find_criterion("target:1", 3)(None, labels)
    least_likely = find_criterion("least-likely", 3)
    assert (untargeted_criterion.classes.tolist(), untargeted_criterion.targeted) == ([0, 2], False)
    assert (target_criterion.classes.tolist(), target_criterion.targeted) == ([1, 1], True)
    assert (least_likely(logits, labels).classes.tolist(), least_likely(logits, labels).targeted) == ([1, 0], True)
    assert least_likely.needs_clean
    assert not find_criterion("target:0", 3).needs_clean
    assert untargeted_criterion.is_adversarial(logits).tolist() == [False, True]
    assert target_criterion.is_adversarial(logits).tolist() == [False, True]


def test_least_likely_criterion_ensemble_uses_mean_log_probabilities(pictures) -> None:
    """Catches: a mean of raw logits, which follows the member whose logits are a thousand times larger."""
    criteria: list[Criterion] = []

    def recording_loss(logits: Tensor, clean: Tensor | None, criterion: Criterion) -> Tensor:
        criteria.append(criterion)
        return margin(logits, clean, criterion)

    training = bounded([ConstantLogits(0, 10, 10, 10), ConstantLogits(1003, 1000, 1003, 1003)], "least-likely")
    training.loss = recording_loss
    training.training_step(pictures.images[:4], pictures.labels[:4], Tensor.backward)
    assert [criterion.classes.tolist() for criterion in criteria] == [[0] * 4] * 2


@pytest.mark.parametrize("text", ["", "targeted", "target:", "target:4", "target:-1", "target:cat", "least"])
def test_find_criterion_unknown_name_raises_gap_error(text: str) -> None:
    with pytest.raises(GapError, match="criterion"):
        find_criterion(text, 4)


@pytest.mark.parametrize(("magnitude", "expect_rise"), [(0.01, True), (100.0, False)])
def test_direct_training_magnitude_weight_rises_above_target_norm_and_falls_below_it(
    magnitude: float, expect_rise: bool, pictures, net: nn.Module
) -> None:
    training = direct([net], target_norm=magnitude)
    metrics_by_step = [
        training.training_step(pictures.images[:50], pictures.labels[:50], Tensor.backward) for _ in range(4)
    ]
    magnitude_weights = [metrics["magnitude_weight"].item() for metrics in metrics_by_step]
    assert magnitude_weights[0] == 1
    assert magnitude_weights == sorted(magnitude_weights, reverse=not expect_rise)
    assert magnitude_weights[-1] > 1.05 if expect_rise else magnitude_weights[-1] < 0.95
    resumed = direct([net], target_norm=magnitude)
    resumed.load_state_dict(training.state_dict())
    assert resumed.training_step(pictures.images, pictures.labels, Tensor.backward)[
        "magnitude_weight"
    ] == pytest.approx(
        training.training_step(pictures.images, pictures.labels, Tensor.backward)["magnitude_weight"].item()
    )
    with pytest.raises(KeyError):
        resumed.load_state_dict({})
    with pytest.raises(KeyError):
        bounded([net]).load_state_dict(training.state_dict())


def test_direct_training_loss_is_the_attack_loss_plus_weighted_magnitude(pictures, net: nn.Module) -> None:
    training = direct([net], norm="l2", target_norm=2.0)
    images, labels = pictures.images[:10], pictures.labels[:10]
    with torch.no_grad():
        adversarial = training.adversarial(images)
        attack = training.attack_losses(images, labels, adversarial)[0].mean()
    magnitude = find_norm("l2").length(adversarial - images).mean()
    training.load_state_dict({"log_weight": 0.7})
    metrics = training.training_step(images, labels, Tensor.backward)
    assert metrics["magnitude"].item() == pytest.approx(magnitude.item(), rel=1e-3)
    weight = torch.tensor(0.7).exp()
    assert metrics["magnitude_weight"].item() == pytest.approx(weight.item())
    assert metrics["loss"].item() == pytest.approx((attack + weight * magnitude / 2).item(), rel=1e-3)


def test_direct_output_large_values_stay_in_the_pixel_range() -> None:
    images = torch.rand(4, 1, 5, 5)
    output = direct_output(images, 20 * torch.randn(4, 1, 5, 5))
    assert output.min() >= 0
    assert output.max() <= 1
    assert output.shape == images.shape


def train_steps(training: GeneratorTraining, pictures, steps: int) -> None:
    for module in training.modules.values():
        module.network.train()
    for step in range(steps):
        chosen = torch.randint(200, (50,), generator=torch.Generator().manual_seed(step))
        training.training_step(pictures.images[chosen], pictures.labels[chosen], Tensor.backward)
    for module in training.modules.values():
        module.network.eval()


@torch.no_grad()
def accuracy_under_attack_of(training: GeneratorTraining, pictures) -> float:
    return pictures.accuracy(training.adversarial(pictures.images))


@pytest.mark.parametrize(
    ("budget", "make", "bound"),
    [(LINF, bounded, 0.4), (L2, bounded, 0.4), (Budget.parse("linf:0.3"), universal, 0.6)],
    ids=["linf", "l2", "universal"],
)
def test_bounded_training_60_steps_fools_more_images_than_noise(
    budget: Budget, make: MakeTraining, bound: float, pictures, net: nn.Module
) -> None:
    training = make([net])
    assert isinstance(training, BoundedGeneratorTraining | UniversalGeneratorTraining)
    training.budget = budget
    random_signs = torch.randn(pictures.images.shape, generator=torch.Generator().manual_seed(1)).sign()
    noise_accuracy = pictures.accuracy(budget.apply(pictures.images, 10 * random_signs))
    train_steps(training, pictures, 60)
    accuracy = accuracy_under_attack_of(training, pictures)
    assert accuracy < bound
    assert accuracy < noise_accuracy - 0.2
    with torch.no_grad():
        metrics = training.validation_step(pictures.images, pictures.labels)
    assert metrics["accuracy_under_attack"].double().mean().item() == accuracy
    assert metrics[budget.norm.name].max() <= budget.epsilon + 1e-5
    assert all(values.shape == (200,) for values in metrics.values())


def test_targeted_training_60_steps_reaches_the_target_class(pictures, net: nn.Module) -> None:
    training = bounded([net], "target:3")
    train_steps(training, pictures, 60)
    with torch.no_grad():
        metrics = training.validation_step(pictures.images, pictures.labels)
        reached = net(training.adversarial(pictures.images)).argmax(dim=1) == 3
    assert reached.double().mean() > 0.6
    assert torch.equal(metrics["target_eligible"], pictures.labels != 3)
    assert torch.equal(metrics["target_success"], reached & (pictures.labels != 3))


def test_validation_step_ensemble_uses_the_target_of_the_whole_ensemble(pictures) -> None:
    """Catches: targets of the first member alone. It finds class 1 the least likely, both together class 0."""
    training = bounded([ConstantLogits(1, 0, 0.5, 0.5), ConstantLogits(-50, 0, 0, 0)], "least-likely")
    metrics = training.validation_step(pictures.images, pictures.labels)
    assert torch.equal(metrics["target_eligible"], pictures.labels != 0)
    assert torch.equal(metrics["target_success"], pictures.labels != 0)


def test_direct_training_200_steps_fools_near_the_target_norm(pictures, net: nn.Module) -> None:
    training = direct([net], target_norm=1.0)
    train_steps(training, pictures, 200)
    with torch.no_grad():
        metrics = training.validation_step(pictures.images, pictures.labels)
    assert metrics["accuracy_under_attack"].double().mean() < 0.2
    assert 0.75 <= metrics["l2"].mean() <= 1.0


def test_discriminator_fixed_generator_learns_to_separate_clean_from_adversarial(pictures, net: nn.Module) -> None:
    training = with_discriminator([net])
    discriminator: OptimizedModule = training.modules["discriminator"]
    training.modules["generator"].optimizer.param_groups[0]["lr"] = 0.0
    first_loss = training.training_step(pictures.images, pictures.labels, Tensor.backward)["discriminator_loss"].item()
    for _ in range(40):
        last_loss = training.training_step(pictures.images, pictures.labels, Tensor.backward)[
            "discriminator_loss"
        ].item()
    assert last_loss < first_loss / 2
    with torch.no_grad():
        training.modules["generator"].network.train()
        clean_score, adversarial_score = (
            discriminator.network(pictures.images),
            discriminator.network(training.adversarial(pictures.images)),
        )
    assert clean_score.mean() > 0 > adversarial_score.mean()


@pytest.mark.parametrize("make", TRAININGS)
def test_sample_images_gives_clean_and_perturbed_without_changing_the_network(
    make: MakeTraining, pictures, net: nn.Module
) -> None:
    training = make([net])
    network = training.modules["generator"].network
    modes, state = [module.training for module in network.modules()], copy.deepcopy(network.state_dict())
    samples = training.sample_images(pictures.images[:4])
    assert torch.equal(samples["clean"], pictures.images[:4])
    assert samples["perturbed"].shape == (4, 1, 12, 12)
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(state[name], tensor) for name, tensor in network.state_dict().items())
