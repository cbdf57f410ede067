"""Training of generators: the default number of epochs, and augmentation in training only."""

import pytest
import torch
from torch import Tensor, nn

from gap.attacks.criteria import find_criterion
from gap.attacks.generator.tasks import AdversarialGeneratorTraining, BoundedGeneratorTraining, DirectGeneratorTraining
from gap.attacks.generator.train import _default_epochs
from gap.attacks.losses import find_loss
from gap.core.errors import GapWarning
from gap.threat import L2, Budget
from gap.training.task import with_adamw


def test_default_epochs_few_images_warns_of_many_epochs(recwarn: pytest.WarningsRecorder) -> None:
    assert _default_epochs(4000) == 32 and not recwarn
    with pytest.warns(GapWarning, match="30 training images, .* 4267 epochs; `epochs`"):
        assert _default_epochs(30) == pytest.approx(4266.7, abs=0.1)


@pytest.mark.parametrize("kind", ["thresholded", "direct", "discriminator"])
def test_generator_training_augments_in_training_and_not_in_validation(kind: str) -> None:
    torch.manual_seed(0)
    inputs_seen: list[Tensor] = []
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).requires_grad_(False)
    classifier.register_forward_pre_hook(lambda module, inputs: inputs_seen.append(inputs[0].detach()))
    arguments = (
        with_adamw(nn.Conv2d(1, 1, 1), 0.0),
        [classifier],
        find_criterion("untargeted", 2),
        find_loss("margin"),
        lambda images: torch.zeros_like(images),
    )
    discriminator = nn.Sequential(nn.Flatten(), nn.Linear(16, 1), nn.Flatten(0))
    training = {
        "thresholded": lambda: BoundedGeneratorTraining(Budget("linf", 0.01), *arguments),
        "direct": lambda: DirectGeneratorTraining(L2, 1.0, *arguments),
        "discriminator": lambda: AdversarialGeneratorTraining(with_adamw(discriminator, 0.0), *arguments),
    }[kind]()
    training.modules["generator"].network.weight.data.zero_()
    training.modules["generator"].network.bias.data.zero_()
    images = torch.full((3, 1, 4, 4), 0.5)
    training.training_step(images, torch.zeros(3, dtype=torch.int64), torch.Tensor.backward)
    assert inputs_seen and all(not batch.any() for batch in inputs_seen)
    inputs_seen.clear()
    training.validation_step(images, torch.zeros(3, dtype=torch.int64))
    assert inputs_seen and all(torch.equal(batch, images) for batch in inputs_seen)
