"""Every verb, run to its end on the digits that come with the package."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from judging import shorten_judging
from PIL import Image

from gap.cli import demo_sections as sections
from gap.cli.app import COMMANDS
from gap.data.registry import load_data
from gap.report.pictures import save_image

CONTRACT = {
    "attack", "classifier", "data", "budget", "images", "clean_accuracy", "accuracy_under_attack", "fooling_rate",
    "attack_success_rate", "l2_mean", "l2_max", "linf_mean", "linf_max", "ssim", "seconds_per_image",
}  # fmt: skip
SHARES = ("clean_accuracy", "accuracy_under_attack", "fooling_rate", "attack_success_rate")


def card(folder: Path) -> dict[str, Any]:
    return yaml.safe_load((folder / "card.yaml").read_text())


def table(path: Path) -> list[dict[str, Any]]:
    rows = json.loads(path.read_text())["rows"]
    for row in rows:
        assert row.keys() >= CONTRACT
        assert all(0 <= row[share] <= 1 for share in SHARES)
        assert 0 <= row["l2_mean"] <= row["l2_max"]
        assert 0 <= row["linf_mean"] <= row["linf_max"] <= 1
        assert -1 <= row["ssim"] <= 1 and row["seconds_per_image"] > 0
    return rows


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    """A folder of eight digits as picture files."""
    split = load_data("mnist-5k").test
    for index in range(8):
        save_image(split.images[index], tmp_path / "digits" / f"{index}.png")
    return tmp_path / "digits"


@pytest.mark.parametrize("verb", COMMANDS)
def test_help_shows_an_example(run: Callable[..., Any], verb: str) -> None:
    ended = run(verb, "--help")
    assert ended.code == 0
    assert f"Example: gap {verb}" in ended.out


def test_help_flows_to_the_width_of_the_terminal(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    lines = run("harden", "--help").out.splitlines()
    assert any("The mixture is given" in line and "weights that are kept." in line for line in lines)


def test_without_a_verb_there_is_help(run: Callable[..., Any]) -> None:
    ended = run()
    assert ended.code == 0
    assert all(verb in ended.out for verb in COMMANDS)


def test_pretrain_leaves_a_classifier_that_reads(classifier: Path) -> None:
    told = card(classifier)
    assert told["kind"] == "classifier"
    assert told["metrics"]["test"]["accuracy"] > 0.85
    assert sum(told["data"]["images"].values()) == 5000
    assert not (classifier / "checkpoint.pt").exists()
    assert (classifier / "config.yaml").is_file() and (classifier / "metrics.jsonl").is_file()
    assert list((classifier / "tensorboard").iterdir())


def test_per_image_learns(per_image: Path) -> None:
    told = card(per_image)
    assert (told["kind"], told["budget"]) == ("bounded_generator", "l2:3")
    assert told["metrics"]["validation"]["accuracy_under_attack"] < 0.7
    assert told["metrics"]["validation"]["l2"] <= 3.0001


def test_universal_keeps_one_perturbation(universal: Path) -> None:
    told = card(universal)
    assert told["kind"] == "universal_perturbation"
    assert told["metrics"]["validation"]["linf"] <= 0.2001


def test_direct_asks_for_a_magnitude(direct: Path) -> None:
    told = card(direct)
    assert (told["kind"], told["target_norm"], told["budget"]) == ("direct_generator", "l2:3", None)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--unbounded", "--discriminator"], {"kind": "direct_generator", "target_norm": None}),
        (["--budget=linf:0.2", "--criterion=target:3"], {"criterion": "target:3"}),
        (["--budget=linf:0.2", "--criterion=least-likely", "--loss=relativistic"], {"criterion": "least-likely"}),
        (["--budget=linf:0.2", "--set=generator.architecture=autoencoder"], {"kind": "bounded_generator"}),
        (["--budget=linf:0.2", "--loss=log-cross-entropy"], {"criterion": "untargeted"}),
    ],
    ids=["discriminator", "targeted", "least likely", "autoencoder", "loss"],
)
def test_other_forms(
    run: Callable[..., Any],
    classifier: Path,
    small: tuple[str, ...],
    tmp_path: Path,
    options: list[str],
    says: dict[str, Any],
) -> None:
    ended = run("train", "--classifier", classifier, "--epochs=0.05", *small, *options, "--out", tmp_path / "made")
    assert ended.code == 0, ended.err
    assert says.items() <= card(tmp_path / "made").items()


def test_a_target_is_counted(
    run: Callable[..., Any], classifier: Path, made: Callable[..., Path], small: tuple[str, ...], tmp_path: Path
) -> None:
    targeted = made(
        "targeted",
        "train",
        "--classifier",
        classifier,
        "--budget=linf:0.2",
        "--criterion=target:3",
        "--epochs=0.1",
        *small,
    )
    ended = run("evaluate", targeted, "--classifier", classifier, "--images=40", "--json", tmp_path / "table.json")
    assert ended.code == 0, ended.err
    (row,) = table(tmp_path / "table.json")
    assert 0 <= row["target_success_rate"] <= 1
    assert "reached" in ended.out


def test_ensemble_and_transfer(
    run: Callable[..., Any], classifier: Path, made: Callable[..., Path], small: tuple[str, ...], tmp_path: Path
) -> None:
    second = made("second", "pretrain", "--epochs=1", "--seed=1", "--batch-size=64")
    both = ["--classifier", classifier, "--classifier", second]
    ensemble = made("ensemble", "train", *both, "--budget=linf:0.2", "--epochs=0.05", *small)
    assert [told["name"] for told in card(ensemble)["classifiers"]] == [str(classifier), str(second)]

    matrix = ["evaluate", ensemble, "fgsm", *both, "--budget=linf:0.1", "--images=40", "--transfer"]
    ended = run(*matrix, "--json", tmp_path / "table.json")
    assert ended.code == 0, ended.err
    rows = table(tmp_path / "table.json")
    pairs = [(row["source"], row["classifier"]) for row in rows if row["attack"] == "fgsm"]
    names = (str(classifier), str(second))
    assert pairs == [(source, target) for source in names for target in names]
    pairs = [(row["source"], row["classifier"]) for row in rows if row["attack"] == "ensemble"]
    assert pairs == [(name, name) for name in names]
    assert ended.warnings == []

    third = made("third", "pretrain", "--epochs=0.2", "--seed=2", "--batch-size=64")
    ended = run("evaluate", ensemble, "--classifier", third, "--images=40", "--json", tmp_path / "third.json")
    assert ended.code == 0, ended.err
    (row,) = table(tmp_path / "third.json")
    assert (row["source"], row["classifier"]) == (" and ".join(names), str(third))
    assert "made on" in ended.out


def test_evaluate(
    run: Callable[..., Any], classifier: Path, per_image: Path, universal: Path, direct: Path, tmp_path: Path
) -> None:
    started = f"pgd:init={per_image},steps=5"
    attacks = [per_image, universal, direct, "pgd:steps=5", started, "noise", "checkerboard"]
    ended = run(
        "evaluate", *attacks, "--classifier", classifier, "--data=mnist-5k", "--budget=l2:3", "--images=100",
        "--json", tmp_path / "table.json", "--out", tmp_path / "out",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    rows = {row["attack"]: row for row in table(tmp_path / "table.json")}
    assert list(rows) == ["per-image", "universal", "direct", "pgd:steps=5", started, "noise", "checkerboard"]
    for row in rows.values():
        assert (row["data"], row["classifier"], row["budget"], row["images"]) == (
            "mnist-5k", str(classifier), "l2:3", 100,
        )  # fmt: skip
        assert row["l2_max"] <= 3.0001
        low, high = row["accuracy_under_attack_interval"]
        assert low <= row["accuracy_under_attack"] <= high
        assert row["attack"] in ended.out
    assert rows["pgd:steps=5"]["accuracy_under_attack"] < rows["noise"]["accuracy_under_attack"]
    assert rows[started]["accuracy_under_attack"] <= rows["per-image"]["accuracy_under_attack"]
    assert table(tmp_path / "out" / "table.json") == list(rows.values())
    assert Image.open(tmp_path / "out" / "pictures.png").width > 100


def test_trained_attacks_keep_their_own_budgets(
    run: Callable[..., Any], classifier: Path, per_image: Path, universal: Path, direct: Path, tmp_path: Path
) -> None:
    given = ["evaluate", per_image, universal, direct, "noise", "--classifier", classifier, "--images=20"]
    ended = run(*given, "--json", tmp_path / "table.json")
    assert ended.code == 0, ended.err
    assert [row["budget"] for row in table(tmp_path / "table.json")] == ["l2:3", "linf:51/255", None, "l2:3"]


def test_compare(run: Callable[..., Any], classifier: Path, per_image: Path, tmp_path: Path) -> None:
    given = ["compare", per_image, "noise", "--classifier", classifier, "--epsilons=1,3", "--images=40"]
    ended = run(*given, "--out", tmp_path / "out")
    assert ended.code == 0, ended.err
    assert ended.out.splitlines()[-1] == str(tmp_path / "out" / "page.html")
    rows = table(tmp_path / "out" / "table.json")
    assert [(row["attack"], row["budget"]) for row in rows] == [
        ("per-image", "l2:1"), ("noise", "l2:1"), ("per-image", "l2:3"), ("noise", "l2:3"),
    ]  # fmt: skip
    assert Image.open(tmp_path / "out" / "accuracy-against-epsilon.png").width > 100
    assert "--transfer" in run(*given, "--out", tmp_path / "out", "--transfer").complaint
    page = (tmp_path / "out" / "page.html").read_text()
    assert "per-image" in page and "data:image/png;base64," in page


@pytest.mark.parametrize(("artifact", "norm", "epsilon"), [("per_image", "l2", 3.0), ("universal", "linf", 0.2)])
def test_perturbed_files_are_inside_the_budget(
    run: Callable[..., Any],
    request: pytest.FixtureRequest,
    digits: Path,
    tmp_path: Path,
    artifact: str,
    norm: str,
    epsilon: float,
) -> None:
    out = tmp_path / "out"
    single = tmp_path / "single.png"
    single.write_bytes((digits / "3.png").read_bytes())
    ended = run("perturb", request.getfixturevalue(artifact), single, digits, "--out", out)
    assert ended.code == 0, ended.err
    rows = json.loads((out / "table.json").read_text())["rows"]
    assert [Path(row["picture"]).name for row in rows] == ["single.png", *(f"{index}.png" for index in range(8))]
    for row in rows:
        before, after = Image.open(row["picture"]), Image.open(out / row["perturbed"])
        assert (after.mode, after.size, after.format) == ("L", before.size, "PNG")
        change = (np.asarray(after, dtype=float) - np.asarray(before, dtype=float)) / 255
        length = np.abs(change).max() if norm == "linf" else np.sqrt((change**2).sum())
        assert 0 < length <= epsilon * (1 + 1e-6)
        assert row[norm] == pytest.approx(length, abs=1e-5)
        assert row["before"].isdecimal() and 0 <= row["after_confidence"] <= 1
        beside = Image.open(out / f"{Path(row['perturbed']).stem}.side-by-side.png")
        assert beside.width > 2 * before.width


def test_pictures_of_one_name_do_not_replace_each_other(
    run: Callable[..., Any], per_image: Path, digits: Path, tmp_path: Path
) -> None:
    ended = run("perturb", per_image, digits / "0.png", digits / "0.png", "--out", tmp_path / "out")
    assert ended.code == 0, ended.err
    names = {path.name for path in (tmp_path / "out").glob("*.png")}
    assert names == {"0.png", "0-2.png", "0.side-by-side.png", "0-2.side-by-side.png"}


@pytest.mark.parametrize("artifact", ["per_image", "universal", "direct"])
def test_pictures_keep_their_size_when_asked(
    run: Callable[..., Any], request: pytest.FixtureRequest, tmp_path: Path, artifact: str
) -> None:
    Image.effect_noise((45, 33), 60).save(tmp_path / "wide.png")
    ended = run(
        "perturb",
        request.getfixturevalue(artifact),
        tmp_path / "wide.png",
        "--out",
        tmp_path / "out",
        "--original-size",
    )
    assert ended.code == 0, ended.err
    assert Image.open(tmp_path / "out" / "wide.png").size == (45, 33)


def test_perturb_at_another_budget(run: Callable[..., Any], per_image: Path, digits: Path, tmp_path: Path) -> None:
    ended = run("perturb", per_image, digits, "--out", tmp_path / "out", "--budget=linf:8/255")
    assert ended.code == 0, ended.err
    rows = json.loads((tmp_path / "out" / "table.json").read_text())["rows"]
    assert all(0 < row["linf"] <= 8 / 255 + 1e-6 for row in rows)


def test_inspect(run: Callable[..., Any], classifier: Path, digits: Path) -> None:
    ended = run("inspect", classifier, "--picture", digits / "0.png")
    assert ended.code == 0, ended.err
    assert "1x28x28" in ended.out and "classes       10" in ended.out and "Conv2d" in ended.out
    shares = ended.out.rpartition("0.png")[2].split()[::2]
    assert len(shares) == 5
    assert 0 < sum(float(share.rstrip("%")) for share in shares) <= 100.3


def test_inspect_takes_a_normalizer(run: Callable[..., Any], networks: Path) -> None:
    ended = run("inspect", f"{networks}:Net", "--input=3x8x8", "--mean=0.5,0.4,0.3", "--std", "0.25")
    assert ended.code == 0, ended.err
    assert "mean 0.5,0.4,0.3, std 0.25" in ended.out


def test_perturb_takes_a_normalizer_of_the_classifier_that_reads(
    run: Callable[..., Any], per_image: Path, digits: Path, networks: Path, tmp_path: Path
) -> None:
    """The normalizer drives the logits apart: what is read is sure of itself only with it."""

    def confidence(name: str, *normalizer: str) -> float:
        reader = ["--classifier", f"{networks}:mean", *normalizer]
        ended = run("perturb", per_image, digits / "0.png", *reader, "--out", tmp_path / name)
        assert ended.code == 0, ended.err
        return json.loads((tmp_path / name / "table.json").read_text())["rows"][0]["before_confidence"]

    assert confidence("plain") < 0.6 < 0.99 < confidence("normalized", "--mean=-1", "--std=0.01")
    assert "go with --classifier" in run("perturb", per_image, digits, "--std=1", "--out", tmp_path / "out").complaint


def test_lists(run: Callable[..., Any]) -> None:
    assert "cifar-resnet18-narrow" in run("classifiers").out
    listed = run("classifiers", "torchvision", "--filter", "resnet18").out.splitlines()
    assert "torchvision:resnet18@IMAGENET1K_V1" in listed and all("resnet18" in line for line in listed)
    assert {"mnist-5k", "folder:PATH", "stl10"} <= {line.split()[0] for line in run("data").out.splitlines() if line}
    assert "pgd:steps=" in run("attacks").out
    configs = [line.split()[0] for line in run("configs").out.splitlines()]
    assert "mnist-per-image" in configs
    assert all(yaml.safe_load(run("configs", name).out)["classifier"] for name in configs)


def test_a_named_config_with_changes(
    run: Callable[..., Any], classifier: Path, small: tuple[str, ...], tmp_path: Path
) -> None:
    ended = run(
        "train", "--config=mnist-universal", "--classifier", classifier, "--data=mnist-5k", "--set=epochs=0.05", *small,
        "--out", tmp_path / "made",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    options = card(tmp_path / "made")["options"]
    assert (options["universal"], options["budget"], options["epochs"]) == (True, "l2:2.5", 0.05)
    assert options["generator"]["decoder"] == [16, 16]
    assert options == yaml.safe_load((tmp_path / "made" / "config.yaml").read_text())


def test_a_config_by_path_and_who_wins(
    run: Callable[..., Any], classifier: Path, small: tuple[str, ...], tmp_path: Path
) -> None:
    """A flag is over --set, and --set over the config."""
    config = {"classifier": [str(classifier)], "budget": "linf:0.1", "epochs": 0.05, "lr": 0.5, "seed": 5}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(config))
    ended = run(
        "train", "--config", tmp_path / "mine.yaml", "--set=lr=0.25", "--set=budget=linf:0.2", "--lr=0.001", *small,
        "--out", tmp_path / "made",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    options = card(tmp_path / "made")["options"]
    assert (options["lr"], options["budget"], options["seed"]) == (0.001, "linf:0.2", 5)


def test_resume_of_finished_work_says_so(run: Callable[..., Any], classifier: Path) -> None:
    before = (classifier / "card.yaml").read_bytes()
    ended = run("pretrain", "--resume", "--out", classifier)
    assert ended.code == 0 and "nothing to resume" in ended.out
    assert (classifier / "card.yaml").read_bytes() == before


def test_demo(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """All acts of the demo, each trained for a moment."""

    def short(work: Callable[..., Any]) -> Callable[..., Any]:
        return lambda options, *rest, **named: work(options.model_copy(update={"epochs": 0.1}), *rest, **named)

    monkeypatch.setattr(sections, "pretrain_from_options", short(sections.pretrain_from_options))
    monkeypatch.setattr(sections, "train_from_options", short(sections.train_from_options))
    monkeypatch.setattr(sections, "harden_from_options", short(sections.harden_from_options))
    shorten_judging(monkeypatch)
    monkeypatch.setattr(sections, "IMAGES", 20)
    monkeypatch.setattr(sections, "STEPS", 6)
    monkeypatch.setattr(sections, "EVALUATIONS", 3)
    monkeypatch.setattr(sections, "CURVE", (sections.BUDGET.epsilon,))
    lineup = sections.run_benchmark
    monkeypatch.setattr(sections, "run_benchmark", lambda *given, images: lineup(*given, images=20))
    ended = run("demo", "--out", tmp_path / "demo")
    assert ended.code == 0, ended.err
    page = Path(ended.out.splitlines()[-1])
    assert page == (tmp_path / "demo" / "index.html").resolve()
    text = page.read_text()
    assert text.count("data:image/png;base64,") == 6
    assert "http://" not in text.replace("http://www.w3.org", "") and 'src="http' not in text
    attacks = [row["attack"] for row in table(tmp_path / "demo" / "table.json")]
    assert attacks == ["per-image", "universal", "pgd", "noise", "checkerboard"]
    assert (tmp_path / "demo" / "universal" / "card.yaml").is_file()
    assert (tmp_path / "demo" / "walk.mp4").is_file() and (tmp_path / "demo" / "stylized-hardened.png").is_file()
    left = json.loads((tmp_path / "demo" / "hardened.json").read_text())
    for found in left.values():
        assert list(found) == ["none", "generator", "universal", "PGD", "AutoAttack (fast)"]
        assert found["AutoAttack (fast)"] <= found["PGD"] + 0.1 <= found["none"] + 0.1
