import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from gap.models.generators import Discriminator, UniversalGenerator, make_generator
from torch import Tensor, nn

from gap.attacks.criteria import find_goal
from gap.attacks.generator.model import make_image
from gap.attacks.generator.tasks import (
    AttackJob,
    DirectJob,
    DiscriminatorJob,
    ThresholdedJob,
    UniversalJob,
    left_standing,
)
from gap.attacks.losses import LOSSES, Goal, find_loss, margin
from gap.core.errors import GapError
from gap.threat import Budget, find_norm
from gap.training.task import Player, adam

LINF, L2 = Budget.parse("linf:0.2"), Budget.parse("l2:1.5")
Make = Callable[..., AttackJob]


def generator(channels: int = 1) -> nn.Module:
    return make_generator(channels, encoder="strided-32", decoder=[16, 8], fold=2)


def rest(nets: list[nn.Module], network: nn.Module, goal: str, loss: str) -> tuple[Any, ...]:
    return adam(network, 0.01), nets, find_goal(goal, 4), find_loss(loss)


def thresholded(nets: list[nn.Module], goal: str = "untargeted", loss: str = "margin") -> AttackJob:
    return ThresholdedJob(LINF, *rest(nets, generator(), goal, loss))


def universal(
    nets: list[nn.Module], goal: str = "untargeted", loss: str = "margin", noises: int = 1, steps: int = 10
) -> UniversalJob:
    return UniversalJob(LINF, steps, *rest(nets, UniversalGenerator(generator(), 1, (12, 12), noises), goal, loss))


def direct(
    nets: list[nn.Module], goal: str = "untargeted", loss: str = "margin", norm: str = "l2", magnitude: float = 1.5
) -> AttackJob:
    return DirectJob(find_norm(norm), magnitude, *rest(nets, generator(), goal, loss))


def discriminated(nets: list[nn.Module], goal: str = "untargeted", loss: str = "margin") -> AttackJob:
    return DiscriminatorJob(adam(Discriminator(1, width=4), 0.002), *rest(nets, generator(), goal, loss))


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
    job = make([net], loss=loss)
    before = {name: weights(player.network) for name, player in job.players.items()}
    state = copy.deepcopy(net.state_dict())
    figures = job.step(pictures.images[:20], pictures.labels[:20], Tensor.backward)
    for name, player in job.players.items():
        moved = [not torch.equal(*pair) for pair in zip(before[name], weights(player.network), strict=True)]
        assert sum(moved) >= len(moved) - 1
        assert all(weight.requires_grad for weight in player.network.parameters())
    assert all(torch.equal(state[name], tensor) for name, tensor in net.state_dict().items())
    assert all(weight.grad is None for weight in net.parameters())
    assert all(value.ndim == 0 and value.isfinite() for value in figures.values())
    assert {"loss", "accuracy_under_attack"} <= figures.keys()


@pytest.mark.parametrize("make", JOBS)
@pytest.mark.parametrize("size", [(12, 12), (9, 13)])
def test_images_of_any_size_stay_images(make: Make, size: tuple[int, int], net: nn.Module) -> None:
    """Sizes that the network must pad: what comes back has the shape of what went in, inside [0, 1] and the budget."""
    job = make([net])
    if isinstance(job, UniversalJob):
        job.players["generator"] = adam(UniversalGenerator(generator(), 1, size), 0.01)
    images = torch.rand(6, 1, *size)
    adversarial = job.adversarial(images)
    assert adversarial.shape == images.shape
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    assert not torch.equal(adversarial, images)
    if isinstance(job, ThresholdedJob | UniversalJob):
        assert (adversarial - images).abs().max() <= LINF.epsilon + 1e-6


def test_the_universal_perturbation_is_one_for_all(net: nn.Module) -> None:
    job = universal([net])
    images = torch.rand(5, 1, 12, 12) * 0.4 + 0.3
    perturbation = job.perturbations()
    assert perturbation.shape == (1, 1, 12, 12)
    assert torch.allclose(job.adversarial(images) - images, perturbation.expand(5, -1, -1, -1), atol=1e-6)


def test_the_best_of_several_noises_is_found_out(pictures, net: nn.Module) -> None:
    """Each noise fools its share of every batch; the worse half goes at each cut, and the scores say which it is."""
    torch.manual_seed(0)
    job, again = (universal([net], noises=4, steps=40) for _ in range(2))
    images, labels = pictures.images[:20], pictures.labels[:20]
    adversarial, perturbations = job.adversarial(images), job.perturbations()
    assert perturbations.shape == (4, 1, 12, 12)
    for place in range(20):
        assert torch.equal(adversarial[place], (images[place] + perturbations[place % 4]).clamp(0, 1))
    standing = []
    for _ in range(12):
        job.step(images, labels, Tensor.backward)
        standing.append(len(job.standing))
    assert standing == [4, 4, 4, 2, 2, 1, 1, 1, 1, 1, 1, 1]
    again.players["generator"].network.load_state_dict(job.players["generator"].network.state_dict())
    again.load_state(job.state())
    assert torch.equal(again.perturbations(), job.perturbations())


def test_the_noises_that_fool_least_go(net: nn.Module) -> None:
    job = universal([net], noises=4, steps=100)
    job.taken = 1
    job._compare(torch.tensor([0.5, -1.0, 2.0, -2.0, 0.7, -1.2, 3.0, -2.0]))
    assert job.standing.tolist() == [0, 1, 2, 3]
    job.taken = 10
    job._compare(torch.tensor([0.5, -1.0, 2.0, -2.0]))
    assert job.standing.tolist() == [1, 3]
    job.taken = 25
    job._compare(torch.tensor([-1.0, -2.0]))
    assert job.standing.tolist() == [3]


@pytest.mark.parametrize("noises", [1, 2, 3, 5, 8])
def test_one_noise_is_left_in_the_end(noises: int) -> None:
    left = [left_standing(noises, share / 100) for share in range(101)]
    assert left[0] == noises and left[25:] == [1] * 76
    assert left == sorted(left, reverse=True)


def test_the_loss_of_an_ensemble_is_the_mean(pictures, small_net) -> None:
    nets = [small_net(4).eval().requires_grad_(False), pictures.net]
    images, labels = pictures.images[:20], pictures.labels[:20]
    job = thresholded(nets)
    adversarial = job.adversarial(images)
    losses, figures = job.attack_losses(images, labels, adversarial)
    each = [margin(net(adversarial), None, Goal(labels)) for net in nets]
    assert not torch.allclose(*each)
    assert torch.allclose(losses, (each[0] + each[1]) / 2, atol=1e-5)
    assert figures["accuracy_under_attack"] == (nets[0](adversarial).argmax(dim=1) == labels).float().mean()


def test_clean_logits_are_made_only_where_they_are_asked_for(pictures, net: nn.Module) -> None:
    passes: list[int] = []
    net.register_forward_hook(lambda *_: passes.append(1))
    images, labels = pictures.images[:8], pictures.labels[:8]
    for goal, loss, expected in [
        ("untargeted", "margin", 1),
        ("target:2", "log-cross-entropy", 1),
        ("untargeted", "relativistic", 2),
        ("least-likely", "margin", 2),
    ]:
        passes.clear()
        thresholded([net], goal, loss).step(images, labels, Tensor.backward)
        assert len(passes) == expected, (goal, loss)


def test_goals() -> None:
    logits, labels = torch.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, 1.0]]), torch.tensor([0, 2])
    leave = find_goal("untargeted", 3)(None, labels)
    reach = find_goal("target:1", 3)(None, labels)
    least = find_goal("least-likely", 3)
    assert (leave.classes.tolist(), leave.targeted) == ([0, 2], False)
    assert (reach.classes.tolist(), reach.targeted) == ([1, 1], True)
    assert (least(logits, labels).classes.tolist(), least(logits, labels).targeted) == ([1, 0], True)
    assert least.needs_clean
    assert not find_goal("target:0", 3).needs_clean
    assert leave.met(logits).tolist() == [False, True]
    assert reach.met(logits).tolist() == [False, True]


def test_the_least_likely_class_of_an_ensemble_is_what_its_members_agree_on(pictures) -> None:
    """One member is a thousand times louder; their logits' mean would follow it alone."""
    seen: list[Goal] = []

    def noting(logits: Tensor, clean: Tensor | None, goal: Goal) -> Tensor:
        seen.append(goal)
        return margin(logits, clean, goal)

    job = thresholded([Says(0, 10, 10, 10), Says(1003, 1000, 1003, 1003)], "least-likely")
    job.loss = noting
    job.step(pictures.images[:4], pictures.labels[:4], Tensor.backward)
    assert [goal.classes.tolist() for goal in seen] == [[0] * 4] * 2


@pytest.mark.parametrize("text", ["", "targeted", "target:", "target:4", "target:-1", "target:cat", "least"])
def test_goals_nobody_knows(text: str) -> None:
    with pytest.raises(GapError, match="goal"):
        find_goal(text, 4)


@pytest.mark.parametrize(("magnitude", "rises"), [(0.01, True), (100.0, False)])
def test_the_weight_of_the_magnitude_follows_it(magnitude: float, rises: bool, pictures, net: nn.Module) -> None:
    job = direct([net], magnitude=magnitude)
    told = [job.step(pictures.images[:50], pictures.labels[:50], Tensor.backward) for _ in range(4)]
    said = [figures["magnitude_weight"].item() for figures in told]
    assert said[0] == 1
    assert said == sorted(said, reverse=not rises)
    assert said[-1] > 1.05 if rises else said[-1] < 0.95
    again = direct([net], magnitude=magnitude)
    again.load_state(job.state())
    assert again.step(pictures.images, pictures.labels, Tensor.backward)["magnitude_weight"] == pytest.approx(
        job.step(pictures.images, pictures.labels, Tensor.backward)["magnitude_weight"].item()
    )
    with pytest.raises(KeyError):
        again.load_state({})
    with pytest.raises(KeyError):
        thresholded([net]).load_state(job.state())


def test_the_direct_loss_is_the_attack_and_the_weighted_magnitude(pictures, net: nn.Module) -> None:
    job = direct([net], norm="l2", magnitude=2.0)
    images, labels = pictures.images[:10], pictures.labels[:10]
    with torch.no_grad():
        adversarial = job.adversarial(images)
        attack = job.attack_losses(images, labels, adversarial)[0].mean()
    magnitude = find_norm("l2").length(adversarial - images).mean()
    job.load_state({"log_weight": 0.7})
    figures = job.step(images, labels, Tensor.backward)
    assert figures["magnitude"].item() == pytest.approx(magnitude.item(), rel=1e-3)
    weight = torch.tensor(0.7).exp()
    assert figures["magnitude_weight"].item() == pytest.approx(weight.item())
    assert figures["loss"].item() == pytest.approx((attack + weight * magnitude / 2).item(), rel=1e-3)


def test_a_made_image_is_an_image() -> None:
    images = torch.rand(4, 1, 5, 5)
    made = make_image(images, 20 * torch.randn(4, 1, 5, 5))
    assert made.min() >= 0
    assert made.max() <= 1
    assert made.shape == images.shape


def learn(job: AttackJob, pictures, steps: int) -> None:
    for player in job.players.values():
        player.network.train()
    for step in range(steps):
        chosen = torch.randint(200, (50,), generator=torch.Generator().manual_seed(step))
        job.step(pictures.images[chosen], pictures.labels[chosen], Tensor.backward)
    for player in job.players.values():
        player.network.eval()


@torch.no_grad()
def left(job: AttackJob, pictures) -> float:
    return pictures.accuracy(job.adversarial(pictures.images))


@pytest.mark.parametrize(
    ("budget", "make", "bound"),
    [(LINF, thresholded, 0.4), (L2, thresholded, 0.4), (Budget.parse("linf:0.3"), universal, 0.6)],
    ids=["linf", "l2", "universal"],
)
def test_training_reaches_what_noise_does_not(
    budget: Budget, make: Make, bound: float, pictures, net: nn.Module
) -> None:
    job = make([net])
    assert isinstance(job, ThresholdedJob | UniversalJob)
    job.budget = budget
    signs = torch.randn(pictures.images.shape, generator=torch.Generator().manual_seed(1)).sign()
    noise = pictures.accuracy(budget.perturb(pictures.images, 10 * signs))
    learn(job, pictures, 60)
    reached = left(job, pictures)
    assert reached < bound
    assert reached < noise - 0.2
    with torch.no_grad():
        figures = job.judge(pictures.images, pictures.labels)
    assert figures["accuracy_under_attack"].double().mean().item() == reached
    assert figures[budget.norm.name].max() <= budget.epsilon + 1e-5
    assert all(values.shape == (200,) for values in figures.values())


def test_training_reaches_a_target(pictures, net: nn.Module) -> None:
    job = thresholded([net], "target:3")
    learn(job, pictures, 60)
    with torch.no_grad():
        figures = job.judge(pictures.images, pictures.labels)
        reached = net(job.adversarial(pictures.images)).argmax(dim=1) == 3
    assert reached.double().mean() > 0.6
    assert torch.equal(figures["target_open"], pictures.labels != 3)
    assert torch.equal(figures["target_reached"], reached & (pictures.labels != 3))


def test_an_ensemble_is_judged_by_what_it_aims_at(pictures) -> None:
    """The first member finds class 1 the least likely, both together class 0: what the first says of every image."""
    job = thresholded([Says(1, 0, 0.5, 0.5), Says(-50, 0, 0, 0)], "least-likely")
    figures = job.judge(pictures.images, pictures.labels)
    assert torch.equal(figures["target_open"], pictures.labels != 0)
    assert torch.equal(figures["target_reached"], pictures.labels != 0)


def test_direct_training_fools_at_about_the_magnitude_asked_for(pictures, net: nn.Module) -> None:
    job = direct([net], magnitude=1.0)
    learn(job, pictures, 200)
    with torch.no_grad():
        figures = job.judge(pictures.images, pictures.labels)
    assert figures["accuracy_under_attack"].double().mean() < 0.2
    assert 0.75 <= figures["l2"].mean() <= 1.0


def test_the_discriminator_learns_to_tell(pictures, net: nn.Module) -> None:
    job = discriminated([net])
    judge: Player = job.players["discriminator"]
    job.players["generator"].optimizer.param_groups[0]["lr"] = 0.0
    first = job.step(pictures.images, pictures.labels, Tensor.backward)["discriminator_loss"].item()
    for _ in range(40):
        last = job.step(pictures.images, pictures.labels, Tensor.backward)["discriminator_loss"].item()
    assert last < first / 2
    with torch.no_grad():
        job.players["generator"].network.train()
        clean, made = judge.network(pictures.images), judge.network(job.adversarial(pictures.images))
    assert clean.mean() > 0 > made.mean()


@pytest.mark.parametrize("make", JOBS)
def test_pictures_are_shown_and_nothing_changes(make: Make, pictures, net: nn.Module) -> None:
    job = make([net])
    network = job.players["generator"].network
    modes, state = [module.training for module in network.modules()], copy.deepcopy(network.state_dict())
    shown = job.pictures(pictures.images[:4])
    assert torch.equal(shown["clean"], pictures.images[:4])
    assert shown["perturbed"].shape == (4, 1, 12, 12)
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(state[name], tensor) for name, tensor in network.state_dict().items())
