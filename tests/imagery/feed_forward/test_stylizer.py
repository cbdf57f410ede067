"""Networks that draw any style in one pass: what they are made of, and that training makes them better."""

import math
import statistics
from pathlib import Path

import pytest
import torch
import yaml
from gap.models.stylizers import make_stylizer
from torch import Tensor

from gap.classifiers.classifier import load_classifier
from gap.core.errors import GapError
from gap.data.images import load_image
from gap.imagery.feed_forward import train as train_module
from gap.imagery.feed_forward import train as training
from gap.imagery.feed_forward.options import StylizerOptions
from gap.imagery.feed_forward.stylizer import FeedForwardStylizer, extract, load_stylizer
from gap.imagery.feed_forward.train import train_stylizer
from gap.imagery.losses import ContentLoss
from gap.report.pictures import save_image, to_image

WIDTHS = [4, 8]


def maps(count: int, seed: int, side: int = 16) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.rand(count, width, side >> place, side >> place, generator=generator)
        for place, width in enumerate(WIDTHS)
    ]


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Waves to draw, and stripes of several colors to learn."""
    torch.manual_seed(0)
    down, across = torch.arange(40)[:, None], torch.arange(40)[None, :]
    for number in range(12):
        waves = ((down * 0.1 * (1 + number % 4)).sin() * (across * 0.07 * (1 + number % 3)).cos() * 0.5 + 0.5)[None]
        stripes = (((down + number * across) * 0.8).sin()[None] * 0.3 + torch.rand(3, 1, 1)).clamp(0, 1)
        save_image(to_image(waves.expand(3, -1, -1)), tmp_path / "contents" / f"{number}.png")
        save_image(to_image(stripes), tmp_path / "styles" / f"{number}.png")
    return tmp_path / "contents", tmp_path / "styles"


@pytest.mark.parametrize("form", ["adaptive", "gram-maps"])
def test_a_stylizer_draws_any_size_and_heeds_the_style(form: str) -> None:
    torch.manual_seed(0)
    network = make_stylizer(form, WIDTHS, 3)
    one, other = (network.encode_style(maps(1, seed, side)) for seed, side in ((1, 16), (2, 24)))
    content = maps(1, 0)
    drawn, again = network(content, one, (33, 31)), network(content, other, (33, 31))
    assert drawn.shape == (1, 3, 33, 31) and drawn.min() >= 0 and drawn.max() <= 1
    assert (drawn - again).abs().max() > 1e-4


def test_adaptive_maps_take_on_the_moments_of_the_style(monkeypatch: pytest.MonkeyPatch) -> None:
    network = make_stylizer("adaptive", WIDTHS, 3)
    seen: list[Tensor] = []
    monkeypatch.setattr(network.decoder, "forward", lambda given, size: seen.extend(given) or given[0])
    styles = maps(2, 1)
    network(maps(2, 0), network.encode_style(styles), (16, 16))
    for given, style in zip(seen, styles, strict=True):
        torch.testing.assert_close(given.mean(dim=(2, 3)), style.mean(dim=(2, 3)), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(given.std(dim=(2, 3)), style.std(dim=(2, 3)), rtol=1e-2, atol=1e-2)


def test_an_unknown_form() -> None:
    with pytest.raises(GapError, match="did you mean adaptive"):
        make_stylizer("adaptve", WIDTHS, 3)


def heeds_styles(swift: FeedForwardStylizer, styles: Path) -> bool:
    """Whether drawings are nearer in color to the style they were drawn in than to another, for most."""
    pictures = [load_image(path, 3, (16, 16)) / 255 for path in sorted(styles.iterdir())]
    means = torch.stack([each.mean(dim=(1, 2)) for each in pictures])
    drawn = torch.stack([swift(pictures[0], [style]).mean(dim=(1, 2)) for style in pictures])
    own = (drawn - means).norm(dim=1)
    return (own < (drawn - means.roll(1, dims=0)).norm(dim=1)).float().mean().item() > 0.7


@pytest.mark.parametrize("form", ["adaptive", "gram-maps"])
def test_training_lowers_the_objective_and_the_artifact_draws(
    folders: tuple[Path, Path], tmp_path: Path, form: str
) -> None:
    contents, styles = folders
    given = {
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
    artifact = train_stylizer(
        StylizerOptions.read(given), folder, [lambda progress: losses.append(progress.metrics.get("loss", math.inf))]
    )
    # The first is told before anything is learned.
    assert statistics.median(losses[-5:]) < 0.8 * statistics.median(losses[1:6]), losses
    assert set(artifact.card["metrics"]["validation"]) == {"objective", "style", "content", "colors"}
    # The plain form has not learned that much yet.
    assert form == "gram-maps" or heeds_styles(load_stylizer(folder), styles)
    swift = load_stylizer(folder)
    content, style = torch.rand(3, 20, 30), torch.rand(3, 24, 18)
    drawn = swift(content, [style, content], [1, 0])
    assert drawn.shape == content.shape
    torch.testing.assert_close(drawn, swift(content, [style]))
    with pytest.raises(GapError, match="drawing-standard is another"):
        load_stylizer(folder, load_classifier("drawing-standard"))
    tiny = swift(torch.rand(3, 5, 7), [torch.rand(3, 8, 8)])
    assert tiny.shape == (3, 5, 7) and tiny.isfinite().all()


def test_content_is_compared_where_stylize_compares_it(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also at a layer that is no layer of style, as VGG's usual one: the stylizer does not see it."""
    seen: list[str] = []
    monkeypatch.setattr(training, "default_content_layers", lambda backbone: ["conv1"])
    monkeypatch.setattr(training, "ContentLoss", lambda layer, target: seen.append(layer) or ContentLoss(layer, target))
    (tmp_path / "out").mkdir()
    given = {"content": f"folder:{folders[0]}", "style": f"folder:{folders[1]}", "size": 16, "epochs": 1}
    artifact = train_stylizer(StylizerOptions.read(given | {"device": "cpu"}), tmp_path / "out")
    assert set(seen) == {"conv1"} and "conv1" not in artifact.card["layers"]
    assert load_stylizer(tmp_path / "out")(torch.rand(3, 20, 30), [torch.rand(3, 24, 18)]).shape == (3, 20, 30)


def test_code_that_only_a_card_names_is_not_run(tmp_path: Path) -> None:
    """Whether its architecture says so, or its name alone."""
    code = tmp_path / "evil.py"
    code.write_text("raise SystemExit('it ran')\n")
    told = load_classifier("drawing-hardened").describe()
    for part in ("name", "architecture"):
        card = {
            "kind": "stylizer",
            "backbone": told | {part: f"{code}:make"},
            "type": "adaptive",
            "layers": ["layer1"],
            "widths": [4],
        }
        (tmp_path / "card.yaml").write_text(yaml.safe_dump(card))
        with pytest.raises(GapError, match="which is code"):
            load_stylizer(tmp_path)


def test_train_stylizer_with_a_layer_without_gradient_is_refused_by_name(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: a stylizer that trains in silence although its backbone passes no gradient."""
    contents, styles = folders
    given = {"content": f"folder:{contents}", "style": f"folder:{styles}", "size": 16, "batch_size": 4, "device": "cpu"}

    def detached(extractor: object, images: Tensor) -> dict[str, Tensor]:
        return {name: output.detach() for name, output in extract(extractor, images).items()}  # type: ignore[arg-type]

    monkeypatch.setattr(train_module, "extract", detached)
    with pytest.raises(GapError, match="passes no gradient to the drawing"):
        train_stylizer(StylizerOptions.read(given), tmp_path, [])
