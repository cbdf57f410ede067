"""The order of the folders: none imports one above it, not even inside a function."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "gap"
# From the lowest to the highest. Folders of one line do not import each other.
LAYERS = (
    ("core", "models"),
    ("threat", "report"),
    ("data",),
    ("training",),
    ("classifiers",),
    ("attacks",),
    ("hardening", "imagery", "evaluation"),
    ("cli",),
)


@pytest.mark.parametrize("layer", range(len(LAYERS)))
def test_imports_of_a_folder_are_only_of_folders_below_it(layer: int) -> None:
    below = {name for names in LAYERS[:layer] for name in names}
    for folder in LAYERS[layer]:
        paths = [*(ROOT / folder).rglob("*.py"), *ROOT.glob(f"{folder}.py")]
        used = {(name, path.name) for path in paths for name in _imports(path)}
        assert {(name, file) for name, file in used if name not in below | {folder}} == set()


def _imports(path: Path) -> set[str]:
    """The folders of gap that a module imports."""
    modules = [node.module for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
    return {module.split(".")[1] for module in modules if module and module.startswith("gap.")}
