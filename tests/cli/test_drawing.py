"""Drawing through the command line."""

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gap.cli.drawing import DrawingProgress
from gap.data.registry import load_data
from gap.imagery.optimize import OptimizationProgress
from gap.report.pictures import save_image, to_image


@pytest.fixture
def digit(tmp_path: Path) -> Path:
    test = load_data("mnist-5k").test
    images, _ = next(test.batches([torch.tensor([3])]))
    return save_image(to_image(images), tmp_path / "digit.png")


def test_traverse(run: Callable[..., Any], classifier: Path, digit: Path, tmp_path: Path) -> None:
    out = tmp_path / "walk.gif"
    ended = run(
        "traverse", classifier, digit, "--compare-with", "mnist-cnn", "--target-class=0", "--steps=8", "--out", out
    )
    assert ended.code == 0, ended.err
    assert "digit.png" in ended.out and "within l2:7" in ended.out
    said = [line for line in ended.out.splitlines() if "->" in line]
    assert len(said) == 2 and all("-> 0 " in line or "(not 0, " in line for line in said)
    assert ended.out.splitlines()[-1] == str(out)
    with Image.open(out) as walk, Image.open(tmp_path / "walk.frames.png") as sheet:
        assert walk.n_frames >= 5 and sheet.width > 300


def test_where_a_walk_ends_short_of_its_class_it_says_so(
    run: Callable[..., Any], classifier: Path, digit: Path, tmp_path: Path
) -> None:
    for budget, steps, short in (("l2:0.01", 1, True), ("l2:12", 40, False)):
        given = ["--target-class=0", f"--budget={budget}", f"--steps={steps}", "--out", tmp_path / "walk.gif"]
        assert ("(not 0, " in run("traverse", classifier, digit, *given).out) == short


def test_no_drawing_takes_the_place_of_a_picture_it_is_made_from(
    run: Callable[..., Any], classifier: Path, digit: Path, pictures: list[Path], tmp_path: Path
) -> None:
    before = [path.read_bytes() for path in (digit, *pictures)]
    frames = digit.rename(tmp_path / "walk.frames.png")
    given = [
        ["stylize", *pictures, "--out", pictures[0]],
        ["stylize", *pictures, "--out", pictures[1]],
        ["texture", pictures[1], "--out", pictures[1]],
        ["visualize", NET, "logit:0", "--init", pictures[0], "--out", pictures[0]],
        ["traverse", classifier, frames, "--target-class=0", "--out", tmp_path / "walk.mp4"],
    ]
    for arguments in given:
        ended = run(*arguments)
        assert ended.code == 2 and "would be lost" in ended.complaint, arguments
    assert [path.read_bytes() for path in (frames, *pictures)] == before


def test_a_network_of_one_s_own_walks_beside_at_the_first_one_s_size(
    run: Callable[..., Any], classifier: Path, digit: Path, networks: Path, tmp_path: Path
) -> None:
    own = f"{networks}:mean"
    ended = run(
        "traverse",
        classifier,
        digit,
        "--compare-with",
        own,
        "--target-class=0",
        "--steps=2",
        "--out",
        tmp_path / "walk.gif",
    )
    assert ended.code == 0, ended.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--target-class=11", "--out=walk.gif"), "has the classes 0 to 9, not 11"),
        (("--target-class=zero", "--out=walk.gif"), "unknown class 'zero'"),
        (("--target-class=0", "--out=walk.avi"), "end it in .mp4 or .gif"),
        (("--target-class=0", "--out=walk.gif", "--budget=l2:40"), "allows every picture"),
        (("--target-class=0", "--out=walk.gif", "--compare-with=efficientnet-lite0"), "differ in channels or classes"),
    ],
)
def test_mistakes(
    run: Callable[..., Any], classifier: Path, digit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...], message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    ended = run("traverse", classifier, digit, *arguments)
    assert ended.code == 2 and message in ended.complaint
    assert not list(tmp_path.glob("walk*"))


# It comes with gap, and sees 32 pixels: quicker to make ready than a fresh one.
NET = "drawing-hardened"


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """Of two sizes, in two modes."""
    torch.manual_seed(0)
    waves = (torch.arange(40)[:, None] * 0.3 + torch.arange(56)[None, :] * 0.7).sin() * 0.4 + 0.5
    content = save_image(to_image(waves[None]), tmp_path / "content.png")
    return [content, save_image(to_image(torch.rand(3, 30, 30)), tmp_path / "style.png")]


def test_stylize(run: Callable[..., Any], pictures: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "new" / "stylized.png"
    ended = run("stylize", *pictures, "--backbone", NET, "--size=32", "--evaluations=5", "--out", out)
    assert ended.code == 0, ended.err
    assert ended.out.splitlines()[-2:] == ["5 evaluations", str(out)] and "style at relu2_x" in ended.out
    with Image.open(out) as drawn:
        assert drawn.size == (32, 23) and drawn.mode == "RGB"


def test_stylize_with_two_styles_masks_and_another_content_network(
    run: Callable[..., Any], pictures: list[Path], tmp_path: Path
) -> None:
    content, style = pictures
    given = ["--backbone", NET, "--content-backbone", NET, "--layers=relu2_x,relu3_x", "--content-layers=relu4_x"]
    more = ["--weights=2,1", "--mask", content, "--mask", content, "--keep-colors", "--optimizer=adam"]
    out = tmp_path / "s.png"
    ended = run("stylize", content, style, style, *given, *more, "--size=32", "--evaluations=3", "--out", out)
    assert ended.code == 0, ended.err
    assert "content at content relu4_x" in ended.out and "relu5_x" not in ended.out


def test_a_shaken_look_draws_another_picture(run: Callable[..., Any], tmp_path: Path) -> None:
    """Also without the natural prior; nothing moves but what was asked for."""

    def drawn(*given: str) -> bytes:
        out = tmp_path / "drawn.png"
        assert run("visualize", NET, "logit:3", "--steps=3", *given, "--out", out).code == 0
        return out.read_bytes()

    assert drawn("--jitter=0") == drawn() != drawn("--pad=4")


def test_nothing_is_drawn_where_a_later_feature_is_not_there(run: Callable[..., Any], tmp_path: Path) -> None:
    """Neither a sheet of the first, nor in place of an older sheet."""
    out = tmp_path / "sheet.png"
    out.write_bytes(b"older")
    for wrong, message in (("layer9:0", "unknown layer 'layer9'"), ("layer1:99", "not 99")):
        ended = run("visualize", NET, "layer1:0", wrong, "--steps=2", "--out", out)
        assert ended.code == 2 and message in ended.err
        assert out.read_bytes() == b"older"


def test_texture(run: Callable[..., Any], pictures: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "texture.png"
    ended = run("texture", pictures[1], "--backbone", NET, "--size=24", "--evaluations=4", "--out", out)
    assert ended.code == 0, ended.err
    with Image.open(out) as drawn:
        assert drawn.size == (24, 24)


@pytest.mark.parametrize(
    ("given", "count"),
    [
        (["logit:3", "layer2:0-2,5"], 5),
        (["layer1:0", "--prior=natural", "--size=16"], 1),
        (["layer1:0,2@center"], 2),
        (["layer1:0,2", "--samples=2", "--diversity=1"], 4),
        (["layer1:0", "--jitter=2", "--pad=2", "--crop=3"], 1),
        (["relu2_x", "layer2", "--invert", "style.png"], 3),
        (["logit:0", "--init", "style.png", "--budget=l2:1"], 1),
        (["logit:cat,Ship"], 2),
    ],
)
def test_visualize(
    run: Callable[..., Any], pictures: list[Path], tmp_path: Path, monkeypatch: Any, given: list[str], count: int
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = run("visualize", NET, *given, "--steps=3", "--out", "sheet.png")
    assert ended.code == 0, ended.err
    assert ended.out.splitlines()[-2:] == [f"{count} pictures", "sheet.png"]
    with Image.open("sheet.png") as drawn:
        assert drawn.width > count * 160


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["stylize", "content.png", "gone.png"], "gone.png does not exist"),
        (["stylize", "content.png", "style.png", "--layers=relu9_x"], "unknown layer 'relu9_x'; did you mean relu5_x"),
        (["stylize", "content.png", "style.png", "--layers=layer1,relu2_x"], "is named twice"),
        (["stylize", "content.png", "style.png", "--pooling=average"], "no max pooling to average"),
        (["stylize", "content.png", "style.png", "--out=a.jpg"], "a.jpg is not the name of a PNG"),
        (["stylize", "content.png", "style.png", "--weights=1,2"], "1 styles need as many weights"),
        (
            ["stylize", "content.png", "style.png", "--mask=content.png", "--mask=content.png"],
            "1 styles need as many masks, in their order; got 2",
        ),
        (["stylize", "content.png", "style.png", "--lr=-1"], "option lr=-1.0: input should be greater than 0"),
        (["stylize", "content.png", "style.png", "--mask=style.png"], "of another shape than the content (32 x 23)"),
        (["stylize", "content.png", "style.png", "--init=gone.png"], "gone.png does not exist"),
        (
            ["stylize", "content.png", "style.png", "--grid-search", "--style-weight=3"],
            "--grid-search does not go with --style-weigh",
        ),
        (["stylize", "content.png", "style.png", "--fast=x", "--grid-search"], "--fast does not go with --grid-search"),
        (["stylize", "content.png", "style.png", "--layers=,"], "style is read from one layer or more"),
        (["visualize", NET, "layer2", "--invert=style.png", "--prior=natural"], "--invert begins at noise"),
        (["visualize", NET, "layer2", "--invert=style.png", "--pad=2"], "--invert begins at noise"),
        (["visualize", NET, "layer2", "--invert=style.png", "--samples=2"], "--invert begins at noise"),
        (
            ["visualize", NET, "layer2:0-3", "--diversity=1"],
            "--diversity is among several drawings of one feature; ask for more --samples",
        ),
        (["visualize", NET, "layer2"], "cannot read 'layer2'; write LAYER:CHANNEL"),
        (["visualize", NET, "logit:10"], "has the classes 0 to 9, not 10"),
        (["visualize", NET, "logit:cow"], "unknown class 'cow'"),
        (["visualize", NET, "layer2:5-3"], "cannot read 'layer2:5-3'"),
        (["visualize", "mnist-cnn", "logit:1", "--pad=4", "--steps=2"], "cannot look at pictures of 36 x 36"),
        (["visualize", NET, "layer2:99"], "has the channels 0 to 31, not 99"),
    ],
)
def test_bad_drawing(
    run: Callable[..., Any], pictures: list[Path], tmp_path: Path, monkeypatch: Any, given: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    backbone = [] if given[0] == "visualize" else ["--backbone", NET, "--size=32", "--evaluations=2"]
    ended = run(*given, *backbone)
    assert ended.code == 2 and message in ended.err and len(ended.err.splitlines()) == 1, ended.err
    assert sorted(tmp_path.iterdir()) == before


def test_layers(run: Callable[..., Any], classifier: Path, tmp_path: Path) -> None:
    plot, table = tmp_path / "layers.png", tmp_path / "layers.json"
    given = ["--budget=l2:0.5", "--images=20", "--steps=3", "--json", table, "--out", plot]
    ended = run("layer-robustness", classifier, "mnist-cnn", *given)
    assert ended.code == 0, ended.err
    rows = json.loads(table.read_text())["rows"]
    assert [(row["classifier"], row["layer"]) for row in rows] == [
        (name, layer) for name in (str(classifier), "mnist-cnn") for layer in ("1", "3")
    ]
    assert all(0 < row["robustness_interval"][0] <= row["robustness"] <= row["robustness_interval"][1] for row in rows)
    with Image.open(plot) as drawn:
        assert drawn.width > 600


def test_a_sweep_through_single_layers(run: Callable[..., Any], classifier: Path, digit: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "sweep.png"
    given = ["--budget=l2:0.5", "--images=4", "--steps=1", "--evaluations=2", "--size=28", "--content", digit]
    ended = run("layer-robustness", classifier, *given, "--style", digit, "--layer-sweep", sheet)
    assert ended.code == 0, ended.err
    assert [line.split(": R ")[0] for line in ended.err.splitlines() if ": R " in line] == [
        f"{classifier} 1",
        f"{classifier} 3",
    ]
    with Image.open(sheet) as drawn:
        assert drawn.width > 300
    assert "need" in run("layer-robustness", classifier, *given, "--layer-sweep", sheet).complaint


def test_a_grid_keeps_all_and_chooses_the_best(run: Callable[..., Any], pictures: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "s.png"
    given = ["--backbone", NET, "--size=32", "--evaluations=2", "--out", out]
    ended = run("stylize", *pictures, "--grid-search", *given)
    assert ended.code == 0, ended.err
    rows = json.loads((tmp_path / "s-grid" / "table.json").read_text())["rows"]
    assert len(rows) == 9 and all(row["score"] == row["content_distance"] + row["style_distance"] for row in rows)
    assert len({row["layers"] for row in rows}) == 3 and {row["style_weight"] for row in rows} == {3, 30, 300}
    best = min(rows, key=lambda row: row["score"])
    assert out.read_bytes() == (tmp_path / "s-grid" / best["file"]).read_bytes()
    assert (tmp_path / "s-grid" / "sheet.png").is_file()


def test_a_drawing_logs_to_tensorboard(run: Callable[..., Any], pictures: list[Path], tmp_path: Path) -> None:
    given = ["--backbone", NET, "--size=32", "--evaluations=3", "--out", tmp_path / "s.png", "--log", tmp_path / "log"]
    assert run("stylize", *pictures, *given).code == 0
    (events,) = (tmp_path / "log").glob("events*")
    log = EventAccumulator(str(events)).Reload()
    assert [event.step for event in log.Scalars("objective")] == [1, 2, 3]


def test_memory_that_will_not_suffice_is_said_before(
    run: Callable[..., Any], pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gap.imagery.memory.available", lambda device: 2.0**20)
    given = ["--backbone", NET, "--evaluations=1", "--size=384", "--out", tmp_path / "s.png"]
    ended = run("stylize", *pictures, *given)
    assert ended.code == 2 and "GiB are needed" in ended.complaint and "--size" in ended.complaint
    assert not (tmp_path / "s.png").exists()


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C as at a terminal: what a shell runs in the background begins with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_drawing_that_a_signal_ends_is_kept(
    run: Callable[..., Any], pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def ended_in_the_middle(self: DrawingProgress, progress: OptimizationProgress) -> None:
        listen(self, progress)
        if progress.step == 2:
            signal.raise_signal(number)

    listen, before = DrawingProgress.__call__, signal.getsignal(number)
    monkeypatch.setattr(DrawingProgress, "__call__", ended_in_the_middle)
    out = tmp_path / "s.png"
    ended = run("stylize", *pictures, "--backbone", NET, "--size=32", "--evaluations=9", "--out", out)
    assert ended.code == 128 + number and "ended at evaluation 3 of 9; the picture so far is kept" in ended.err
    with Image.open(out) as drawn:
        assert drawn.size == (32, 23)
    assert signal.getsignal(number) == before


def test_a_network_of_one_s_own_draws(run: Callable[..., Any], digit: Path, tmp_path: Path) -> None:
    net = tmp_path / "net.py"
    net.write_text(
        "from torch import nn\n\n\ndef net():\n"
        "    layers = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 8, 3, 2), nn.ReLU(), nn.Flatten()]\n"
        "    return nn.Sequential(*layers, nn.Linear(8 * 12 * 12, 10))\n"
    )
    given = ["--input=1x28x28", "--mean=0.1", "--std=0.3", "--evaluations=2", "--size=28"]
    ended = run("stylize", digit, digit, "--backbone", f"{net}:net", *given, "--out", tmp_path / "s.png")
    assert ended.code == 0, ended.err
    assert "loses its colors" not in ended.err
    with Image.open(tmp_path / "s.png") as drawn:
        assert drawn.mode == "L"
    Image.new("RGB", (28, 28), "red").save(red := tmp_path / "red.png")
    ended = run("stylize", digit, red, "--backbone", f"{net}:net", *given, "--out", tmp_path / "s.png")
    assert ended.code == 0 and f"{red} loses its colors" in ended.err


def test_compare_styles(run: Callable[..., Any], pictures: list[Path], tmp_path: Path) -> None:
    content, style = pictures
    given = [
        "--content",
        content,
        "--style",
        style,
        "--style",
        content,
        "--backbone=drawing-standard",
        "--backbone=drawing-hardened",
    ]
    more = [
        "--metric-network=cifar-resnet18-narrow",
        "--weights=3,300",
        "--precision=bf16",
        "--ablation=smoothed",
        "--size=32",
        "--evaluations=2",
        "--out",
        tmp_path / "page",
    ]
    ended = run("compare-styles", *given, *more)
    assert ended.code == 0, ended.err
    page = Path(ended.out.splitlines()[-1])
    assert page.read_text().count('type="range"') == 8
    told = json.loads((tmp_path / "page" / "table.json").read_text())
    # R is of the backbone, and what is smoothed is what a drawing sees of it.
    assert [row["layer_robustness"] is None for row in told["rows"]] == [False, False, True]
    assert all(0 < row["activation_entropy"] < 1 for row in told["rows"])
    assert all(0 < row["least_style_distance"] <= row["style_distance"] for row in told["rows"])
    assert [row["backbone"] for row in told["rows"]] == [
        "drawing-standard",
        "drawing-hardened",
        "drawing-standard smoothed",
    ]
    assert len(told["drawings"]) == 12 and told["precision"] == "bf16"
    assert all((tmp_path / "page" / each["file"]).is_file() for each in told["drawings"])


def test_one_backbone_cannot_be_compared(run: Callable[..., Any], pictures: list[Path], tmp_path: Path) -> None:
    given = ["--content", pictures[0], "--style", pictures[1], "--backbone", NET, "--out", tmp_path / "page"]
    ended = run("compare-styles", *given)
    assert ended.code == 2 and "two or more backbones" in ended.complaint and not (tmp_path / "page").exists()


def test_a_stylizer_from_training_to_a_picture(run: Callable[..., Any], pictures: list[Path], tmp_path: Path) -> None:
    content, style = pictures
    for number in range(6):
        for folder, picture in (("contents", content), ("styles", style)):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / f"{number}.png").write_bytes(picture.read_bytes())
    data = ["--content", f"folder:{tmp_path / 'contents'}", "--style", f"folder:{tmp_path / 'styles'}"]
    trained, out = tmp_path / "stylizer", tmp_path / "s.png"
    ended = run("train-stylizer", *data, "--size=32", "--epochs=2", "--batch-size=2", "--out", trained)
    assert ended.code == 0, ended.err
    assert "validation objective" in ended.out and ended.out.splitlines()[-1] == str(trained)
    ended = run("stylize", content, style, style, "--weights=2,1", "--fast", trained, "--size=48", "--out", out)
    assert ended.code == 0, ended.err
    assert "seconds" in ended.out and ended.out.splitlines()[-1] == str(out)
    with Image.open(out) as drawn:
        assert drawn.size == (48, 34)
    ended = run("stylize", content, style, "--fast", trained, "--backbone=drawing-standard", "--out", out)
    assert ended.code == 2 and "is another" in ended.complaint
    ended = run("evaluate", trained, "--classifier", NET, "--data=mnist-5k", "--budget=l2:1")
    assert ended.code == 2 and "holds a stylizer" in ended.complaint


@pytest.mark.parametrize(
    ("arguments", "config", "flags"),
    [
        (
            ["stylize", "content.png", "style.png"],
            {"size": 24, "evaluations": 2, "style_loss": "moments", "layers": ["relu2_x", "relu3_x"], "seed": 3},
            ["--size=24", "--evaluations=2", "--style-loss=moments", "--layers=relu2_x,relu3_x", "--seed=3"],
        ),
        (
            ["texture", "style.png"],
            {"size": 24, "evaluations": 2, "layers": "relu2_x,relu3_x"},
            ["--size=24", "--evaluations=2", "--layers=relu2_x", "--layers=relu3_x"],
        ),
        (
            ["visualize", NET, "relu2_x:0"],
            {"size": 24, "steps": 2, "jitter": 2},
            ["--size=24", "--steps=2", "--jitter=2"],
        ),
    ],
)
def test_drawing_verbs_config_equals_flags(
    run: Callable[..., Any],
    pictures: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    config: dict[str, Any],
    flags: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    network = [] if NET in arguments else ["--backbone", NET]
    (tmp_path / "options.yaml").write_text(json.dumps({**config, "size": 40}))
    ended = run(*arguments, *network, "--config=options.yaml", "--set=size=24", "--out=a.png")
    assert ended.code == 0, ended.err
    ended = run(*arguments, *network, *flags, "--out=b.png")
    assert ended.code == 0, ended.err
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()
    assert "did you mean" in run(*arguments, *network, "--set=siez=24", "--out=c.png").complaint
