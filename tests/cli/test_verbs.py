"""Every command, run to its end on the digits that are part of the package."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from judging import shorten_judging
from PIL import Image

from gap.attacks.generator.options import TrainOptions
from gap.cli import demo_sections as sections
from gap.cli.app import COMMANDS
from gap.data.registry import load_data
from gap.hardening.options import SmallGeneratorOptions
from gap.report.pictures import save_image

ROW_KEYS = {
    "attack", "classifier", "data", "budget", "images", "clean_accuracy", "accuracy_under_attack", "fooling_rate",
    "attack_success_rate", "l2_mean", "l2_max", "linf_mean", "linf_max", "ssim", "seconds_per_image",
}  # fmt: skip
RATES = ("clean_accuracy", "accuracy_under_attack", "fooling_rate", "attack_success_rate")


def card(folder: Path) -> dict[str, Any]:
    return yaml.safe_load((folder / "card.yaml").read_text())


def table(path: Path) -> list[dict[str, Any]]:
    rows = json.loads(path.read_text())["rows"]
    for row in rows:
        assert row.keys() >= ROW_KEYS
        assert all(0 <= row[rate] <= 1 for rate in RATES)
        assert 0 <= row["l2_mean"] <= row["l2_max"]
        assert 0 <= row["linf_mean"] <= row["linf_max"] <= 1
        assert -1 <= row["ssim"] <= 1 and row["seconds_per_image"] > 0
    return rows


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    """A folder of eight digits as image files."""
    split = load_data("mnist-5k").test
    for index in range(8):
        save_image(split.images[index], tmp_path / "digits" / f"{index}.png")
    return tmp_path / "digits"


@pytest.mark.parametrize("verb", COMMANDS)
def test_help_of_every_command_shows_an_example(run: Callable[..., Any], verb: str) -> None:
    result = run(verb, "--help")
    assert result.code == 0
    assert f"Example: gap {verb}" in result.out


def test_help_in_a_wide_terminal_uses_the_whole_width(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    lines = run("harden", "--help").out.splitlines()
    assert any("The mixture is given" in line and "weights that are kept." in line for line in lines)


def test_main_without_command_prints_the_help(run: Callable[..., Any]) -> None:
    result = run()
    assert result.code == 0
    assert all(verb in result.out for verb in COMMANDS)


def test_pretrain_on_digits_writes_an_accurate_classifier(classifier: Path) -> None:
    metadata = card(classifier)
    assert metadata["kind"] == "classifier"
    assert metadata["metrics"]["test"]["accuracy"] > 0.85
    assert sum(metadata["data"]["images"].values()) == 5000
    assert not (classifier / "checkpoint.pt").exists()
    assert (classifier / "config.yaml").is_file() and (classifier / "metrics.jsonl").is_file()
    assert list((classifier / "tensorboard").iterdir())


def test_train_per_image_lowers_the_accuracy_within_its_budget(per_image: Path) -> None:
    metadata = card(per_image)
    assert (metadata["kind"], metadata["budget"]) == ("bounded_generator", "l2:3")
    assert metadata["metrics"]["validation"]["accuracy_under_attack"] < 0.7
    assert metadata["metrics"]["validation"]["l2"] <= 3.0001


def test_train_universal_writes_a_perturbation_within_its_budget(universal: Path) -> None:
    metadata = card(universal)
    assert metadata["kind"] == "universal_perturbation"
    assert metadata["metrics"]["validation"]["linf"] <= 0.2001


def test_train_unbounded_records_its_target_norm(direct: Path) -> None:
    metadata = card(direct)
    assert (metadata["kind"], metadata["target_norm"], metadata["budget"]) == ("direct_generator", "l2:3", None)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--unbounded", "--discriminator"], {"kind": "direct_generator", "target_norm": None}),
        (["--budget=linf:0.2", "--criterion=target:3"], {"criterion": "target:3"}),
        (["--budget=linf:0.2", "--criterion=least-likely", "--loss=relativistic"], {"criterion": "least-likely"}),
        (["--budget=linf:0.2", "--set=generator.architecture=autoencoder"], {"kind": "bounded_generator"}),
        (["--budget=linf:0.2", "--loss=log-cross-entropy"], {"criterion": "untargeted"}),
    ],
    ids=["discriminator", "targeted", "least likely", "autoencoder", "loss"],
)
def test_train_with_other_options_records_them_in_the_card(
    run: Callable[..., Any],
    classifier: Path,
    small_generator: tuple[str, ...],
    tmp_path: Path,
    options: list[str],
    expected: dict[str, Any],
) -> None:
    result = run(
        "train", "--classifier", classifier, "--epochs=0.05", *small_generator, *options, "--out", tmp_path / "made"
    )
    assert result.code == 0, result.err
    assert expected.items() <= card(tmp_path / "made").items()


def test_evaluate_targeted_attack_reports_its_target_success_rate(
    run: Callable[..., Any],
    classifier: Path,
    make_artifact: Callable[..., Path],
    small_generator: tuple[str, ...],
    tmp_path: Path,
) -> None:
    targeted = make_artifact(
        "targeted",
        "train",
        "--classifier",
        classifier,
        "--budget=linf:0.2",
        "--criterion=target:3",
        "--epochs=0.1",
        *small_generator,
    )
    result = run("evaluate", targeted, "--classifier", classifier, "--images=40", "--json", tmp_path / "results.json")
    assert result.code == 0, result.err
    (row,) = table(tmp_path / "results.json")
    assert 0 <= row["target_success_rate"] <= 1
    assert "reached" in result.out


def test_evaluate_transfer_gives_a_row_for_each_pair_of_source_and_target(
    run: Callable[..., Any],
    classifier: Path,
    make_artifact: Callable[..., Path],
    small_generator: tuple[str, ...],
    tmp_path: Path,
) -> None:
    second = make_artifact("second", "pretrain", "--epochs=1", "--seed=1", "--batch-size=64")
    classifier_options = ["--classifier", classifier, "--classifier", second]
    ensemble = make_artifact(
        "ensemble", "train", *classifier_options, "--budget=linf:0.2", "--epochs=0.05", *small_generator
    )
    assert [metadata["name"] for metadata in card(ensemble)["classifiers"]] == [str(classifier), str(second)]

    command = ["evaluate", ensemble, "fgsm", *classifier_options, "--budget=linf:0.1", "--images=40", "--transfer"]
    result = run(*command, "--json", tmp_path / "results.json")
    assert result.code == 0, result.err
    rows = table(tmp_path / "results.json")
    pairs = [(row["source"], row["classifier"]) for row in rows if row["attack"] == "fgsm"]
    names = (str(classifier), str(second))
    assert pairs == [(source, target) for source in names for target in names]
    pairs = [(row["source"], row["classifier"]) for row in rows if row["attack"] == "ensemble"]
    assert pairs == [(name, name) for name in names]
    assert result.warnings == []

    third = make_artifact("third", "pretrain", "--epochs=0.2", "--seed=2", "--batch-size=64")
    result = run("evaluate", ensemble, "--classifier", third, "--images=40", "--json", tmp_path / "third.json")
    assert result.code == 0, result.err
    (row,) = table(tmp_path / "third.json")
    assert (row["source"], row["classifier"]) == (" and ".join(names), str(third))
    assert "made on" in result.out


def test_evaluate_all_kinds_of_attacks_gives_a_row_for_each(
    run: Callable[..., Any], classifier: Path, per_image: Path, universal: Path, direct: Path, tmp_path: Path
) -> None:
    pgd_from_generator = f"pgd:init={per_image},steps=5"
    attacks = [per_image, universal, direct, "pgd:steps=5", pgd_from_generator, "noise", "checkerboard"]
    result = run(
        "evaluate", *attacks, "--classifier", classifier, "--data=mnist-5k", "--budget=l2:3", "--images=100",
        "--json", tmp_path / "results.json", "--out", tmp_path / "out",
    )  # fmt: skip
    assert result.code == 0, result.err
    rows = {row["attack"]: row for row in table(tmp_path / "results.json")}
    assert list(rows) == [
        "per-image",
        "universal",
        "direct",
        "pgd:steps=5",
        pgd_from_generator,
        "noise",
        "checkerboard",
    ]
    for row in rows.values():
        assert (row["data"], row["classifier"], row["budget"], row["images"]) == (
            "mnist-5k", str(classifier), "l2:3", 100,
        )  # fmt: skip
        assert row["l2_max"] <= 3.0001
        low, high = row["accuracy_under_attack_interval"]
        assert low <= row["accuracy_under_attack"] <= high
        assert row["attack"] in result.out
        accuracy = f"accuracy under attack {row['accuracy_under_attack']:.2%}"
        assert f"{row['attack']} on {classifier}: {accuracy}\n" in result.err
    assert rows["pgd:steps=5"]["accuracy_under_attack"] < rows["noise"]["accuracy_under_attack"]
    assert rows[pgd_from_generator]["accuracy_under_attack"] <= rows["per-image"]["accuracy_under_attack"]
    assert table(tmp_path / "out" / "results.json") == list(rows.values())
    assert Image.open(tmp_path / "out" / "pictures.png").width > 100


def test_evaluate_without_budget_uses_those_of_the_trained_attacks(
    run: Callable[..., Any], classifier: Path, per_image: Path, universal: Path, direct: Path, tmp_path: Path
) -> None:
    command = ["evaluate", per_image, universal, direct, "noise", "--classifier", classifier, "--images=20"]
    result = run(*command, "--json", tmp_path / "results.json")
    assert result.code == 0, result.err
    assert [row["budget"] for row in table(tmp_path / "results.json")] == ["l2:3", "linf:51/255", None, "l2:3"]


def test_compare_two_epsilons_writes_table_plot_and_page(
    run: Callable[..., Any], classifier: Path, per_image: Path, tmp_path: Path
) -> None:
    command = ["compare", per_image, "noise", "--classifier", classifier, "--epsilons=1,3", "--images=40"]
    result = run(*command, "--out", tmp_path / "out")
    assert result.code == 0, result.err
    assert result.out.splitlines()[-1] == str(tmp_path / "out" / "index.html")
    rows = table(tmp_path / "out" / "results.json")
    assert [(row["attack"], row["budget"]) for row in rows] == [
        ("per-image", "l2:1"), ("noise", "l2:1"), ("per-image", "l2:3"), ("noise", "l2:3"),
    ]  # fmt: skip
    assert [line.partition(": ")[0] for line in result.err.splitlines() if ": accuracy under attack" in line] == [
        f"{row['attack']} at {row['budget']}" for row in rows
    ]
    assert Image.open(tmp_path / "out" / "accuracy-against-epsilon.png").width > 100
    assert "--transfer" in run(*command, "--out", tmp_path / "out", "--transfer").error_line
    page = (tmp_path / "out" / "index.html").read_text()
    assert "per-image" in page and "data:image/png;base64," in page


@pytest.mark.parametrize(("artifact", "norm", "epsilon"), [("per_image", "l2", 3.0), ("universal", "linf", 0.2)])
def test_perturb_written_files_are_inside_the_budget(
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
    result = run("perturb", request.getfixturevalue(artifact), single, digits, "--out", out)
    assert result.code == 0, result.err
    rows = json.loads((out / "results.json").read_text())["rows"]
    assert [Path(row["picture"]).name for row in rows] == ["single.png", *(f"{index}.png" for index in range(8))]
    for row in rows:
        before, after = Image.open(row["picture"]), Image.open(out / row["perturbed"])
        assert (after.mode, after.size, after.format) == ("L", before.size, "PNG")
        change = (np.asarray(after, dtype=float) - np.asarray(before, dtype=float)) / 255
        norm_of_change = np.abs(change).max() if norm == "linf" else np.sqrt((change**2).sum())
        assert 0 < norm_of_change <= epsilon * (1 + 1e-6)
        assert row[norm] == pytest.approx(norm_of_change, abs=1e-5)
        assert row["before"].isdecimal() and 0 <= row["after_confidence"] <= 1
        comparison = Image.open(out / f"{Path(row['perturbed']).stem}-side-by-side.png")
        assert comparison.width > 2 * before.width


def test_perturb_images_of_equal_name_get_different_files(
    run: Callable[..., Any], per_image: Path, digits: Path, tmp_path: Path
) -> None:
    result = run("perturb", per_image, digits / "0.png", digits / "0.png", "--out", tmp_path / "out")
    assert result.code == 0, result.err
    names = {path.name for path in (tmp_path / "out").glob("*.png")}
    assert names == {"0.png", "0-2.png", "0-side-by-side.png", "0-2-side-by-side.png"}


@pytest.mark.parametrize("artifact", ["per_image", "universal", "direct"])
def test_perturb_original_size_option_keeps_the_size_of_the_image(
    run: Callable[..., Any], request: pytest.FixtureRequest, tmp_path: Path, artifact: str
) -> None:
    Image.effect_noise((45, 33), 60).save(tmp_path / "wide.png")
    result = run(
        "perturb",
        request.getfixturevalue(artifact),
        tmp_path / "wide.png",
        "--out",
        tmp_path / "out",
        "--original-size",
    )
    assert result.code == 0, result.err
    assert Image.open(tmp_path / "out" / "wide.png").size == (45, 33)


def test_perturb_budget_option_limits_the_perturbation(
    run: Callable[..., Any], per_image: Path, digits: Path, tmp_path: Path
) -> None:
    result = run("perturb", per_image, digits, "--out", tmp_path / "out", "--budget=linf:8/255")
    assert result.code == 0, result.err
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert all(0 < row["linf"] <= 8 / 255 + 1e-6 for row in rows)


def test_inspect_classifier_and_image_prints_layers_and_five_classes(
    run: Callable[..., Any], classifier: Path, digits: Path
) -> None:
    result = run("inspect", classifier, "--picture", digits / "0.png")
    assert result.code == 0, result.err
    assert "1x28x28" in result.out and "classes       10" in result.out and "Conv2d" in result.out
    percentages = result.out.rpartition("0.png")[2].split()[::2]
    assert len(percentages) == 5
    assert 0 < sum(float(percentage.rstrip("%")) for percentage in percentages) <= 100.3


def test_inspect_mean_and_std_options_are_printed(run: Callable[..., Any], networks: Path) -> None:
    result = run("inspect", f"{networks}:Net", "--input=3x8x8", "--mean=0.5,0.4,0.3", "--std", "0.25")
    assert result.code == 0, result.err
    assert "mean 0.5,0.4,0.3, std 0.25" in result.out


def test_perturb_mean_and_std_options_are_used_by_the_classifier(
    run: Callable[..., Any], per_image: Path, digits: Path, networks: Path, tmp_path: Path
) -> None:
    """Catches: options that are ignored. This network reaches a high confidence only with the normalizer."""

    def confidence(name: str, *normalizer: str) -> float:
        classifier_options = ["--classifier", f"{networks}:mean", *normalizer]
        result = run("perturb", per_image, digits / "0.png", *classifier_options, "--out", tmp_path / name)
        assert result.code == 0, result.err
        return json.loads((tmp_path / name / "results.json").read_text())["rows"][0]["before_confidence"]

    assert confidence("plain") < 0.6 < 0.99 < confidence("normalized", "--mean=-1", "--std=0.01")
    assert "go with --classifier" in run("perturb", per_image, digits, "--std=1", "--out", tmp_path / "out").error_line


def test_list_commands_print_the_known_names(run: Callable[..., Any]) -> None:
    assert "cifar-resnet18-narrow" in run("classifiers").out
    listed = run("classifiers", "torchvision", "--filter", "resnet18").out.splitlines()
    assert "torchvision:resnet18@IMAGENET1K_V1" in listed and all("resnet18" in line for line in listed)
    assert {"mnist-5k", "folder:PATH", "stl10"} <= {line.split()[0] for line in run("data").out.splitlines() if line}
    assert "pgd:steps=" in run("attacks").out
    configs = [line.split()[0] for line in run("configs").out.splitlines()]
    assert "mnist-per-image" in configs
    assert all(yaml.safe_load(run("configs", name).out)["classifier"] for name in configs)


def test_train_set_option_overrides_a_named_config(
    run: Callable[..., Any], classifier: Path, small_generator: tuple[str, ...], tmp_path: Path
) -> None:
    result = run(
        "train", "--config=mnist-universal", "--classifier", classifier, "--data=mnist-5k", "--set=epochs=0.05",
        *small_generator,
        "--out", tmp_path / "made",
    )  # fmt: skip
    assert result.code == 0, result.err
    options = card(tmp_path / "made")["options"]
    assert (options["universal"], options["budget"], options["epochs"]) == (True, "l2:2.5", 0.05)
    assert options["generator"]["decoder"] == [16, 16]
    assert options == yaml.safe_load((tmp_path / "made" / "config.yaml").read_text())


def test_train_flag_overrides_set_and_set_overrides_the_config_file(
    run: Callable[..., Any], classifier: Path, small_generator: tuple[str, ...], tmp_path: Path
) -> None:
    """Catches: another order of precedence among flags, --set and the config file."""
    config = {"classifier": [str(classifier)], "budget": "linf:0.1", "epochs": 0.05, "lr": 0.5, "seed": 5}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(config))
    result = run(
        "train", "--config", tmp_path / "mine.yaml", "--set=lr=0.25", "--set=budget=linf:0.2", "--lr=0.001",
        *small_generator,
        "--out", tmp_path / "made",
    )  # fmt: skip
    assert result.code == 0, result.err
    options = card(tmp_path / "made")["options"]
    assert (options["lr"], options["budget"], options["seed"]) == (0.001, "linf:0.2", 5)


def test_pretrain_resume_of_a_finished_run_changes_nothing(run: Callable[..., Any], classifier: Path) -> None:
    before = (classifier / "card.yaml").read_bytes()
    result = run("pretrain", "--resume", "--out", classifier)
    assert result.code == 0 and "nothing to resume" in result.out
    assert (classifier / "card.yaml").read_bytes() == before


def test_demo_with_short_training_writes_the_page_and_all_results(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Runs all sections of the demo, each with a very short training."""

    def shortened(function: Callable[..., Any]) -> Callable[..., Any]:
        def run_shortened(options: Any, *arguments: Any, **keywords: Any) -> Any:
            changes: dict[str, Any] = {"epochs": 0.1}
            if isinstance(options, TrainOptions):
                changes["generator"] = SmallGeneratorOptions()
            return function(options.model_copy(update=changes), *arguments, **keywords)

        return run_shortened

    monkeypatch.setattr(sections, "pretrain_from_options", shortened(sections.pretrain_from_options))
    monkeypatch.setattr(sections, "train_from_options", shortened(sections.train_from_options))
    monkeypatch.setattr(sections, "harden_from_options", shortened(sections.harden_from_options))
    shorten_judging(monkeypatch)
    monkeypatch.setattr(sections, "IMAGES", 20)
    monkeypatch.setattr(sections, "STEPS", 6)
    monkeypatch.setattr(sections, "EVALUATIONS", 3)
    monkeypatch.setattr(sections, "CURVE", (sections.BUDGET.epsilon,))
    original = sections.evaluate_task
    monkeypatch.setattr(
        sections, "evaluate_task", lambda *inputs, images, progress: original(*inputs, images=20, progress=progress)
    )
    result = run("demo", "--out", tmp_path / "demo")
    assert result.code == 0, result.err
    page = Path(result.out.splitlines()[-1])
    assert page == (tmp_path / "demo" / "index.html").resolve()
    text = page.read_text()
    assert text.count("data:image/png;base64,") == 6
    assert "http://" not in text.replace("http://www.w3.org", "") and 'src="http' not in text
    attacks = [row["attack"] for row in table(tmp_path / "demo" / "results.json")]
    assert attacks == ["per-image", "universal", "pgd", "noise", "checkerboard"]
    assert (tmp_path / "demo" / "universal" / "card.yaml").is_file()
    assert (tmp_path / "demo" / "walk.mp4").is_file() and (tmp_path / "demo" / "stylized-hardened.png").is_file()
    accuracies = json.loads((tmp_path / "demo" / "hardened.json").read_text())
    for by_attack in accuracies.values():
        assert list(by_attack) == ["none", "generator", "universal", "PGD", "AutoAttack (fast)"]
        assert by_attack["AutoAttack (fast)"] <= by_attack["PGD"] + 0.1 <= by_attack["none"] + 0.1
