import copy
from functools import partial

import pytest
import torch
from gap.models.generators import make_generator
from torch import nn

from gap.core.errors import GapWarning
from gap.hardening.initializers import Generators, GeneratorStart, RandomStart
from gap.hardening.inner_attacks import Sparring
from gap.hardening.task import HardenJob
from gap.threat import Budget
from gap.training.task import adam

BUDGET = Budget("linf", 0.1)


def backward(loss: torch.Tensor) -> None:
    loss.backward()


def make(net: nn.Module, **options) -> HardenJob:
    mix = [Sparring("fgsm", 0.5, RandomStart(), 1), Sparring("pgd", 0.5, RandomStart(), 2)]
    return HardenJob(adam(copy.deepcopy(net), 0.01), mix, BUDGET, **{"decay": 0.5} | options)


def found(probe: float, sparring: float | None = None) -> dict[str, float]:
    return {"accuracy": 1.0, "probe_accuracy": probe, "sparring_accuracy": probe if sparring is None else sparring}


def test_it_hardens(pictures) -> None:
    torch.manual_seed(0)
    job = make(pictures.net)

    def left() -> float:
        with torch.no_grad():
            return job.judge(pictures.images, pictures.labels)["probe_accuracy"].float().mean().item()

    before = left()
    for _ in range(80):
        job.step(pictures.images, pictures.labels, backward)
    assert left() > before + 0.2


def test_trades_hardens_and_stays_right(pictures) -> None:
    torch.manual_seed(0)
    mix = [Sparring("trades", 1.0, RandomStart(), 2, beta=6.0)]
    job = HardenJob(adam(copy.deepcopy(pictures.net), 0.003), mix, BUDGET, decay=0.5, clean=0.1)

    def left() -> dict[str, float]:
        with torch.no_grad():
            return {
                name: each.double().mean().item() for name, each in job.judge(pictures.images, pictures.labels).items()
            }

    before = left()
    for _ in range(100):
        figures = job.step(pictures.images, pictures.labels, backward)
    after = left()
    assert after["sparring_accuracy"] > before["sparring_accuracy"] + 0.2
    assert after["probe_accuracy"] > before["probe_accuracy"] + 0.05
    assert after["accuracy"] > 0.95 and figures["accuracy_in_training"] > 0.3


def test_generators_are_renewed_on_time(pictures) -> None:
    turns: list[int] = []
    job = make(pictures.net, renewal=3)
    job.mix[0].start.renew = turns.append
    for _ in range(7):
        job.step(pictures.images[:8], pictures.labels[:8], backward)
    assert turns == [1, 2]


def test_epsilon_rises(pictures) -> None:
    job = make(pictures.net, warmup=9)
    seen = []
    for _ in range(12):
        seen.append(job._budget_now().epsilon)
        job.step(pictures.images[:8], pictures.labels[:8], backward)
    assert seen[0] == pytest.approx(0.01) and seen[4] == pytest.approx(0.05)
    assert seen[9:] == pytest.approx([0.1] * 3)


def test_the_clean_share_stays_clean(pictures) -> None:
    job = make(pictures.net, clean=0.25)
    network = job.players["classifier"].network
    given: list[torch.Tensor] = []
    network.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0].detach()))
    job.step(pictures.images[:40], pictures.labels[:40], backward)
    changed = (given[-1] != pictures.images[:40]).flatten(1).any(dim=1)
    assert changed.tolist() == [False] * 10 + [True] * 30


def test_modes_are_put_back_and_attacks_see_eval_mode(pictures) -> None:
    modes: list[bool] = []
    net = nn.Sequential(nn.Dropout(0.5), pictures.net)
    job = make(net)
    network = job.players["classifier"].network.train()
    network.register_forward_pre_hook(lambda module, inputs: modes.append(module.training))
    job.step(pictures.images[:8], pictures.labels[:8], backward)
    assert modes == [False, False, False, True]
    assert network.training and all(weight.requires_grad for weight in network.parameters())


def test_the_average_is_of_the_weights(pictures) -> None:
    job = make(pictures.net, decay=0.5)
    weight = next(job.players["classifier"].network.parameters())
    seen = []
    for _ in range(3):
        job.step(pictures.images[:8], pictures.labels[:8], backward)
        seen.append(weight.detach().clone())
    expected = 0.25 * seen[0] + 0.25 * seen[1] + 0.5 * seen[2]
    torch.testing.assert_close(next(job.averaged.module.parameters()).data, expected)


def test_the_best_under_the_probe_is_kept(pictures) -> None:
    job = make(pictures.net)
    kept = []
    for probe in (0.3, 0.6, 0.5):
        job.step(pictures.images[:8], pictures.labels[:8], backward)
        job.judged(found(probe))
        kept.append(copy.deepcopy(job.best))
    assert not torch.equal(kept[0]["1.weight"], kept[1]["1.weight"])
    assert torch.equal(kept[1]["1.weight"], kept[2]["1.weight"])
    assert job.best_probe == 0.6


@pytest.mark.parametrize("collapse", [found(0.2), found(0.55, sparring=0.95)], ids=["fallen", "deceived"])
def test_a_collapse_brings_back_the_best_weights_and_adds_a_step(pictures, collapse: dict[str, float]) -> None:
    job = make(pictures.net)
    job.step(pictures.images[:8], pictures.labels[:8], backward)
    job.judged(found(0.6))
    job.step(pictures.images[:8], pictures.labels[:8], backward)
    with pytest.warns(
        GapWarning, match="back to the weights with 60.0%; gradient steps from now on: 2 of fgsm, 3 of pgd"
    ):
        job.judged(collapse)
    assert [sparring.steps for sparring in job.mix] == [2, 3]
    assert not job.players["classifier"].optimizer.state
    assert job.state()["mended"] == job.mended and job.mended[0].startswith("step 2: the classifier")
    for network in (job.players["classifier"].network, job.averaged.module):
        assert all(torch.equal(value, job.best[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize(("last", "steps"), [(None, [20, 20]), (2, [1, 2])], ids=["many steps", "the end"])
def test_where_no_step_is_to_be_given_a_collapse_is_told(pictures, last: int | None, steps: list[int]) -> None:
    job = make(pictures.net, last=last)
    for sparring, given in zip(job.mix, steps, strict=True):
        sparring.steps = given
    job.step(pictures.images[:8], pictures.labels[:8], backward)
    job.judged(found(0.6))
    job.step(pictures.images[:8], pictures.labels[:8], backward)
    with pytest.warns(GapWarning, match="fell: 10.0% left under the probe; back to the weights with 60.0%$"):
        job.judged(found(0.1))
    assert [sparring.steps for sparring in job.mix] == steps
    assert torch.equal(job.players["classifier"].network[1].weight, job.best["1.weight"])


def test_the_probe_catches_who_is_robust_to_its_generator_alone(pictures) -> None:
    """The plain form: the classifier learns what its generator does, and falls to gradients. With the probe it gets
    gradient steps, and withstands them better than without."""

    def trained(watched: bool) -> tuple[HardenJob, float]:
        torch.manual_seed(0)
        generator = Generators(partial(make_generator, 1, encoder="strided-32", decoder=[16, 8], fold=2))
        mix = [Sparring("generator", 1.0, GeneratorStart(adam(generator, 0.005)), 0)]
        job = HardenJob(adam(copy.deepcopy(pictures.net), 0.01), mix, Budget("linf", 0.06), decay=0.5, watched=watched)
        for step in range(120):
            job.step(pictures.images, pictures.labels, backward)
            if step % 20 == 19:
                with torch.no_grad():
                    judged = job.judge(pictures.images, pictures.labels)
                job.judged({name: each.double().mean().item() for name, each in judged.items()})
        return job, job.best_probe

    plain, left_plain = trained(watched=False)
    with pytest.warns(GapWarning, match="withstands only the attacks it trains with"):
        caught, left_caught = trained(watched=True)
    assert plain.mix[0].steps == 0 and not plain.mended
    assert caught.mix[0].steps > 0 and left_caught > left_plain + 0.1


def test_the_averages_norms_have_the_statistics_of_its_weights(pictures) -> None:
    """What the average gives in eval mode is what it gives with statistics taken anew from what it learned on."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(144, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4))
    mix = [Sparring("pgd", 1.0, RandomStart(), 1)]
    job = HardenJob(adam(network, 0.001), mix, BUDGET, decay=0.9)
    for _ in range(120):
        job.step(pictures.images, pictures.labels, backward)
    averaged = job.averaged.module.eval()
    with torch.no_grad():
        attacked = mix[0].attack(averaged, pictures.images, pictures.labels, BUDGET, job.loss).adversarial
        kept = averaged(attacked)
        anew = copy.deepcopy(averaged)
        anew[2].reset_running_stats()
        anew[2].momentum = None
        anew.train()(attacked)
        fresh = anew.eval()(attacked)
    apart = ((kept - fresh).abs().mean() / fresh.std()).item()
    assert apart < 0.1


def test_who_does_not_watch_sees_no_collapse(pictures) -> None:
    job = make(pictures.net, watched=False)
    job.judged(found(0.6))
    job.judged(found(0.1, sparring=0.9))
    assert [sparring.steps for sparring in job.mix] == [1, 2]
    assert job.best_probe == 0.6


def test_nothing_is_kept_while_epsilon_rises(pictures) -> None:
    job = make(pictures.net, warmup=5)
    job.judged(found(0.9))
    assert not job.best


def test_state_comes_back(pictures) -> None:
    one, two = make(pictures.net), make(pictures.net)
    for _ in range(2):
        one.step(pictures.images[:8], pictures.labels[:8], backward)
    one.judged(found(0.6))
    one.mix[0].steps = 4
    two.load_state(copy.deepcopy(one.state()))
    assert two.taken == 2 and two.best_probe == 0.6 and two.mix[0].steps == 4
    for name, value in one.averaged.state_dict().items():
        assert torch.equal(value, two.averaged.state_dict()[name])


def test_everyone_sees_augmented_images(pictures) -> None:
    seen = []
    job = make(pictures.net, augmentation=lambda images: torch.full_like(images, 0.5))
    job.players["classifier"].network.register_forward_hook(lambda net, given, out: seen.append(given[0].detach()))
    job.step(pictures.images, pictures.labels, backward)
    assert len(seen) == 4
    assert all(((images - 0.5).abs() <= BUDGET.epsilon + 1e-6).all() for images in seen)
