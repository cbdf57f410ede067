"""Stylizers draw any style in one forward pass; training lowers their objective."""

import math
import statistics
from pathlib import Path

import pytest
import torch
import yaml
from gap.models.stylizers import make_stylizer
from torch import Tensor, nn
from torch.utils.data import Dataset

from gap.classifiers.classifier import Classifier, load_classifier
from gap.core.errors import GapError
from gap.data.images import load_image
from gap.imagery.feed_forward import train as train_module
from gap.imagery.feed_forward.options import StylizerOptions
from gap.imagery.feed_forward.stylizer import FeedForwardStylizer, extract, load_stylizer
from gap.imagery.feed_forward.train import train_stylizer, train_stylizer_from_options
from gap.imagery.losses import ContentLoss
from gap.report.pictures import save_image, to_image

WIDTHS = [4, 8]


def make_maps(count: int, seed: int, side: int = 16) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.rand(count, width, side >> level, side >> level, generator=generator)
        for level, width in enumerate(WIDTHS)
    ]


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """A folder of content images, of waves, and one of style images, of stripes in several colors."""
    torch.manual_seed(0)
    down, across = torch.arange(40)[:, None], torch.arange(40)[None, :]
    for number in range(12):
        waves = ((down * 0.1 * (1 + number % 4)).sin() * (across * 0.07 * (1 + number % 3)).cos() * 0.5 + 0.5)[None]
        stripes = (((down + number * across) * 0.8).sin()[None] * 0.3 + torch.rand(3, 1, 1)).clamp(0, 1)
        save_image(to_image(waves.expand(3, -1, -1)), tmp_path / "contents" / f"{number}.png")
        save_image(to_image(stripes), tmp_path / "styles" / f"{number}.png")
    return tmp_path / "contents", tmp_path / "styles"


@pytest.mark.parametrize("form", ["adaptive", "gram-maps"])
def test_stylizer_any_size_gives_an_image_that_depends_on_the_style(form: str) -> None:
    torch.manual_seed(0)
    network = make_stylizer(form, WIDTHS, 3)
    first_style, second_style = (network.encode_style(make_maps(1, seed, side)) for seed, side in ((1, 16), (2, 24)))
    content = make_maps(1, 0)
    first, second = network(content, first_style, (33, 31)), network(content, second_style, (33, 31))
    assert first.shape == (1, 3, 33, 31) and first.min() >= 0 and first.max() <= 1
    assert (first - second).abs().max() > 1e-4


def test_adaptive_stylizer_normalized_maps_have_the_moments_of_the_style(monkeypatch: pytest.MonkeyPatch) -> None:
    network = make_stylizer("adaptive", WIDTHS, 3)
    decoded: list[Tensor] = []
    monkeypatch.setattr(network.decoder, "forward", lambda maps, size: decoded.extend(maps) or maps[0])
    styles = make_maps(2, 1)
    network(make_maps(2, 0), network.encode_style(styles), (16, 16))
    for normalized, style in zip(decoded, styles, strict=True):
        torch.testing.assert_close(normalized.mean(dim=(2, 3)), style.mean(dim=(2, 3)), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(normalized.std(dim=(2, 3)), style.std(dim=(2, 3)), rtol=1e-2, atol=1e-2)


def test_make_stylizer_unknown_type_raises_with_the_nearest() -> None:
    with pytest.raises(GapError, match="did you mean adaptive"):
        make_stylizer("adaptve", WIDTHS, 3)


def follows_styles(stylizer: FeedForwardStylizer, styles: Path) -> bool:
    """Whether most stylized images are nearer in color to their own style than to another one."""
    images = [load_image(path, 3, (16, 16)) / 255 for path in sorted(styles.iterdir())]
    means = torch.stack([image.mean(dim=(1, 2)) for image in images])
    means_of_results = torch.stack([stylizer(images[0], [style]).mean(dim=(1, 2)) for style in images])
    distances = (means_of_results - means).norm(dim=1)
    return (distances < (means_of_results - means.roll(1, dims=0)).norm(dim=1)).float().mean().item() > 0.7


@pytest.mark.parametrize("form", ["adaptive", "gram-maps"])
def test_train_stylizer_lowers_the_loss_and_its_artifact_draws(
    folders: tuple[Path, Path], tmp_path: Path, form: str
) -> None:
    contents, styles = folders
    options = {
        "content": f"folder:{contents}",
        "style": f"folder:{styles}",
        "type": form,
        "size": 16,
        "batch_size": 4,
        "epochs": 30,
        "device": "cpu",
    }
    losses: list[float] = []
    folder = tmp_path / form
    folder.mkdir()
    artifact = train_stylizer_from_options(
        StylizerOptions.read(options), folder, [lambda progress: losses.append(progress.metrics.get("loss", math.inf))]
    )
    # The first value is reported before the first training step.
    assert statistics.median(losses[-5:]) < 0.8 * statistics.median(losses[1:6]), losses
    assert set(artifact.card["metrics"]["validation"]) == {"objective", "style", "content", "colors"}
    # The type gram-maps needs a longer training for that.
    assert form == "gram-maps" or follows_styles(load_stylizer(folder), styles)
    stylizer = load_stylizer(folder)
    content, style = torch.rand(3, 20, 30), torch.rand(3, 24, 18)
    result = stylizer(content, [style, content], [1, 0])
    assert result.shape == content.shape
    torch.testing.assert_close(result, stylizer(content, [style]))
    with pytest.raises(GapError, match="drawing-standard is another"):
        load_stylizer(folder, load_classifier("drawing-standard"))
    tiny = stylizer(torch.rand(3, 5, 7), [torch.rand(3, 8, 8)])
    assert tiny.shape == (3, 5, 7) and tiny.isfinite().all()


def test_train_stylizer_content_loss_is_at_the_default_content_layer(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: a content layer, such as the usual one of VGG, that is ignored because it is no layer of style."""
    layers: list[str] = []
    monkeypatch.setattr(train_module, "default_content_layers", lambda backbone: ["conv1"])
    monkeypatch.setattr(
        train_module, "ContentLoss", lambda layer, target: layers.append(layer) or ContentLoss(layer, target)
    )
    (tmp_path / "out").mkdir()
    options = {"content": f"folder:{folders[0]}", "style": f"folder:{folders[1]}", "size": 16, "epochs": 1}
    artifact = train_stylizer_from_options(StylizerOptions.read(options | {"device": "cpu"}), tmp_path / "out")
    assert set(layers) == {"conv1"} and "conv1" not in artifact.card["layers"]
    assert load_stylizer(tmp_path / "out")(torch.rand(3, 20, 30), [torch.rand(3, 24, 18)]).shape == (3, 20, 30)


def test_load_stylizer_code_named_by_the_card_is_not_executed(tmp_path: Path) -> None:
    """Catches: code that runs because the card names it as the architecture, or as the name alone."""
    code = tmp_path / "evil.py"
    code.write_text("raise SystemExit('it ran')\n")
    metadata = load_classifier("drawing-hardened").describe()
    for part in ("name", "architecture"):
        card = {
            "kind": "stylizer",
            "backbone": metadata | {part: f"{code}:make"},
            "type": "adaptive",
            "layers": ["layer1"],
            "widths": [4],
        }
        (tmp_path / "card.yaml").write_text(yaml.safe_dump(card))
        with pytest.raises(GapError, match="which is code"):
            load_stylizer(tmp_path)


def test_train_stylizer_layer_without_gradient_is_refused_by_name(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: a stylizer that is trained without a warning although its backbone passes no gradient."""
    contents, styles = folders
    options = {
        "content": f"folder:{contents}",
        "style": f"folder:{styles}",
        "size": 16,
        "batch_size": 4,
        "device": "cpu",
    }

    def detached(extractor: object, images: Tensor) -> dict[str, Tensor]:
        return {name: output.detach() for name, output in extract(extractor, images).items()}  # type: ignore[arg-type]

    monkeypatch.setattr(train_module, "extract", detached)
    with pytest.raises(GapError, match="passes no gradient to the drawing"):
        train_stylizer_from_options(StylizerOptions.read(options), tmp_path, [])


class Images(Dataset[Tensor]):
    """A torch dataset of images without labels."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


class Net(nn.Module):
    """A network of the user, in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.body = nn.Conv2d(4, 8, 3, stride=2, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(self.stem(images).relu()).relu().mean(dim=(2, 3)))
        return logits


@pytest.mark.parametrize("normalized", [False, True], ids=["module", "classifier"])
def test_train_stylizer_of_objects_gives_a_stylizer_in_memory_that_is_saved(tmp_path: Path, normalized: bool) -> None:
    """Catches: images or a network that are only taken by name, and a user's network that is changed."""
    torch.manual_seed(0)
    net = Net()
    backbone = Classifier(net, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.2)) if normalized else net
    state = {name: value.clone() for name, value in net.state_dict().items()}
    contents, styles = torch.rand(12, 3, 30, 34), list(torch.rand(6, 3, 40, 40))
    random_state = torch.get_rng_state()
    stylizer = train_stylizer(
        Images(contents), styles, backbone=backbone, size=16, epochs=4, batch_size=4, progress=False
    )
    assert torch.equal(torch.get_rng_state(), random_state)
    assert net.training and all(parameter.requires_grad for parameter in net.parameters())
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert [row["epoch"] for row in stylizer.history if "validation_objective" in row] == [1.0, 2.0, 3.0, 4.0]
    assert set(stylizer.metrics["validation"]) == {"objective", "style", "content", "colors"}
    options = stylizer.artifact.card["options"]
    assert (options["content"], options["style"]) == ("Images", "list") and options["epochs"] == 4
    drawn = stylizer(contents[0], styles[:1])
    assert drawn.shape == (3, 30, 34) and drawn.isfinite().all()
    stylizer.save(tmp_path / "saved")
    assert torch.equal(load_stylizer(tmp_path / "saved", backbone)(contents[0], styles[:1]), drawn)
    with pytest.raises(GapError, match="give it as `backbone`"):
        load_stylizer(tmp_path / "saved")


def test_train_stylizer_of_names_equals_that_of_the_command_line_and_resumes(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    """Catches: other defaults than those of the command line, and a finished folder that is trained again."""
    content, style = (f"folder:{folder}" for folder in folders)
    steps: list[int] = []
    settings = {"size": 16, "epochs": 1, "device": "cpu"}
    for _ in range(2):
        trained = train_stylizer(
            content, style, out=tmp_path / "python", resume=True, progress=False, **settings,
            callbacks=[lambda progress: steps.append(progress.step)],
        )  # fmt: skip
    assert steps and not trained.history and steps == sorted(steps)
    (tmp_path / "options").mkdir()
    options = StylizerOptions.read({"content": content, "style": style, **settings})
    artifact = train_stylizer_from_options(options, tmp_path / "options")
    assert artifact.card["options"] == trained.artifact.card["options"]
    assert all(torch.equal(value, trained.artifact.tensors()[name]) for name, value in artifact.tensors().items())


@pytest.mark.parametrize("argument", ["content", "style"])
def test_train_stylizer_of_one_image_is_refused_by_the_name_of_the_argument(argument: str) -> None:
    """Catches: a division by zero, as no image is held out."""
    images = {"content": torch.rand(6, 3, 32, 32), "style": torch.rand(6, 3, 32, 32)}
    images[argument] = images[argument][:1]
    with pytest.raises(GapError, match=f"too few pictures for `{argument}`"):
        train_stylizer(images["content"], images["style"], size=16, device="cpu", progress=False)
