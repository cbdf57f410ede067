"""Commands that draw: traverse, stylize, texture, visualize, layer-robustness, compare-styles, train-stylizer."""

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


def test_traverse_two_classifiers_writes_a_video_and_a_sheet_of_frames(
    run: Callable[..., Any], classifier: Path, digit: Path, tmp_path: Path
) -> None:
    out = tmp_path / "walk.gif"
    result = run(
        "traverse", classifier, digit, "--compare-with", "mnist-cnn", "--target-class=0", "--steps=8", "--out", out
    )
    assert result.code == 0, result.err
    assert "digit.png" in result.out and "within l2:7" in result.out
    class_lines = [line for line in result.out.splitlines() if "->" in line]
    assert len(class_lines) == 2 and "digit.png: 0 " not in class_lines[0]
    assert "-> 0 " in class_lines[0]  # the prediction of the trained classifier becomes the target class
    assert result.out.splitlines()[-1] == str(out)
    with Image.open(out) as video, Image.open(tmp_path / "walk-frames.png") as sheet:
        assert video.n_frames >= 5 and sheet.width > 300


def test_traverse_target_class_not_reached_is_printed(
    run: Callable[..., Any], classifier: Path, digit: Path, tmp_path: Path
) -> None:
    for budget, steps, not_reached in (("l2:0.01", 1, True), ("l2:12", 40, False)):
        arguments = ["--target-class=0", f"--budget={budget}", f"--steps={steps}", "--out", tmp_path / "walk.gif"]
        assert ("(not 0, " in run("traverse", classifier, digit, *arguments).out) == not_reached


def test_drawing_commands_output_that_is_an_input_exits_and_keeps_it(
    run: Callable[..., Any], classifier: Path, digit: Path, content_and_style: list[Path], tmp_path: Path
) -> None:
    before = [path.read_bytes() for path in (digit, *content_and_style)]
    frames = digit.rename(tmp_path / "walk-frames.png")
    command_lines = [
        ["stylize", *content_and_style, "--out", content_and_style[0]],
        ["stylize", *content_and_style, "--out", content_and_style[1]],
        ["texture", content_and_style[1], "--out", content_and_style[1]],
        ["visualize", NET, "logit:0", "--init", content_and_style[0], "--out", content_and_style[0]],
        ["traverse", classifier, frames, "--target-class=0", "--out", tmp_path / "walk.mp4"],
    ]
    for arguments in command_lines:
        result = run(*arguments)
        assert result.code == 2 and "would be overwritten" in result.error_line, arguments
    assert [path.read_bytes() for path in (frames, *content_and_style)] == before


def test_traverse_compare_with_user_network_uses_the_size_of_the_first(
    run: Callable[..., Any], classifier: Path, digit: Path, networks: Path, tmp_path: Path
) -> None:
    user_network = f"{networks}:mean"
    result = run(
        "traverse",
        classifier,
        digit,
        "--compare-with",
        user_network,
        "--target-class=0",
        "--steps=2",
        "--out",
        tmp_path / "walk.gif",
    )
    assert result.code == 0, result.err


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
def test_traverse_invalid_option_exits_and_leaves_no_file(
    run: Callable[..., Any], classifier: Path, digit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...], message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    result = run("traverse", classifier, digit, *arguments)
    assert result.code == 2 and message in result.error_line
    assert not list(tmp_path.glob("walk*"))


# A small trained network that is part of gap and takes images of 32 x 32 pixels.
NET = "drawing-hardened"


@pytest.fixture
def content_and_style(tmp_path: Path) -> list[Path]:
    """A gray content image and a color style image, of different sizes."""
    torch.manual_seed(0)
    waves = (torch.arange(40)[:, None] * 0.3 + torch.arange(56)[None, :] * 0.7).sin() * 0.4 + 0.5
    content = save_image(to_image(waves[None]), tmp_path / "content.png")
    return [content, save_image(to_image(torch.rand(3, 30, 30)), tmp_path / "style.png")]


def test_stylize_writes_an_rgb_image_of_the_requested_size(
    run: Callable[..., Any], content_and_style: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "new" / "stylized.png"
    result = run("stylize", *content_and_style, "--backbone", NET, "--size=32", "--evaluations=5", "--out", out)
    assert result.code == 0, result.err
    assert result.out.splitlines()[-2:] == ["5 evaluations", str(out)] and "style at relu2_x" in result.out
    with Image.open(out) as drawn:
        assert drawn.size == (32, 23) and drawn.mode == "RGB"


def test_stylize_two_styles_masks_and_content_backbone_are_accepted(
    run: Callable[..., Any], content_and_style: list[Path], tmp_path: Path
) -> None:
    content, style = content_and_style
    arguments = ["--backbone", NET, "--content-backbone", NET, "--layers=relu2_x,relu3_x", "--content-layers=relu4_x"]
    more_arguments = ["--weights=2,1", "--mask", content, "--mask", content, "--keep-colors", "--optimizer=adam"]
    out = tmp_path / "s.png"
    result = run(
        "stylize", content, style, style, *arguments, *more_arguments, "--size=32", "--evaluations=3", "--out", out
    )
    assert result.code == 0, result.err
    assert "content at content relu4_x" in result.out and "relu5_x" not in result.out


def test_visualize_without_prior_only_requested_transforms_change_the_image(
    run: Callable[..., Any], tmp_path: Path
) -> None:
    """Catches: transforms that are ignored without the natural prior, or applied without being requested."""

    def drawn(*arguments: str) -> bytes:
        out = tmp_path / "drawn.png"
        assert run("visualize", NET, "logit:3", "--steps=3", *arguments, "--out", out).code == 0
        return out.read_bytes()

    assert drawn("--jitter=0") == drawn() != drawn("--pad=4")


def test_visualize_missing_later_feature_exits_and_keeps_the_old_file(run: Callable[..., Any], tmp_path: Path) -> None:
    """Catches: features that are checked only after the first is drawn, or after an older file is replaced."""
    out = tmp_path / "sheet.png"
    out.write_bytes(b"older")
    for missing_feature, message in (("layer9:0", "unknown layer 'layer9'"), ("layer1:99", "not 99")):
        result = run("visualize", NET, "layer1:0", missing_feature, "--steps=2", "--out", out)
        assert result.code == 2 and message in result.err
        assert out.read_bytes() == b"older"


def test_texture_writes_an_image_of_the_requested_size(
    run: Callable[..., Any], content_and_style: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "texture.png"
    result = run("texture", content_and_style[1], "--backbone", NET, "--size=24", "--evaluations=4", "--out", out)
    assert result.code == 0, result.err
    with Image.open(out) as drawn:
        assert drawn.size == (24, 24)


@pytest.mark.parametrize(
    ("arguments", "count"),
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
def test_visualize_writes_a_sheet_of_all_requested_features(
    run: Callable[..., Any],
    content_and_style: list[Path],
    tmp_path: Path,
    monkeypatch: Any,
    arguments: list[str],
    count: int,
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("visualize", NET, *arguments, "--steps=3", "--out", "sheet.png")
    assert result.code == 0, result.err
    assert result.out.splitlines()[-2:] == [f"{count} pictures", "sheet.png"]
    with Image.open("sheet.png") as drawn:
        assert drawn.width > count * 160


@pytest.mark.parametrize(
    ("arguments", "message"),
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
        (
            ["stylize", "content.png", "style.png", "--stylizer=x", "--grid-search"],
            "--stylizer does not go with --grid-search",
        ),
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
def test_drawing_commands_invalid_option_exits_with_one_line_and_leaves_no_file(
    run: Callable[..., Any],
    content_and_style: list[Path],
    tmp_path: Path,
    monkeypatch: Any,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    backbone = [] if arguments[0] == "visualize" else ["--backbone", NET, "--size=32", "--evaluations=2"]
    result = run(*arguments, *backbone)
    assert result.code == 2 and message in result.err and len(result.err.splitlines()) == 1, result.err
    assert sorted(tmp_path.iterdir()) == before


def test_layer_robustness_two_classifiers_writes_table_and_plot(
    run: Callable[..., Any], classifier: Path, tmp_path: Path
) -> None:
    plot, table = tmp_path / "layers.png", tmp_path / "layers.json"
    arguments = ["--budget=l2:0.5", "--images=20", "--steps=3", "--json", table, "--out", plot]
    result = run("layer-robustness", classifier, "mnist-cnn", *arguments)
    assert result.code == 0, result.err
    rows = json.loads(table.read_text())["rows"]
    assert [(row["classifier"], row["layer"]) for row in rows] == [
        (name, layer) for name in (str(classifier), "mnist-cnn") for layer in ("1", "3")
    ]
    assert all(0 < row["robustness_interval"][0] <= row["robustness"] <= row["robustness_interval"][1] for row in rows)
    with Image.open(plot) as drawn:
        assert drawn.width > 600


def test_layer_robustness_layer_sweep_writes_a_sheet_of_single_layers(
    run: Callable[..., Any], classifier: Path, digit: Path, tmp_path: Path
) -> None:
    sheet = tmp_path / "sweep.png"
    arguments = ["--budget=l2:0.5", "--images=4", "--steps=1", "--evaluations=2", "--size=28", "--content", digit]
    result = run("layer-robustness", classifier, *arguments, "--style", digit, "--layer-sweep", sheet)
    assert result.code == 0, result.err
    assert [line.split(": R ")[0] for line in result.err.splitlines() if ": R " in line] == [
        f"{classifier} 1",
        f"{classifier} 3",
    ]
    with Image.open(sheet) as drawn:
        assert drawn.width > 300
    assert "need" in run("layer-robustness", classifier, *arguments, "--layer-sweep", sheet).error_line


def test_stylize_grid_search_saves_all_images_and_outputs_the_best(
    run: Callable[..., Any], content_and_style: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "s.png"
    arguments = ["--backbone", NET, "--size=32", "--evaluations=2", "--out", out]
    result = run("stylize", *content_and_style, "--grid-search", *arguments)
    assert result.code == 0, result.err
    rows = json.loads((tmp_path / "s-grid" / "results.json").read_text())["rows"]
    assert len(rows) == 9 and all(row["score"] == row["content_distance"] + row["style_distance"] for row in rows)
    assert len({row["layers"] for row in rows}) == 3 and {row["style_weight"] for row in rows} == {3, 30, 300}
    best = min(rows, key=lambda row: row["score"])
    assert out.read_bytes() == (tmp_path / "s-grid" / best["file"]).read_bytes()
    assert (tmp_path / "s-grid" / "sheet.png").is_file()


def test_stylize_log_option_writes_the_objective_to_tensorboard(
    run: Callable[..., Any], content_and_style: list[Path], tmp_path: Path
) -> None:
    arguments = [
        "--backbone",
        NET,
        "--size=32",
        "--evaluations=3",
        "--out",
        tmp_path / "s.png",
        "--log",
        tmp_path / "log",
    ]
    assert run("stylize", *content_and_style, *arguments).code == 0
    (events,) = (tmp_path / "log").glob("events*")
    log = EventAccumulator(str(events)).Reload()
    assert [event.step for event in log.Scalars("objective")] == [1, 2, 3]


def test_stylize_insufficient_memory_exits_before_drawing(
    run: Callable[..., Any], content_and_style: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gap.imagery.memory.available", lambda device: 2.0**20)
    arguments = ["--backbone", NET, "--evaluations=1", "--size=384", "--out", tmp_path / "s.png"]
    result = run("stylize", *content_and_style, *arguments)
    assert result.code == 2 and "GiB are needed" in result.error_line and "--size" in result.error_line
    assert not (tmp_path / "s.png").exists()


@pytest.fixture
def interruptible() -> Iterator[None]:
    """The handler of SIGINT as in a terminal; processes that a shell runs in the background ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_stylize_signal_saves_the_image_so_far_and_exits_with_its_status(
    run: Callable[..., Any],
    content_and_style: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    signal_number: int,
) -> None:
    def call_and_raise_signal(self: DrawingProgress, progress: OptimizationProgress) -> None:
        original_call(self, progress)
        if progress.step == 2:
            signal.raise_signal(signal_number)

    original_call, handler_before = DrawingProgress.__call__, signal.getsignal(signal_number)
    monkeypatch.setattr(DrawingProgress, "__call__", call_and_raise_signal)
    out = tmp_path / "s.png"
    result = run("stylize", *content_and_style, "--backbone", NET, "--size=32", "--evaluations=9", "--out", out)
    assert result.code == 128 + signal_number and "ended at evaluation 3 of 9; the picture so far is kept" in result.err
    with Image.open(out) as drawn:
        assert drawn.size == (32, 23)
    assert signal.getsignal(signal_number) == handler_before


def test_stylize_gray_user_network_draws_in_gray_and_warns_of_lost_colors(
    run: Callable[..., Any], digit: Path, tmp_path: Path
) -> None:
    network_file = tmp_path / "net.py"
    network_file.write_text(
        "from torch import nn\n\n\ndef net():\n"
        "    layers = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 8, 3, 2), nn.ReLU(), nn.Flatten()]\n"
        "    return nn.Sequential(*layers, nn.Linear(8 * 12 * 12, 10))\n"
    )
    arguments = ["--input=1x28x28", "--mean=0.1", "--std=0.3", "--evaluations=2", "--size=28"]
    result = run("stylize", digit, digit, "--backbone", f"{network_file}:net", *arguments, "--out", tmp_path / "s.png")
    assert result.code == 0, result.err
    assert "loses its colors" not in result.err
    with Image.open(tmp_path / "s.png") as drawn:
        assert drawn.mode == "L"
    Image.new("RGB", (28, 28), "red").save(red_image := tmp_path / "red.png")
    result = run(
        "stylize", digit, red_image, "--backbone", f"{network_file}:net", *arguments, "--out", tmp_path / "s.png"
    )
    assert result.code == 0 and f"{red_image} loses its colors" in result.err


def test_compare_styles_two_backbones_writes_page_and_table(
    run: Callable[..., Any], content_and_style: list[Path], tmp_path: Path
) -> None:
    content, style = content_and_style
    arguments = [
        "--content",
        content,
        "--style",
        style,
        "--style",
        content,
        "--backbone=drawing-standard",
        "--backbone=drawing-hardened",
    ]
    more_arguments = [
        "--metric-network=cifar-resnet18-narrow",
        "--style-weights=3,300",
        "--precision=bf16",
        "--ablation=smoothed",
        "--size=32",
        "--evaluations=2",
        "--out",
        tmp_path / "page",
    ]
    result = run("compare-styles", *arguments, *more_arguments)
    assert result.code == 0, result.err
    page = Path(result.out.splitlines()[-1])
    assert page.read_text().count('type="range"') == 8
    report = json.loads((tmp_path / "page" / "results.json").read_text())
    # R is measured on the backbone; smoothing is applied only in drawing, so the smoothed row has no R.
    assert [row["layer_robustness"] is None for row in report["rows"]] == [False, False, True]
    assert all(0 < row["activation_entropy"] < 1 for row in report["rows"])
    assert all(0 < row["least_style_distance"] <= row["style_distance"] for row in report["rows"])
    assert [row["backbone"] for row in report["rows"]] == [
        "drawing-standard",
        "drawing-hardened",
        "drawing-standard smoothed",
    ]
    assert report["style_weights"] == [3, 300]
    assert len(report["drawings"]) == 12 and report["precision"] == "bf16"
    assert all((tmp_path / "page" / drawing["file"]).is_file() for drawing in report["drawings"])


def test_compare_styles_one_backbone_exits_with_error(
    run: Callable[..., Any], content_and_style: list[Path], tmp_path: Path
) -> None:
    arguments = [
        "--content",
        content_and_style[0],
        "--style",
        content_and_style[1],
        "--backbone",
        NET,
        "--out",
        tmp_path / "page",
    ]
    result = run("compare-styles", *arguments)
    assert result.code == 2 and "two or more backbones" in result.error_line and not (tmp_path / "page").exists()


def test_train_stylizer_artifact_is_used_by_stylize_and_refused_elsewhere(
    run: Callable[..., Any], content_and_style: list[Path], tmp_path: Path
) -> None:
    content, style = content_and_style
    for number in range(6):
        for folder, picture in (("contents", content), ("styles", style)):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / f"{number}.png").write_bytes(picture.read_bytes())
    data = ["--content", f"folder:{tmp_path / 'contents'}", "--style", f"folder:{tmp_path / 'styles'}"]
    trained, out = tmp_path / "stylizer", tmp_path / "s.png"
    result = run("train-stylizer", *data, "--size=32", "--epochs=2", "--batch-size=2", "--out", trained)
    assert result.code == 0, result.err
    assert "validation objective" in result.out and result.out.splitlines()[-1] == str(trained)
    result = run("stylize", content, style, style, "--weights=2,1", "--stylizer", trained, "--size=48", "--out", out)
    assert result.code == 0, result.err
    assert "seconds" in result.out and result.out.splitlines()[-1] == str(out)
    with Image.open(out) as drawn:
        assert drawn.size == (48, 34)
    result = run("stylize", content, style, "--stylizer", trained, "--backbone=drawing-standard", "--out", out)
    assert result.code == 2 and "is another" in result.error_line
    result = run("evaluate", trained, "--classifier", NET, "--data=mnist-5k", "--budget=l2:1")
    assert result.code == 2 and "holds a stylizer" in result.error_line


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
def test_drawing_commands_config_file_equals_flags(
    run: Callable[..., Any],
    content_and_style: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    config: dict[str, Any],
    flags: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    network = [] if NET in arguments else ["--backbone", NET]
    (tmp_path / "options.yaml").write_text(json.dumps({**config, "size": 40}))
    result = run(*arguments, *network, "--config=options.yaml", "--set=size=24", "--out=a.png")
    assert result.code == 0, result.err
    result = run(*arguments, *network, *flags, "--out=b.png")
    assert result.code == 0, result.err
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()
    assert "did you mean" in run(*arguments, *network, "--set=siez=24", "--out=c.png").error_line
