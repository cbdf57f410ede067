"""The scripts in `examples/` run with tiny settings, and write the files that their docstrings name."""

import runpy
import sys
from pathlib import Path

import pytest
from judging import shorten_judging

EXAMPLES = Path(__file__).parents[1] / "examples"
FEW = ["--epochs", "1", "--train-images", "400"]
CASES = {
    "attack_your_model": ([*FEW, "--test-images", "40"], ["attacks.csv", "attacks.png"], "accuracy under PGD"),
    "train_a_generator": ([*FEW, "--test-images", "40"], ["runs/generator/card.yaml", "generators.png"], "| noise |"),
    "harden_and_judge": ([*FEW, "--test-images", "10"], ["runs/hardened/card.yaml"], "robust accuracy"),
    "stylize": (["--size", "48", "--evaluations", "2"], ["stylized.png", "texture.png"], "style"),
    "visualize_and_traverse": ([*FEW, "--steps", "2"], ["sheet.png", "walk.mp4"], "class 9"),
}


def test_examples_folder_each_script_has_a_case() -> None:
    """Catches: an example that no test runs."""
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_example_tiny_settings_writes_its_files(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches: an example that uses a name, an argument or a result that no longer exists."""
    shorten_judging(monkeypatch)
    arguments, files, text = CASES[name]
    script = EXAMPLES / f"{name}.py"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(script), *arguments])
    runpy.run_path(str(script), run_name="__main__")
    assert all((tmp_path / file).stat().st_size > 100 for file in files)
    assert text in capsys.readouterr().out
