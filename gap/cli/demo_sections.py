"""The sections of `gap demo`. Each uses the results of the earlier ones and adds a section to the page."""

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
from gap.evaluation.benchmark import evaluate_task, make_attack, parse_attacks
from gap.evaluation.robustness import evaluate_robustness
from gap.hardening.options import HardenOptions
from gap.hardening.train import harden_from_options
from gap.imagery.drawings import stylize
from gap.imagery.feature_visualization import Feature, visualize_features
from gap.imagery.traversal import traverse_images
from gap.models.feature_extractor import LOGITS
from gap.report.image_grid import CaptionedImage, image_grid
from gap.report.page import Figure, Section
from gap.report.pictures import save_image, to_image, to_png_bytes
from gap.report.tables import Column, Table
from gap.report.traversal_frames import TraversalFrames, key_frames, traversal_frames
from gap.report.video import save_video
from gap.threat import Budget
from gap.training.run import logs, run_in_folder

BUDGET = Budget("l2", 2.4)
CURVE = (0.6, 1.2, 1.8, 2.4)
# The number of test images for the evaluation of the hardened classifier.
IMAGES = 150
# The budget of the hardened classifier: half of that of the earlier sections.
HARD_BUDGET = Budget("l2", 1.2)


# The side of stylized images in pixels, the evaluations of each network, and the steps of the other drawings.
DRAWING_SIZE, EVALUATIONS, STEPS = 128, 60, 60


@dataclass
class Stage:
    """The state that the sections share: a folder of artifacts, and the sections of the page."""

    out: Path
    sections: list[Section] = field(default_factory=list)

    def make(self, name: str, work: Callable[..., Artifact], options: Options) -> Artifact:
        """Run a training into a new folder of the stage."""
        folder = self.out / name
        prepare_run_dir(folder, overwrite=True)
        return run_in_folder(name, work, options, folder, logs(folder))

    def path(self, name: str) -> str:
        return str(self.out / name)

    def task(self) -> AttackTask:
        """The demo's classifier and its data."""
        return load_task([self.path("classifier")], DataOptions())


def classifier_section(stage: Stage) -> None:
    """Train a standard classifier."""
    artifact = stage.make(
        "classifier", pretrain_from_options, PretrainOptions(classifier="mnist-cnn", epochs=12, batch_size=64)
    )
    accuracy = artifact.card["metrics"]["test"]["accuracy"]
    images = artifact.card["data"]["images"]
    text = (
        f"A small network is trained on {images['train']:,} digits. It classifies {accuracy:.1%} of"
        f" {images['test']:,} test images correctly."
    )
    facts = {
        "classifier": artifact.card["classifier"]["name"],
        "test accuracy": f"{accuracy:.2%}",
        "folder": stage.path("classifier"),
    }
    stage.sections.append(Section("A classifier", text, facts=facts))


def generator_section(stage: Stage) -> None:
    """Train a generator of per-image perturbations."""
    options = {"classifier": [stage.path("classifier")], "budget": str(BUDGET), "epochs": 16, "batch_size": 64}
    stage.make("per-image", train_from_options, TrainOptions.read(options))
    text = (
        f"A U-Net is trained to perturb any digit in one pass, within {BUDGET} (the L2 norm for pixels in [0, 1], of"
        " 28 x 28). From top to bottom: clean, the perturbation amplified, perturbed, and the predictions."
    )
    stage.sections.append(_pictures_section(stage, "A perturbation per image", text, "per-image"))


def universal_section(stage: Stage) -> None:
    """Train a universal perturbation."""
    options = {
        "classifier": [stage.path("classifier")],
        "budget": str(BUDGET),
        "universal": True,
        "epochs": 12,
        "batch_size": 64,
    }
    stage.make("universal", train_from_options, TrainOptions.read(options))
    text = (
        "The same kind of network, with a fixed noise image as its input, is trained to output one perturbation for all"
        " digits."
    )
    stage.sections.append(_pictures_section(stage, "One perturbation for all images", text, "universal"))


def comparison_section(stage: Stage) -> None:
    """Compare the generators with a gradient attack and baselines, over several budgets."""
    entries = parse_attacks([stage.path("per-image"), stage.path("universal"), "pgd", "noise", "checkerboard"])
    budgets = [Budget(BUDGET.norm, epsilon) for epsilon in CURVE]
    result = evaluate_task(entries, stage.task(), budgets, images=500, progress=False)
    at_budget = result.at(BUDGET)
    write_json(stage.out / "results.json", at_budget.to_dict())
    text = (
        "PGD computes the classifier's gradient up to 80 times for each image; the generator needs one pass. Noise and"
        " the checkerboard are baselines that do not use the classifier."
        f"\n\nThe table is at {BUDGET}, on 8-bit images, with 95% intervals."
    )
    figure = Figure(
        result.curves_png("Accuracy under attack"),
        "Accuracy under attack against epsilon",
        f"accuracy against epsilon for {', '.join(result.curves())}",
    )
    table = at_budget.table()
    stage.sections.append(Section("Measured", text, [figure], Table(table.rows, table.columns)))


def hardening_section(stage: Stage) -> None:
    """Harden the classifier, and compare it with the standard one under attacks on each."""
    options = {"classifier": stage.path("classifier"), "budget": str(HARD_BUDGET), "epochs": 9, "batch_size": 64}
    stage.make("hardened", harden_from_options, HardenOptions.read(options))
    adaptive_options = {
        "classifier": [stage.path("hardened")],
        "budget": str(HARD_BUDGET),
        "epochs": 6,
        "batch_size": 64,
    }
    stage.make("adaptive", train_from_options, TrainOptions.read(adaptive_options))
    results = {
        "standard": _robust_accuracies(stage, "classifier", {"generator": "per-image", "universal": "universal"}),
        "hardened": _robust_accuracies(
            stage, "hardened", {"generator": "adaptive", "universal": "universal"}, surrogate="classifier"
        ),
    }
    accuracies = {name: attack_accuracies for name, (attack_accuracies, _) in results.items()}
    rows = [
        {"attack": attack, **{name: attack_accuracies[attack] for name, attack_accuracies in accuracies.items()}}
        for attack in accuracies["hardened"]
    ]
    write_json(stage.out / "hardened.json", accuracies)
    text = (
        f"The classifier is trained on adversarial images within {HARD_BUDGET}, jointly with a generator of the initial"
        " images of these attacks. Each column is under attacks on that classifier itself: the generator is trained"
        " against it, and PGD and AutoAttack (its two gradient attacks) use its gradient. The universal perturbation is"
        " the one from above, so for the hardened classifier it is a transfer attack."
        f"\n\nThe table is the accuracy under attack on {IMAGES} test images."
    )
    table = Table(
        rows, [Column("attack", "attack"), Column("standard", "standard", ".1%"), Column("hardened", "hardened", ".1%")]
    )
    facts = {"masking checks": results["hardened"][1], "folder": stage.path("hardened")}
    stage.sections.append(Section("Hardened", text, [], table, facts))


def drawing_section(stage: Stage) -> None:
    """Compare drawings of hardened and standard networks: style transfer, the ten classes, and traversals."""
    backbones = {name: load_classifier(f"drawing-{name}") for name in ("standard", "hardened")}
    with Image.open(str(get_sample_data("grace_hopper.jpg", asfileobj=False))) as photo:
        content = pil_to_tensor(ImageOps.fit(photo.convert("RGB"), (DRAWING_SIZE, DRAWING_SIZE))).float() / 255
    style = _waves(DRAWING_SIZE)
    drawings = [CaptionedImage(to_image(content), "content"), CaptionedImage(to_image(style), "style")]
    for name, backbone in backbones.items():
        drawing = stylize(content, style, backbone=backbone, size=None, evaluations=EVALUATIONS, progress=False).image
        save_image(drawing, stage.out / f"stylized-{name}.png")
        drawings.append(CaptionedImage(to_image(drawing), f"drawn by the {name} one"))
    features: list[CaptionedImage] = []
    traversals: list[TraversalFrames] = []
    digits, labels = next(stage.task().data.test.batches([torch.arange(2)]))
    for name, folder in (("standard", "classifier"), ("hardened", "hardened")):
        classifier = load_classifier(stage.path(folder))
        class_images = visualize_features(classifier, [Feature(LOGITS, index) for index in range(10)], steps=STEPS)
        features += [
            CaptionedImage(to_image(class_image), f"{name}: {index}") for index, class_image in enumerate(class_images)
        ]
        traversal = traverse_images(classifier, digits, (labels + 5) % 10, steps=STEPS)
        traversals.append(TraversalFrames(name, traversal.images, traversal.probabilities))
    names = [str(index) for index in range(10)]
    save_video(traversal_frames(traversals, names), stage.out / "walk.mp4", fps=20)
    text = (
        "The features of hardened networks are closer to human perception. The first sheet is a photo in the style of a"
        f" pattern, after {EVALUATIONS} evaluations of two small networks that come with gap, with the same"
        " architecture: standard and hardened. The second has images that activate the classes of the two digit"
        " classifiers of this page, from noise and without any prior. The third moves two digits along the gradient of"
        " another class."
        "\n\nThe photo is of Grace Hopper, by the United States Navy, from matplotlib's samples."
    )
    figures = [
        Figure(to_png_bytes(image_grid(drawings)), "A photo in a style", "content, style, and two drawings"),
        Figure(to_png_bytes(image_grid(features, columns=10)), "Images that activate each class", "ten classes, twice"),
        Figure(
            to_png_bytes(key_frames(traversals, names)),
            "Traversals to another class (walk.mp4)",
            "key frames of two traversals",
        ),
    ]
    stage.sections.append(Section("Drawn", text, figures, facts={"folder": str(stage.out)}))


def _waves(side: int) -> torch.Tensor:
    """A style image: warped waves in five colors, 3 x side x side."""
    vertical, horizontal = torch.meshgrid(torch.linspace(0, 6, side), torch.linspace(0, 6, side), indexing="ij")
    warped = (2 * vertical + horizontal.sin() * 2).sin() + (2 * horizontal + vertical.cos() * 3).cos()
    position = (3 * warped).sin() * 2 + 2
    palette = torch.tensor(
        [[0.05, 0.10, 0.35], [0.10, 0.35, 0.70], [0.95, 0.80, 0.30], [0.90, 0.45, 0.15], [0.98, 0.95, 0.85]]
    )
    lower = position.floor().clamp(0, 3).long()
    mix = (position - lower)[..., None]
    return ((1 - mix) * palette[lower] + mix * palette[lower + 1]).permute(2, 0, 1)


def _robust_accuracies(
    stage: Stage, classifier: str, trained: dict[str, str], surrogate: str | None = None
) -> tuple[dict[str, float], str]:
    """The accuracy of a classifier under each attack, after the clean one, and the verdict."""
    task = load_task([stage.path(classifier)], DataOptions())
    classifier_under_attack, data = task.classifiers[0], task.data
    entries = parse_attacks([stage.path(folder) for folder in trained.values()])
    attacks = [make_attack(entry, HARD_BUDGET, classifier_under_attack, task, 0) for entry in entries]
    standard = load_classifier(stage.path(surrogate)) if surrogate else None
    report = evaluate_robustness(
        classifier_under_attack,
        data.test,
        HARD_BUDGET,
        images=IMAGES,
        fast=True,
        surrogate=standard,
        others=attacks,
        data=data.name,
    )
    accuracies, last_attack = report.attacks, report.autoattack[-1]
    trained_accuracies = {name: accuracies[attack.name] for name, attack in zip(trained, attacks, strict=True)}
    accuracy_by_attack = {
        "none": report.clean_accuracy,
        **trained_accuracies,
        "PGD": accuracies["pgd"],
        "AutoAttack (fast)": accuracies[last_attack],
    }
    return accuracy_by_attack, report.verdict


# The sections in the order of the page.
SECTIONS: tuple[Callable[[Stage], None], ...] = (
    classifier_section,
    generator_section,
    universal_section,
    comparison_section,
    hardening_section,
    drawing_section,
)


def _pictures_section(stage: Stage, title: str, text: str, name: str) -> Section:
    entries = parse_attacks([stage.path(name)])
    result = evaluate_task(entries, stage.task(), [BUDGET], images=500, progress=False)
    (row,) = result.rows
    facts = {
        "accuracy under attack": f"{row['accuracy_under_attack']:.1%}",
        "before": f"{row['clean_accuracy']:.1%}",
        "time per image": f"{row['seconds_per_image'] * 1000:.2f} ms",
        "folder": stage.path(name),
    }
    figure = Figure(to_png_bytes(result.pictures()), title, f"{title}: clean, perturbation, perturbed")
    return Section(title, text, [figure], None, facts)
