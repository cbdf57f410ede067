"""Standard training of a classifier, so that there is something to attack."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from gap.classifiers.memory_format import check_training
from gap.classifiers.provenance import data_fingerprints
from gap.classifiers.task import DataOptions, accuracy, load_task, name_classes
from gap.core.artifact import Artifact, save_artifact
from gap.core.errors import GapError
from gap.training.augmentation import AugmentationOptions
from gap.training.runtime import TrainRuntimeOptions, allow_unused_weights, main_first, make_accelerator
from gap.training.task import Backward, OptimizedModule, TrainingTask, with_adamw
from gap.training.trainer import Callback, TrainSchedule, train


class PretrainOptions(TrainRuntimeOptions, AugmentationOptions, DataOptions):
    """Options of `gap pretrain`."""

    classifier: Annotated[str, Field(description="the classifier to train, from fresh or from its weights")] = (
        "mnist-cnn"
    )
    epochs: Annotated[float, Field(gt=0, description="passes over the training images")] = 6.0
    batch_size: Annotated[int, Field(ge=1, description="images a step, over all processes")] = 128
    lr: Annotated[float, Field(gt=0, description="peak learning rate of AdamW")] = 3e-3
    weight_decay: Annotated[float, Field(ge=0, description="of AdamW")] = 0.01
    label_smoothing: Annotated[float, Field(ge=0, lt=1, description="label smoothing")] = 0.05
    shift: Annotated[int, Field(ge=0, description="pixels that a picture may be moved, each way")] = 2


class ClassifierTraining(TrainingTask):
    """Cross-entropy on augmented images."""

    def __init__(self, module: OptimizedModule, label_smoothing: float, augmentation: nn.Module) -> None:
        self.modules = {"classifier": module}
        self.label_smoothing = label_smoothing
        self.augmentation = augmentation

    def training_step(self, images: Tensor, labels: Tensor, backward: Backward) -> dict[str, Tensor]:
        module = self.modules["classifier"]
        logits = module.network(self.augmentation(images))
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=self.label_smoothing)
        module.update(loss, backward)
        return {"loss": loss, "accuracy": (logits.argmax(dim=1) == labels).float().mean()}

    def validation_step(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.modules["classifier"].network(images)
        return {"accuracy": logits.argmax(dim=1) == labels}


def pretrain(
    options: PretrainOptions, folder: Path | str, callbacks: Sequence[Callback] = (), *, resume: bool = False
) -> Artifact:
    """Train a classifier and leave it as an artifact in `folder`, which the caller has made ready.

    Raises GapError when the classifier and the data do not fit, or the data has no labels.
    """
    folder = Path(folder)
    accelerator = make_accelerator(options)
    if options.labels == "predicted":
        raise GapError("gap pretrain learns the data's own labels; leave out --labels predicted")
    labeled = options.model_copy(update={"labels": "data"})
    with main_first(accelerator):
        task = load_task([options.classifier], labeled, accelerator.device)
    classifier, data = task.classifiers[0], task.data
    if not check_training(classifier):
        allow_unused_weights(accelerator)
    name_classes(classifier, data)
    augmentation = options.augmentation(classifier.spec.size)
    training = ClassifierTraining(
        with_adamw(classifier, options.lr, options.weight_decay), options.label_smoothing, augmentation
    )
    schedule = TrainSchedule(options.epochs, options.batch_size, options.seed)
    metrics = train(
        training,
        data.train,
        data.validation,
        schedule,
        folder,
        accelerator,
        callbacks,
        resume=resume,
        fingerprints=data_fingerprints(data),
    )
    classifier.eval()
    card = {
        "classifier": classifier.describe(),
        "data": data.describe(),
        "metrics": {"validation": metrics, "test": {"accuracy": accuracy(classifier, data.test, accelerator.device)}},
        "options": options.to_dict(),
    }
    if not accelerator.is_main_process:
        return Artifact(folder, {"kind": "classifier", **card})
    return save_artifact(folder, "classifier", classifier.network.state_dict(), card)
