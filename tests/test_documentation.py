"""The Python code of README.md and docs/guide.md runs as it is written, with small numbers in place of large ones."""

import re
from pathlib import Path

import pytest
import torch
from judging import shorten_judging

from gap.report.pictures import save_image, to_image

ROOT = Path(__file__).parents[1]
# The pictures that the code reads.
PICTURES = ("photo.jpg", "painting.jpg")
# The files that the code writes.
FILES = ("runs/generator/card.yaml", "stylized.png", "sheet.png", "walk.mp4")
# What is written in the documents, and what the test runs in its place, to take seconds.
README_SUBSTITUTIONS = {
    "epochs=3": "epochs=0.5",
    "epochs=2": "epochs=0.1",
    "images=100,": "images=20,",
    "images=100)": "images=20)",
    "size=256": "size=48, evaluations=2",
    '"logit:3"]': '"logit:3"], steps=2',
    "target=3": "target=3, steps=2",
}
GUIDE_SUBSTITUTIONS = {"canvas=canvas": "canvas=canvas, steps=2"}


def python_blocks(text: str) -> list[str]:
    """The code of the Python blocks of a Markdown text."""
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def section(text: str, title: str) -> str:
    """A section of a Markdown text, up to the next title of the same level."""
    match = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert match, title
    return match[1]


def run_blocks(blocks: list[str], substitutions: dict[str, str], document: str) -> None:
    """Run the blocks in one namespace; a substitution that is not in them is an error."""
    assert blocks, document
    code = "\n".join(blocks)
    for written, replacement in substitutions.items():
        assert written in code, f"{document} does not contain {written!r}"
        code = code.replace(written, replacement)
    exec(compile(code, document, "exec"), {"__name__": "documentation"})


def test_python_blocks_of_the_documents_run_and_write_their_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches: documented code with a name, an argument or a result that does not exist."""
    shorten_judging(monkeypatch)
    torch.manual_seed(0)
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(PICTURES):
        save_image(to_image(torch.rand(3, 40, 48, generator=torch.Generator().manual_seed(seed))), Path(name))
    readme, guide = (ROOT / "README.md", ROOT / "docs" / "guide.md")
    run_blocks(python_blocks(readme.read_text(encoding="utf-8")), README_SUBSTITUTIONS, readme.name)
    assert all((tmp_path / file).stat().st_size > 100 for file in FILES)
    output = capsys.readouterr().out
    assert "bounded_generator" in output and re.search("holds|masked|inconclusive", output)
    python_section = section(guide.read_text(encoding="utf-8"), "Python")
    run_blocks(python_blocks(python_section), GUIDE_SUBSTITUTIONS, guide.name)
