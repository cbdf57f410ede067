"""Standard training of a classifier, so that there is something to attack."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from gap.classifiers.memory_format import check_training
from gap.classifiers.provenance import identify
from gap.classifiers.task import DataOptions, accuracy, load_setting, name_classes
from gap.core.artifact import Artefact, save_artefact
from gap.core.errors import GapError
from gap.training.augmentation import AugmentationOptions
from gap.training.runtime import TrainingMachineOptions, allow_unused_weights, main_first, make_accelerator
from gap.training.task import Backward, Job, Player, adam
from gap.training.trainer import Listener, Plan, train


class PretrainOptions(TrainingMachineOptions, AugmentationOptions, DataOptions):
    """Options of `gap pretrain`."""

    classifier: Annotated[str, Field(description="the classifier to train, from fresh or from its weights")] = (
        "mnist-cnn"
    )
    epochs: Annotated[float, Field(gt=0, description="passes over the training images")] = 6.0
    batch_size: Annotated[int, Field(ge=1, description="images a step, over all processes")] = 128
    lr: Annotated[float, Field(gt=0, description="peak learning rate of AdamW")] = 3e-3
    weight_decay: Annotated[float, Field(ge=0, description="of AdamW")] = 0.01
    smoothing: Annotated[float, Field(ge=0, lt=1, description="label smoothing")] = 0.05
    shift: Annotated[int, Field(ge=0, description="pixels that a picture may be moved, each way")] = 2


class StandardJob(Job):
    """Cross-entropy on augmented images."""

    def __init__(self, player: Player, smoothing: float, augmentation: nn.Module) -> None:
        self.players = {"classifier": player}
        self.smoothing = smoothing
        self.augmentation = augmentation

    def step(self, images: Tensor, labels: Tensor, backward: Backward) -> dict[str, Tensor]:
        player = self.players["classifier"]
        logits = player.network(self.augmentation(images))
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=self.smoothing)
        player.learn(loss, backward)
        return {"loss": loss, "accuracy": (logits.argmax(dim=1) == labels).float().mean()}

    def judge(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.players["classifier"].network(images)
        return {"accuracy": logits.argmax(dim=1) == labels}


def pretrain(
    options: PretrainOptions, folder: Path | str, listeners: Sequence[Listener] = (), *, resume: bool = False
) -> Artefact:
    """Train a classifier and leave it as an artefact in `folder`, which the caller has made ready.

    Raises GapError when the classifier and the data do not fit, or the data has no labels.
    """
    folder = Path(folder)
    accelerator = make_accelerator(options)
    if options.labels == "predicted":
        raise GapError("gap pretrain learns the data's own labels; leave out --labels predicted")
    labelled = options.model_copy(update={"labels": "data"})
    with main_first(accelerator):
        setting = load_setting([options.classifier], labelled, accelerator.device)
    classifier, data = setting.classifiers[0], setting.data
    if not check_training(classifier):
        allow_unused_weights(accelerator)
    name_classes(classifier, data)
    augmentation = options.augmentation(classifier.facts.size)
    job = StandardJob(adam(classifier, options.lr, options.weight_decay), options.smoothing, augmentation)
    plan = Plan(options.epochs, options.batch_size, options.seed)
    figures = train(
        job,
        data.train,
        data.validation,
        plan,
        folder,
        accelerator,
        listeners,
        resume=resume,
        identity=identify(data),
    )
    classifier.eval()
    card = {
        "classifier": classifier.describe(),
        "data": data.describe(),
        "figures": {"validation": figures, "test": {"accuracy": accuracy(classifier, data.test, accelerator.device)}},
        "options": options.dump(),
    }
    if not accelerator.is_main_process:
        return Artefact(folder, {"kind": "classifier", **card})
    return save_artefact(folder, "classifier", classifier.network.state_dict(), card)
