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
Make = Callable[..., GeneratorTraining]


def generator(channels: int = 1) -> nn.Module:
    return make_generator(channels, encoder="strided-32", decoder=[16, 8], pixel_unshuffle=2)


def rest(nets: list[nn.Module], network: nn.Module, criterion: str, loss: str) -> tuple[Any, ...]:
    return with_adamw(network, 0.01), nets, find_criterion(criterion, 4), find_loss(loss)


def thresholded(nets: list[nn.Module], criterion: str = "untargeted", loss: str = "margin") -> GeneratorTraining:
    return BoundedGeneratorTraining(LINF, *rest(nets, generator(), criterion, loss))


def universal(
    nets: list[nn.Module], criterion: str = "untargeted", loss: str = "margin", candidates: int = 1, steps: int = 10
) -> UniversalGeneratorTraining:
    return UniversalGeneratorTraining(
        LINF, steps, *rest(nets, UniversalGenerator(generator(), 1, (12, 12), candidates), criterion, loss)
    )


def direct(
    nets: list[nn.Module],
    criterion: str = "untargeted",
    loss: str = "margin",
    norm: str = "l2",
    target_norm: float = 1.5,
) -> GeneratorTraining:
    return DirectGeneratorTraining(find_norm(norm), target_norm, *rest(nets, generator(), criterion, loss))


def discriminated(nets: list[nn.Module], criterion: str = "untargeted", loss: str = "margin") -> GeneratorTraining:
    return AdversarialGeneratorTraining(
        with_adamw(Discriminator(1, width=4), 0.002), *rest(nets, generator(), criterion, loss)
    )


class Says(nn.Module):
    """The same logits of every image."""

    def __init__(self, *logits: float) -> None:
        super().__init__()
        self.logits = torch.tensor([logits])

    def forward(self, images: Tensor) -> Tensor:
        return self.logits + 0 * images.mean(dim=(1, 2, 3)).view(-1, 1)


JOBS: list[Make] = [thresholded, universal, direct, discriminated]


@pytest.fixture
def net(pictures) -> nn.Module:
    """As the classifier is when jobs run: held still."""
    return copy.deepcopy(pictures.net).requires_grad_(False)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def weights(network: nn.Module) -> list[Tensor]:
    return [weight.detach().clone() for weight in network.parameters()]


@pytest.mark.parametrize("make", JOBS)
@pytest.mark.parametrize("loss", LOSSES)
def test_a_step_moves_the_generator_and_not_the_classifier(make: Make, loss: str, pictures, net: nn.Module) -> None:
    training = make([net], loss=loss)
    before = {name: weights(module.network) for name, module in training.modules.items()}
    state = copy.deepcopy(net.state_dict())
    metrics = training.training_step(pictures.images[:20], pictures.labels[:20], Tensor.backward)
    for name, module in training.modules.items():
        moved = [not torch.equal(*pair) for pair in zip(before[name], weights(module.network), strict=True)]
        assert sum(moved) >= len(moved) - 1
        assert all(weight.requires_grad for weight in module.network.parameters())
    assert all(torch.equal(state[name], tensor) for name, tensor in net.state_dict().items())
    assert all(weight.grad is None for weight in net.parameters())
    assert all(value.ndim == 0 and value.isfinite() for value in metrics.values())
    assert {"loss", "accuracy_under_attack"} <= metrics.keys()


@pytest.mark.parametrize("make", JOBS)
@pytest.mark.parametrize("size", [(12, 12), (9, 13)])
def test_images_of_any_size_stay_images(make: Make, size: tuple[int, int], net: nn.Module) -> None:
    """Sizes that the network must pad: what comes back has the shape of what went in, inside [0, 1] and the budget."""
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


def test_the_universal_perturbation_is_one_for_all(net: nn.Module) -> None:
    training = universal([net])
    images = torch.rand(5, 1, 12, 12) * 0.4 + 0.3
    perturbation = training.perturbations()
    assert perturbation.shape == (1, 1, 12, 12)
    assert torch.allclose(training.adversarial(images) - images, perturbation.expand(5, -1, -1, -1), atol=1e-6)


def test_the_best_of_several_noises_is_found_out(pictures, net: nn.Module) -> None:
    """Each noise fools its share of every batch; the worse half goes at each cut, and the scores say which it is."""
    torch.manual_seed(0)
    training, again = (universal([net], candidates=4, steps=40) for _ in range(2))
    images, labels = pictures.images[:20], pictures.labels[:20]
    adversarial, perturbations = training.adversarial(images), training.perturbations()
    assert perturbations.shape == (4, 1, 12, 12)
    for place in range(20):
        assert torch.equal(adversarial[place], (images[place] + perturbations[place % 4]).clamp(0, 1))
    survivors = []
    for _ in range(12):
        training.training_step(images, labels, Tensor.backward)
        survivors.append(len(training.survivors))
    assert survivors == [4, 4, 4, 2, 2, 1, 1, 1, 1, 1, 1, 1]
    again.modules["generator"].network.load_state_dict(training.modules["generator"].network.state_dict())
    again.load_state_dict(training.state_dict())
    assert torch.equal(again.perturbations(), training.perturbations())


def test_the_noises_that_fool_least_go(net: nn.Module) -> None:
    training = universal([net], candidates=4, steps=100)
    training.taken = 1
    training._compare(torch.tensor([0.5, -1.0, 2.0, -2.0, 0.7, -1.2, 3.0, -2.0]))
    assert training.survivors.tolist() == [0, 1, 2, 3]
    training.taken = 10
    training._compare(torch.tensor([0.5, -1.0, 2.0, -2.0]))
    assert training.survivors.tolist() == [1, 3]
    training.taken = 25
    training._compare(torch.tensor([-1.0, -2.0]))
    assert training.survivors.tolist() == [3]


@pytest.mark.parametrize("candidates", [1, 2, 3, 5, 8])
def test_one_noise_is_left_in_the_end(candidates: int) -> None:
    left = [num_survivors(candidates, share / 100) for share in range(101)]
    assert left[0] == candidates and left[25:] == [1] * 76
    assert left == sorted(left, reverse=True)


def test_the_loss_of_an_ensemble_is_the_mean(pictures, small_net) -> None:
    nets = [small_net(4).eval().requires_grad_(False), pictures.net]
    images, labels = pictures.images[:20], pictures.labels[:20]
    training = thresholded(nets)
    adversarial = training.adversarial(images)
    losses, metrics = training.attack_losses(images, labels, adversarial)
    each = [margin(net(adversarial), None, Criterion(labels)) for net in nets]
    assert not torch.allclose(*each)
    assert torch.allclose(losses, (each[0] + each[1]) / 2, atol=1e-5)
    assert metrics["accuracy_under_attack"] == (nets[0](adversarial).argmax(dim=1) == labels).float().mean()


def test_clean_logits_are_made_only_where_they_are_asked_for(pictures, net: nn.Module) -> None:
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
        thresholded([net], criterion, loss).training_step(images, labels, Tensor.backward)
        assert len(passes) == expected, (criterion, loss)


def test_goals() -> None:
    logits, labels = torch.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, 1.0]]), torch.tensor([0, 2])
    leave = find_criterion("untargeted", 3)(None, labels)
    reach = find_criterion("target:1", 3)(None, labels)
    least = find_criterion("least-likely", 3)
    assert (leave.classes.tolist(), leave.targeted) == ([0, 2], False)
    assert (reach.classes.tolist(), reach.targeted) == ([1, 1], True)
    assert (least(logits, labels).classes.tolist(), least(logits, labels).targeted) == ([1, 0], True)
    assert least.needs_clean
    assert not find_criterion("target:0", 3).needs_clean
    assert leave.is_adversarial(logits).tolist() == [False, True]
    assert reach.is_adversarial(logits).tolist() == [False, True]


def test_the_least_likely_class_of_an_ensemble_is_what_its_members_agree_on(pictures) -> None:
    """One member is a thousand times louder; their logits' mean would follow it alone."""
    seen: list[Criterion] = []

    def noting(logits: Tensor, clean: Tensor | None, criterion: Criterion) -> Tensor:
        seen.append(criterion)
        return margin(logits, clean, criterion)

    training = thresholded([Says(0, 10, 10, 10), Says(1003, 1000, 1003, 1003)], "least-likely")
    training.loss = noting
    training.training_step(pictures.images[:4], pictures.labels[:4], Tensor.backward)
    assert [criterion.classes.tolist() for criterion in seen] == [[0] * 4] * 2


@pytest.mark.parametrize("text", ["", "targeted", "target:", "target:4", "target:-1", "target:cat", "least"])
def test_goals_nobody_knows(text: str) -> None:
    with pytest.raises(GapError, match="criterion"):
        find_criterion(text, 4)


@pytest.mark.parametrize(("magnitude", "rises"), [(0.01, True), (100.0, False)])
def test_the_weight_of_the_magnitude_follows_it(magnitude: float, rises: bool, pictures, net: nn.Module) -> None:
    training = direct([net], target_norm=magnitude)
    told = [training.training_step(pictures.images[:50], pictures.labels[:50], Tensor.backward) for _ in range(4)]
    said = [metrics["magnitude_weight"].item() for metrics in told]
    assert said[0] == 1
    assert said == sorted(said, reverse=not rises)
    assert said[-1] > 1.05 if rises else said[-1] < 0.95
    again = direct([net], target_norm=magnitude)
    again.load_state_dict(training.state_dict())
    assert again.training_step(pictures.images, pictures.labels, Tensor.backward)["magnitude_weight"] == pytest.approx(
        training.training_step(pictures.images, pictures.labels, Tensor.backward)["magnitude_weight"].item()
    )
    with pytest.raises(KeyError):
        again.load_state_dict({})
    with pytest.raises(KeyError):
        thresholded([net]).load_state_dict(training.state_dict())


def test_the_direct_loss_is_the_attack_and_the_weighted_magnitude(pictures, net: nn.Module) -> None:
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


def test_a_made_image_is_an_image() -> None:
    images = torch.rand(4, 1, 5, 5)
    made = direct_output(images, 20 * torch.randn(4, 1, 5, 5))
    assert made.min() >= 0
    assert made.max() <= 1
    assert made.shape == images.shape


def learn(training: GeneratorTraining, pictures, steps: int) -> None:
    for module in training.modules.values():
        module.network.train()
    for step in range(steps):
        chosen = torch.randint(200, (50,), generator=torch.Generator().manual_seed(step))
        training.training_step(pictures.images[chosen], pictures.labels[chosen], Tensor.backward)
    for module in training.modules.values():
        module.network.eval()


@torch.no_grad()
def left(training: GeneratorTraining, pictures) -> float:
    return pictures.accuracy(training.adversarial(pictures.images))


@pytest.mark.parametrize(
    ("budget", "make", "bound"),
    [(LINF, thresholded, 0.4), (L2, thresholded, 0.4), (Budget.parse("linf:0.3"), universal, 0.6)],
    ids=["linf", "l2", "universal"],
)
def test_training_reaches_what_noise_does_not(
    budget: Budget, make: Make, bound: float, pictures, net: nn.Module
) -> None:
    training = make([net])
    assert isinstance(training, BoundedGeneratorTraining | UniversalGeneratorTraining)
    training.budget = budget
    signs = torch.randn(pictures.images.shape, generator=torch.Generator().manual_seed(1)).sign()
    noise = pictures.accuracy(budget.apply(pictures.images, 10 * signs))
    learn(training, pictures, 60)
    reached = left(training, pictures)
    assert reached < bound
    assert reached < noise - 0.2
    with torch.no_grad():
        metrics = training.validation_step(pictures.images, pictures.labels)
    assert metrics["accuracy_under_attack"].double().mean().item() == reached
    assert metrics[budget.norm.name].max() <= budget.epsilon + 1e-5
    assert all(values.shape == (200,) for values in metrics.values())


def test_training_reaches_a_target(pictures, net: nn.Module) -> None:
    training = thresholded([net], "target:3")
    learn(training, pictures, 60)
    with torch.no_grad():
        metrics = training.validation_step(pictures.images, pictures.labels)
        reached = net(training.adversarial(pictures.images)).argmax(dim=1) == 3
    assert reached.double().mean() > 0.6
    assert torch.equal(metrics["target_eligible"], pictures.labels != 3)
    assert torch.equal(metrics["target_success"], reached & (pictures.labels != 3))


def test_an_ensemble_is_judged_by_what_it_aims_at(pictures) -> None:
    """The first member finds class 1 the least likely, both together class 0: what the first says of every image."""
    training = thresholded([Says(1, 0, 0.5, 0.5), Says(-50, 0, 0, 0)], "least-likely")
    metrics = training.validation_step(pictures.images, pictures.labels)
    assert torch.equal(metrics["target_eligible"], pictures.labels != 0)
    assert torch.equal(metrics["target_success"], pictures.labels != 0)


def test_direct_training_fools_at_about_the_magnitude_asked_for(pictures, net: nn.Module) -> None:
    training = direct([net], target_norm=1.0)
    learn(training, pictures, 200)
    with torch.no_grad():
        metrics = training.validation_step(pictures.images, pictures.labels)
    assert metrics["accuracy_under_attack"].double().mean() < 0.2
    assert 0.75 <= metrics["l2"].mean() <= 1.0


def test_the_discriminator_learns_to_tell(pictures, net: nn.Module) -> None:
    training = discriminated([net])
    discriminator: OptimizedModule = training.modules["discriminator"]
    training.modules["generator"].optimizer.param_groups[0]["lr"] = 0.0
    first = training.training_step(pictures.images, pictures.labels, Tensor.backward)["discriminator_loss"].item()
    for _ in range(40):
        last = training.training_step(pictures.images, pictures.labels, Tensor.backward)["discriminator_loss"].item()
    assert last < first / 2
    with torch.no_grad():
        training.modules["generator"].network.train()
        clean, made = (
            discriminator.network(pictures.images),
            discriminator.network(training.adversarial(pictures.images)),
        )
    assert clean.mean() > 0 > made.mean()


@pytest.mark.parametrize("make", JOBS)
def test_pictures_are_shown_and_nothing_changes(make: Make, pictures, net: nn.Module) -> None:
    training = make([net])
    network = training.modules["generator"].network
    modes, state = [module.training for module in network.modules()], copy.deepcopy(network.state_dict())
    shown = training.sample_images(pictures.images[:4])
    assert torch.equal(shown["clean"], pictures.images[:4])
    assert shown["perturbed"].shape == (4, 1, 12, 12)
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(state[name], tensor) for name, tensor in network.state_dict().items())
