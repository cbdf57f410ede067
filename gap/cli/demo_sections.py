"""The sections of `gap demo`: each makes something of what those before it left, and adds a section to the page."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from matplotlib.cbook import get_sample_data
from PIL import Image, ImageOps
from torchvision.transforms.functional import pil_to_tensor

from gap.attacks.generator.options import TrainOptions
from gap.attacks.generator.train import train_from_options
from gap.classifiers.classifier import load_classifier
from gap.classifiers.options import DataOptions, PretrainOptions
from gap.classifiers.pretrain import pretrain_from_options
from gap.classifiers.task import AttackTask, load_task
from gap.core.artifact import Artifact, prepare_run_dir
from gap.core.files import write_json
from gap.core.options import Options
from gap.evaluation.benchmark import make_attack, parse_attacks, run_benchmark
from gap.evaluation.evaluate import Evaluation
from gap.evaluation.results import columns_for, curves_of, for_display
from gap.evaluation.robustness import evaluate_robustness
from gap.hardening.options import HardenOptions
from gap.hardening.train import harden_from_options
from gap.imagery.drawings import stylize
from gap.imagery.feature_visualization import Feature, visualize_features
from gap.imagery.traversal import traverse_images
from gap.models.feature_extractor import LOGITS
from gap.report.image_grid import CaptionedImage, image_grid
from gap.report.page import Figure, Section
from gap.report.pictures import ContactRow, contact_sheet, save_image, to_image, to_png_bytes
from gap.report.plots import accuracy_curves
from gap.report.tables import Column, Table
from gap.report.traversal_frames import TraversalFrames, key_frames, traversal_frames
from gap.report.video import save_video
from gap.threat import Budget
from gap.training.run import logs, run_in_folder

BUDGET = Budget("l2", 2.4)
CURVE = (0.6, 1.2, 1.8, 2.4)
# How many held-out digits the hardened classifier is judged on.
IMAGES = 150
# What the hardened classifier is to withstand: half of the budget of the sections before.
HARD = Budget("l2", 1.2)


# Pixels of each side of what is stylized, and how often each network looks at it.
DRAWN, EVALUATIONS, STEPS = 128, 60, 60


@dataclass
class Stage:
    """What the sections hand on to each other: a folder of artifacts, and the page so far."""

    out: Path
    sections: list[Section] = field(default_factory=list)

    def make(self, name: str, work: Callable[..., Artifact], options: Options) -> Artifact:
        """Run a training verb into a fresh folder of the stage."""
        folder = self.out / name
        prepare_run_dir(folder, overwrite=True)
        return run_in_folder(name, work, options, folder, logs(folder))

    def path(self, name: str) -> str:
        return str(self.out / name)

    def task(self) -> AttackTask:
        """The demo's classifier and the data's test images."""
        return load_task([self.path("classifier")], DataOptions())


def classifier_section(stage: Stage) -> None:
    """A standard classifier, so that there is something to attack."""
    made = stage.make(
        "classifier", pretrain_from_options, PretrainOptions(classifier="mnist-cnn", epochs=12, batch_size=64)
    )
    share = made.card["metrics"]["test"]["accuracy"]
    images = made.card["data"]["images"]
    text = (
        f"A small network learns {images['train']:,} digits and reads {share:.1%} of {images['test']:,} held-out ones."
    )
    facts = {
        "classifier": made.card["classifier"]["name"],
        "test accuracy": f"{share:.2%}",
        "folder": stage.path("classifier"),
    }
    stage.sections.append(Section("A classifier", text, facts=facts))


def generator_section(stage: Stage) -> None:
    """One network that perturbs any image in a single pass."""
    options = {"classifier": [stage.path("classifier")], "budget": str(BUDGET), "epochs": 16, "batch_size": 64}
    stage.make("per-image", train_from_options, TrainOptions.read(options))
    text = (
        f"A U-Net learns to perturb any digit in one pass, within {BUDGET} (the L2 length in pixels of [0, 1], of"
        " 28 x 28). Above each other: clean, the perturbation amplified, perturbed, and what the classifier says."
    )
    stage.sections.append(_pictures_section(stage, "A perturbation per image", text, "per-image"))


def universal_section(stage: Stage) -> None:
    """One perturbation for all images."""
    options = {
        "classifier": [stage.path("classifier")],
        "budget": str(BUDGET),
        "universal": True,
        "epochs": 12,
        "batch_size": 64,
    }
    stage.make("universal", train_from_options, TrainOptions.read(options))
    text = (
        "The same kind of network, given one fixed noise image, learns a single perturbation for every digit at once."
    )
    stage.sections.append(_pictures_section(stage, "One perturbation for all images", text, "universal"))


def comparison_section(stage: Stage) -> None:
    """The generators beside a gradient attack and the controls that learn nothing, over several budgets."""
    task = stage.task()
    entries = parse_attacks([stage.path("per-image"), stage.path("universal"), "pgd", "noise", "checkerboard"])
    budgets = [Budget(BUDGET.norm, epsilon) for epsilon in CURVE]
    measured = [evaluation.row for evaluation in run_benchmark(entries, task, budgets, images=500)]
    curves = curves_of(measured)
    rows = [row for row in measured if row["budget"] == str(BUDGET)]
    write_json(stage.out / "table.json", {"rows": rows, "data": task.data.describe()})
    plot = accuracy_curves(curves, "Accuracy left", "L2 threshold, pixels in [0, 1]")
    text = (
        "PGD looks up the classifier's gradient up to 80 times for each image; the generator is one pass. Noise and the"
        " checkerboard learn nothing: what they do to the classifier is what any perturbation of this size does."
        f"\n\nThe table is at {BUDGET}, on 8-bit pictures, with 95% intervals."
    )
    figures = [Figure(plot, "Accuracy left against the threshold", f"accuracy against epsilon for {', '.join(curves)}")]
    stage.sections.append(Section("Measured", text, figures, Table(for_display(rows), columns_for(rows))))


def hardening_section(stage: Stage) -> None:
    """The classifier hardened, beside its standard surrogate, under attacks made for each."""
    options = {"classifier": stage.path("classifier"), "budget": str(HARD), "epochs": 9, "batch_size": 64}
    stage.make("hardened", harden_from_options, HardenOptions.read(options))
    against = {"classifier": [stage.path("hardened")], "budget": str(HARD), "epochs": 6, "batch_size": 64}
    stage.make("adaptive", train_from_options, TrainOptions.read(against))
    found = {
        "standard": _withstood(stage, "classifier", {"generator": "per-image", "universal": "universal"}),
        "hardened": _withstood(
            stage, "hardened", {"generator": "adaptive", "universal": "universal"}, surrogate="classifier"
        ),
    }
    left = {name: shares for name, (shares, _) in found.items()}
    rows = [{"attack": each, **{name: shares[each] for name, shares in left.items()}} for each in left["hardened"]]
    write_json(stage.out / "hardened.json", left)
    text = (
        f"The classifier learns on what attacks make of its digits, within {HARD}, while a generator learns beside it"
        " where those attacks had best begin. Each column is under attacks that look at that classifier itself: the"
        " generator is trained against it, PGD and AutoAttack (its two gradient attacks) follow its gradient. The"
        " universal perturbation is the one from above, so for the hardened classifier it is a transfer."
        f"\n\nThe table is the accuracy left of {IMAGES} held-out digits."
    )
    table = Table(
        rows, [Column("attack", "attack"), Column("standard", "standard", ".1%"), Column("hardened", "hardened", ".1%")]
    )
    facts = {"is the hardness real? the masking checks": found["hardened"][1], "folder": stage.path("hardened")}
    stage.sections.append(Section("Hardened", text, [], table, facts))


def drawing_section(stage: Stage) -> None:
    """What hardened networks draw beside standard ones: a style, the ten classes, a walk from digit to digit."""
    pair = {name: load_classifier(f"drawing-{name}") for name in ("standard", "hardened")}
    with Image.open(str(get_sample_data("grace_hopper.jpg", asfileobj=False))) as photo:
        content = pil_to_tensor(ImageOps.fit(photo.convert("RGB"), (DRAWN, DRAWN))).float() / 255
    style = _waves(DRAWN)
    drawn = [CaptionedImage(to_image(content), "content"), CaptionedImage(to_image(style), "style")]
    for name, backbone in pair.items():
        picture = stylize(content, style, backbone=backbone, size=None, evaluations=EVALUATIONS, progress=False).image
        save_image(picture, stage.out / f"stylized-{name}.png")
        drawn.append(CaptionedImage(to_image(picture), f"drawn by the {name} one"))
    features: list[CaptionedImage] = []
    walks: list[TraversalFrames] = []
    digits, labels = next(stage.task().data.test.batches([torch.arange(2)]))
    for name, folder in (("standard", "classifier"), ("hardened", "hardened")):
        classifier = load_classifier(stage.path(folder))
        ten = visualize_features(classifier, [Feature(LOGITS, index) for index in range(10)], steps=STEPS)
        features += [CaptionedImage(to_image(each), f"{name}: {index}") for index, each in enumerate(ten)]
        walk = traverse_images(classifier, digits, (labels + 5) % 10, steps=STEPS)
        walks.append(TraversalFrames(name, walk.images, walk.probabilities))
    names = [str(index) for index in range(10)]
    save_video(traversal_frames(walks, names), stage.out / "walk.mp4", fps=20)
    text = (
        "A hardened network sees more as people do. The first sheet is a photograph in the style of a pattern, after"
        f" {EVALUATIONS} looks of two small networks that come with gap: the same, standard and hardened. The second is"
        " what excites the two digit classifiers of this page, class by class, from noise and without any prior. The"
        " third walks two digits up the logit of another class."
        "\n\nThe photograph is of Grace Hopper, by the United States Navy, from matplotlib's samples."
    )
    figures = [
        Figure(to_png_bytes(image_grid(drawn)), "A photograph in a style", "content, style, and two drawings"),
        Figure(to_png_bytes(image_grid(features, columns=10)), "What excites each class", "ten classes, twice"),
        Figure(to_png_bytes(key_frames(walks, names)), "Walks to another class (walk.mp4)", "key frames of two walks"),
    ]
    stage.sections.append(Section("Drawn", text, figures, facts={"folder": str(stage.out)}))


def _waves(side: int) -> torch.Tensor:
    """A pattern to take a style from: warped waves in five colors, 3 x side x side."""
    down, across = torch.meshgrid(torch.linspace(0, 6, side), torch.linspace(0, 6, side), indexing="ij")
    bent = (2 * down + across.sin() * 2).sin() + (2 * across + down.cos() * 3).cos()
    place = (3 * bent).sin() * 2 + 2
    palette = torch.tensor(
        [[0.05, 0.10, 0.35], [0.10, 0.35, 0.70], [0.95, 0.80, 0.30], [0.90, 0.45, 0.15], [0.98, 0.95, 0.85]]
    )
    below = place.floor().clamp(0, 3).long()
    mix = (place - below)[..., None]
    return ((1 - mix) * palette[below] + mix * palette[below + 1]).permute(2, 0, 1)


def _withstood(
    stage: Stage, classifier: str, trained: dict[str, str], surrogate: str | None = None
) -> tuple[dict[str, float], str]:
    """The accuracy left of a classifier by each attack, clean first, all of the same digits, and the verdict."""
    task = load_task([stage.path(classifier)], DataOptions())
    judged, data = task.classifiers[0], task.data
    entries = parse_attacks([stage.path(folder) for folder in trained.values()])
    attacks = [make_attack(entry, HARD, judged, task, 0) for entry in entries]
    standard = load_classifier(stage.path(surrogate)) if surrogate else None
    report = evaluate_robustness(
        judged, data.test, HARD, images=IMAGES, fast=True, surrogate=standard, others=attacks, data=data.name
    )
    left, last = report.attacks, report.autoattack[-1]
    own = {name: left[attack.name] for name, attack in zip(trained, attacks, strict=True)}
    shares = {"none": report.clean_accuracy, **own, "PGD": left["pgd"], "AutoAttack (fast)": left[last]}
    return shares, report.verdict


# The order of the page. A later chapter of the chain is a function here.
SECTIONS: tuple[Callable[[Stage], None], ...] = (
    classifier_section,
    generator_section,
    universal_section,
    comparison_section,
    hardening_section,
    drawing_section,
)


def _pictures_section(stage: Stage, title: str, text: str, name: str) -> Section:
    (evaluation,) = run_benchmark(parse_attacks([stage.path(name)]), stage.task(), [BUDGET], images=500)
    row = evaluation.row
    facts = {
        "accuracy left": f"{row['accuracy_under_attack']:.1%}",
        "before": f"{row['clean_accuracy']:.1%}",
        "time per image": f"{row['seconds_per_image'] * 1000:.2f} ms",
        "folder": stage.path(name),
    }
    return Section(
        title, text, [Figure(_sheet(evaluation, title), title, f"{title}: clean, perturbation, perturbed")], None, facts
    )


def _sheet(evaluation: Evaluation, title: str) -> bytes:
    example = evaluation.example
    return to_png_bytes(contact_sheet([ContactRow(title, example.clean, example.adversarial, example.captions)]))
