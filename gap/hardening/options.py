"""Options of `gap harden`, and the inner attacks that they name."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, model_validator

from gap.attacks.generator.options import GeneratorOptions
from gap.classifiers.options import ClassifierTrainingOptions
from gap.core.errors import GapError
from gap.core.options import Options


@dataclass(frozen=True)
class InnerAttackType:
    """A kind of inner attack, and the options that it has.

    Attributes:
        description: one line for the help.
        takes_steps: whether it has the option `steps`.
        has_generator: whether a generator is trained jointly.
        from_folder: whether that generator may be loaded from a folder of `gap train`.
        keeps_clean: whether the classifier's loss has a term for the prediction on clean images (TRADES).
    """

    description: str
    takes_steps: bool = False
    has_generator: bool = False
    from_folder: bool = False
    keeps_clean: bool = False


# The names of `--attack`. Their initializers are defined in `gap.hardening.train.make_inner_attack`.
INNER_ATTACKS = {
    "generator": InnerAttackType(
        "the output of a U-Net, trained jointly; no gradient steps (the plain form, prone to overfitting)",
        has_generator=True,
        from_folder=True,
    ),
    "generator-gradient": InnerAttackType(
        "the output of a U-Net for the image and the classifier's input gradient, trained jointly", has_generator=True
    ),
    "generator-start": InnerAttackType(
        "gradient steps from the output of such a U-Net, with noise of half the budget",
        takes_steps=True,
        has_generator=True,
        from_folder=True,
    ),
    "universal": InnerAttackType("perturbations for all images, trained jointly; no gradient steps"),
    "universal-start": InnerAttackType(
        "gradient steps from such perturbations, with noise of half the budget", takes_steps=True
    ),
    "fgsm": InnerAttackType("one step of the budget from uniform noise of twice the budget, not projected (N-FGSM)"),
    "pgd": InnerAttackType("gradient steps from a random start; with one step, FGSM from there", takes_steps=True),
    "trades": InnerAttackType(
        "pgd on the divergence from the clean prediction, with a loss that keeps this prediction (TRADES)",
        takes_steps=True,
        keeps_clean=True,
    ),
    "trades-start": InnerAttackType(
        "the same from the output of a U-Net, with noise of half the budget",
        takes_steps=True,
        has_generator=True,
        from_folder=True,
        keeps_clean=True,
    ),
}
FROM_ARTIFACTS = tuple(name for name, kind in INNER_ATTACKS.items() if kind.from_folder)
GENERATING = tuple(name for name, kind in INNER_ATTACKS.items() if kind.has_generator)
STEPPING = tuple(name for name, kind in INNER_ATTACKS.items() if kind.takes_steps)
KEEPING = tuple(name for name, kind in INNER_ATTACKS.items() if kind.keeps_clean)
MAX_INITIAL_STEPS = 50


class SmallGeneratorOptions(GeneratorOptions):
    """A generator that is as fast as a small classifier, because it runs in every step."""

    encoder: Annotated[
        str, Field(description="Encoder of the U-Net: any of segmentation-models-pytorch, or tu-NAME from timm.")
    ] = "strided-32"
    decoder: Annotated[
        tuple[int, ...],
        Field(min_length=1, description="Channels of the decoder's stages, from the coarsest to the finest."),
    ] = (32, 32)
    pixel_unshuffle: Annotated[
        int,
        Field(
            ge=1, le=16, description="Space-to-depth factor: blocks of N x N pixels become channels before the network."
        ),
    ] = 4


class HardenOptions(ClassifierTrainingOptions):
    """Options of `gap harden`: the classifier, the attacks, the budget and the training."""

    classifier: Annotated[
        str,
        Field(
            description="Classifier to harden: randomly initialized, pretrained, or a folder.",
            json_schema_extra={"positional": True, "complete": "classifiers"},
        ),
    ]
    budget: Annotated[str, Field(description="Largest perturbation, such as linf:0.3 or l2:2.0, for pixels in [0, 1].")]
    attack: list[str] = Field(
        default_factory=lambda: ["generator-start"],
        description="Training attack: NAME, NAME=WEIGHT, NAME:steps=3=WEIGHT or NAME@FOLDER; repeatable. Names: "
        + ", ".join(INNER_ATTACKS),
        json_schema_extra={"complete": "inner attacks"},
    )
    steps: Annotated[
        int, Field(ge=1, le=MAX_INITIAL_STEPS, description=f"Gradient steps of {', '.join(STEPPING)}.")
    ] = 2
    num_generators: Annotated[
        int, Field(ge=1, description="Number of generators that share each batch of an attack.")
    ] = 1
    reset_every: Annotated[
        float, Field(ge=0, description="Reinitialize one generator of the population every N epochs; 0 is never.")
    ] = 0.0
    num_universal: Annotated[int, Field(ge=1, description="Number of universal perturbations.")] = 8
    clean_fraction: Annotated[float, Field(ge=0, lt=1, description="Fraction of each batch that stays clean.")] = 0.0
    recover: Annotated[
        bool,
        Field(
            description="On catastrophic overfitting (PGD accuracy on validation images "
            "collapses), restore the best weights and add one attack step."
        ),
    ] = True
    val_images: Annotated[
        int,
        Field(
            ge=1,
            description="Validation images that a 10-step PGD attacks after each epoch, to "
            "choose the weights that are kept.",
        ),
    ] = 2000
    epochs: Annotated[float, Field(gt=0, description="Passes over the training images.")] = 20.0
    epsilon_warmup: Annotated[
        float, Field(ge=0, lt=1, description="Fraction of training over which epsilon rises from 0.")
    ] = 0.2
    batch_size: Annotated[int, Field(ge=1, description="Images per step, over all processes.")] = 128
    lr: Annotated[float, Field(gt=0, description="Peak learning rate of the classifier's AdamW.")] = 2e-3
    generator_lr: Annotated[
        float, Field(gt=0, description="Peak learning rate of generators and universal perturbations.")
    ] = 2e-3
    weight_decay: Annotated[float, Field(ge=0, description="Weight decay of the classifier's AdamW.")] = 0.0
    label_smoothing: Annotated[float, Field(ge=0, lt=1, description="Label smoothing of the cross-entropy.")] = 0.0
    ema_window: Annotated[
        float, Field(gt=0, lt=1, description="Window of the moving average of the weights, as a fraction of all steps.")
    ] = 0.02
    beta: Annotated[
        float, Field(gt=0, description="Weight of the TRADES term that keeps the prediction on clean images.")
    ] = 6.0
    generator: SmallGeneratorOptions = SmallGeneratorOptions()

    @model_validator(mode="after")
    def _consistent(self) -> "HardenOptions":
        # These modules import torch, which the help does not need.
        from gap.hardening.inner_attacks import parse_inner_attack, parse_mixture
        from gap.threat import Budget

        Budget.parse(self.budget)
        if self.num_generators > 1 and any(
            parse_inner_attack(name).folder for name in (parse_mixture(self.attack) if self.attack else ())
        ):
            raise GapError(
                "`num_generators` makes copies of one that comes from a folder; name a folder for each instead"
            )
        self._check_used()
        return self

    def _check_used(self) -> None:
        """Raise GapError for a changed option that no attack of the mixture uses."""
        from gap.hardening.inner_attacks import parse_inner_attack, parse_mixture  # imports torch, as above

        specs = [parse_inner_attack(name) for name in (parse_mixture(self.attack) if self.attack else ())]
        kinds = {spec.kind for spec in specs}
        has_generator = bool(kinds & set(GENERATING))
        is_used = {
            "steps": any(spec.kind in STEPPING and spec.steps is None for spec in specs),
            "num_generators": has_generator,
            "reset_every": has_generator,
            "generator_lr": has_generator or any(kind.startswith("universal") for kind in kinds),
            "num_universal": any(kind.startswith("universal") for kind in kinds),
            "beta": bool(kinds & set(KEEPING)),
        }
        unused = [option for option in _changed(self) if not is_used.get(option, True)]
        if not any(spec.kind in GENERATING and not spec.folder for spec in specs):
            unused += _changed(self.generator)
        for option in unused:
            raise GapError(f"`{option}` does nothing: no attack of {', '.join(self.attack)} takes it")


def _changed(options: Options) -> list[str]:
    """The names of the options that differ from their defaults."""
    return [name for name, field in type(options).model_fields.items() if getattr(options, name) != field.default]
