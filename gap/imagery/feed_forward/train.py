"""Train a network that draws any content in any style in one pass, from options to artefact."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from gap.classifiers.provenance import identify
from gap.classifiers.task import load_classifiers, parse_input
from gap.core.artifact import Artefact, save_artefact
from gap.core.errors import GapError
from gap.core.frozen import frozen
from gap.data.dataset import Dataset, Split
from gap.data.registry import load_data
from gap.imagery.backbone import default_content_layers, default_layers, prepared
from gap.imagery.feed_forward.stylizer import KIND, Form, see
from gap.imagery.losses import Colours, Content, Style
from gap.imagery.objectives import Look, Variation
from gap.imagery.style_transfer import COLOUR_WEIGHT, SMOOTHNESS, STYLE_WEIGHT
from gap.models.feature_extractor import Taps
from gap.models.stylizers import Stylizer, make_stylizer
from gap.training.augmentation import make_augmentation
from gap.training.runtime import TrainingMachineOptions, main_first, make_accelerator
from gap.training.task import Backward, Job, adam
from gap.training.trainer import Listener, Plan, train

# Pictures are read so many times larger than they are trained on, so that a random part is never enlarged.
ROOM = 2


class StylizerOptions(TrainingMachineOptions):
    """Options of `gap train-stylizer`."""

    content: Annotated[str, Field(description="pictures whose content is drawn: a data set by name, or folder:PATH")]
    style: Annotated[str, Field(description="pictures whose style is learned: folder:PATH; photos have style too")]
    data_root: Annotated[
        Path | None, Field(description="where downloaded data sets live; also the variable GAP_DATA")
    ] = None
    backbone: Annotated[str, Field(description="any classifier: what both are seen with, and what is compared")] = (
        "drawing-hardened"
    )
    input: Annotated[str | None, Field(description="what a backbone of your own takes, as 3x256x256")] = None
    mean: Annotated[list[float] | None, Field(description="normaliser of a backbone that has none: mean")] = None
    std: Annotated[list[float] | None, Field(description="and standard deviation, of pixels in [0, 1]")] = None
    form: Annotated[
        Form, Field(description="adaptive moves each channel's mean and spread; gram-maps is the plain form")
    ] = "adaptive"
    style_weight: Annotated[float, Field(ge=0, description="of style beside content, as in gap stylize")] = STYLE_WEIGHT
    colour_weight: Annotated[float, Field(ge=0, description="of the style's colours, beside its layers together")] = (
        COLOUR_WEIGHT
    )
    smoothness: Annotated[float, Field(ge=0, description="and of neighbouring pixels being alike")] = SMOOTHNESS
    size: Annotated[int, Field(ge=16, le=512, description="pixels of each side while training; it draws any size")] = (
        128
    )
    epochs: Annotated[float, Field(gt=0, description="passes over the content pictures")] = 20.0
    batch_size: Annotated[int, Field(ge=1, description="pictures a step, over all processes")] = 8
    lr: Annotated[float, Field(gt=0, description="peak learning rate of AdamW")] = 1e-3


class StylizerJob(Job):
    """The objective of stylizing, asked of a network that draws in one pass (Johnson et al., 2016), for styles that
    change from picture to picture."""

    def __init__(
        self,
        network: Stylizer,
        taps: Taps,
        layers: Sequence[str],
        kept: Sequence[str],
        styles: Dataset,
        options: StylizerOptions,
    ) -> None:
        """The stylizer sees, and style is compared at, `layers` of the taps; content is compared at `kept`."""
        self.players = {"stylizer": adam(network, options.lr)}
        self.code = network.code
        self.taps, self.layers, self.kept = taps, layers, kept
        self.styles, self.options = styles, options
        self.augmentation = make_augmentation((options.size, options.size), flip=True, crop=1 / ROOM)

    def step(self, images: Tensor, labels: Tensor, backward: Backward) -> dict[str, Tensor]:
        chosen = torch.randint(len(self.styles.train), (len(images),))
        styles = self.augmentation(_pictures(self.styles.train, chosen, images.device))
        _, figures = self._drawn(self.augmentation(images), styles)
        loss = figures["objective"].mean()
        self.players["stylizer"].learn(loss, backward)
        return {"loss": loss} | {
            name: values.detach().mean() for name, values in figures.items() if name != "objective"
        }

    def judge(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        parts = [self._drawn(*self._held_out(part)) for part in images.split(self.options.batch_size)]
        return {name: torch.cat([figures[name] for _, figures in parts]) for name in parts[0][1]}

    def pictures(self, images: Tensor) -> dict[str, Tensor]:
        contents, styles = self._held_out(images)
        return {"content": contents, "style": styles, "drawn": self._drawn(contents, styles)[0]}

    def _held_out(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Contents and held-out styles at the size they are trained on: which style is a matter of the content alone,
        whoever judges it and beside whatever others."""
        split = self.styles.validation
        chosen = (images * 255).round().long().flatten(1).sum(dim=1).cpu() % len(split)
        styles = _pictures(split, chosen, images.device)
        size = (self.options.size, self.options.size)
        contents, styles = (F.interpolate(each, size, mode="bilinear", antialias=True) for each in (images, styles))
        return contents, styles

    def _check_layers(self, look: Look) -> None:
        """Raise GapError naming a layer that passes no gradient to the drawing: nothing would be learned from it."""
        for name in (*self.layers, *self.kept):
            if not look.layers[name].requires_grad:
                raise GapError(
                    f"layer {name} passes no gradient to the drawing: the stylizer would learn nothing from it;"
                    " use a backbone that passes gradients at its stages"
                )

    def _drawn(self, contents: Tensor, styles: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Contents in styles, and the objective of each with its parts."""
        player = self.players["stylizer"]
        with frozen(self.taps.run):
            with torch.no_grad():
                of, like = see(self.taps, contents), see(self.taps, styles)
                code = self.code([like[name] for name in self.layers])
            drawn = player.network([of[name] for name in self.layers], code, tuple(contents.shape[-2:]))
            look = Look(drawn, see(self.taps, drawn))
            if look.images.requires_grad:
                self._check_layers(look)
            style = _mean([Style(name, like[name])(look) for name in self.layers])
            content = _mean([Content(name, of[name])(look) for name in self.kept])
            colours = Colours(styles)(look)
        asked = self.options
        whole = content + asked.style_weight * (style + asked.colour_weight * colours)
        whole = whole + asked.smoothness * Variation()(look)
        return drawn, {"objective": whole, "style": style, "content": content, "colours": colours}


def train_stylizer(
    options: StylizerOptions, folder: Path | str, listeners: Sequence[Listener] = (), *, resume: bool = False
) -> Artefact:
    """Train a stylizer and leave it as an artefact in `folder`, which the caller has made ready.

    Raises GapError when backbone and pictures do not fit.
    """
    folder = Path(folder)
    accelerator = make_accelerator(options)
    room = (ROOM * options.size, ROOM * options.size)
    with main_first(accelerator):
        asked = parse_input(options.input)
        (backbone,) = load_classifiers([options.backbone], asked, (3, room), options.mean, options.std)
        channels = backbone.facts.channels
        contents, styles = (
            load_data(name, options.data_root, channels=channels, size=room)
            for name in (options.content, options.style)
        )
    if not len(styles.train):
        raise GapError(f"{options.style} has no pictures to train on beside those held out; give five or more")
    layers, kept = default_layers(backbone), default_content_layers(backbone)
    backbone.to(accelerator.device)
    some = _pictures(contents.train, torch.arange(min(8, len(contents.train))), accelerator.device)
    taps = prepared(backbone, some, list(dict.fromkeys([*layers, *kept])))
    network, widths = _fresh(options.form, taps, layers, some, channels)
    job = StylizerJob(network, taps, layers, kept, styles, options)
    plan = Plan(options.epochs, options.batch_size, options.seed)
    figures = train(
        job,
        contents.train,
        contents.validation,
        plan,
        folder,
        accelerator,
        listeners,
        resume=resume,
        identity=identify(contents, [backbone]) | identify(styles),
    )
    card: dict[str, Any] = {
        "backbone": backbone.describe(),
        "form": options.form,
        "layers": layers,
        "widths": widths,
        "content": contents.describe(),
        "style": styles.describe(),
        "figures": {"validation": figures},
        "options": options.dump(),
    }
    if not accelerator.is_main_process:
        return Artefact(folder, {"kind": KIND, **card})
    return save_artefact(folder, KIND, network.state_dict(), card)


@torch.no_grad()
def _fresh(form: str, taps: Taps, layers: Sequence[str], images: Tensor, channels: int) -> tuple[Stylizer, list[int]]:
    """A fresh stylizer that knows how large each layer's output is for these images, and the layers' widths."""
    with frozen(taps.run):
        seen = see(taps, images)
        maps = [seen[name] for name in layers]
    if any(each.ndim != 4 for each in maps):
        raise GapError("a stylizer needs layers that give maps; take a convolutional backbone")
    widths = [each.shape[1] for each in maps]
    network = make_stylizer(form, widths, channels)
    network.scales = torch.stack([each.float().square().mean().sqrt() for each in maps]).cpu()
    return network.to(images.device).to(memory_format=torch.channels_last), widths


def _pictures(split: Split, chosen: Tensor, device: torch.device) -> Tensor:
    images, _ = next(iter(split.batches([chosen], device)))
    return images


def _mean(values: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(values)).mean(dim=0)
