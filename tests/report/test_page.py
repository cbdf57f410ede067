import base64
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from PIL import Image

from gap.core.errors import GapError
from gap.report.page import Figure, Section, Slider, write_page
from gap.report.pictures import to_image, to_png_bytes
from gap.report.plots import bars
from gap.report.tables import Column, Table

HOSTILE = '"><script>alert(1)</script>'
PNG = to_png_bytes(to_image(torch.zeros(1, 20, 30)))
TABLE = Table([{"attack": HOSTILE, "accuracy": 0.123}], [Column("attack", "attack"), Column("accuracy", "left", ".1%")])


class PageParser(HTMLParser):
    """The tags of a page with their attributes, and whether every tag that opens is closed."""

    EMPTY = ("meta", "link", "img", "br", "hr")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def page(tmp_path) -> str:
    sections = [
        Section("Classifier", "First.\n\nSecond.", [Figure(PNG, "A caption", "what is seen")], facts={"seed": "0"}),
        Section(HOSTILE, HOSTILE, [Figure(PNG, HOSTILE, HOSTILE)], TABLE, {HOSTILE: HOSTILE}),
    ]
    return write_page(tmp_path / "out" / "page.html", HOSTILE, HOSTILE, sections).read_text(encoding="utf-8")


def test_write_page_markup_in_the_arguments_is_escaped(page):
    parser = PageParser(page)
    assert not parser.all("script")
    assert "alert(1)" in page
    assert "<script" not in page


def test_write_page_fetches_nothing_from_the_network(page):
    for _, attributes in PageParser(page).tags:
        for name in ("src", "href", "srcset", "action", "data"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), value
    assert not re.search(r"https?://|@import|url\(", page)
    assert "default-src 'none'" in page


def test_write_page_figures_are_embedded_with_size_and_alternative_text(page):
    first, second = PageParser(page).all("img")
    assert base64.b64decode(first["src"].removeprefix("data:image/png;base64,")) == PNG
    assert (first["width"], first["height"], first["alt"]) == ("30", "20", "what is seen")
    assert second["alt"] == HOSTILE


def test_figure_of_a_plot_has_the_size_in_css_pixels():
    width, height = Figure(bars({"pgd": (0.5, 0.4, 0.6)}, "t", "y"), "", "").size
    assert (width, height) == (672, 403)


def test_write_page_headings_contents_and_tables_are_in_order(page):
    parser = PageParser(page)
    assert [tag for tag, _ in parser.tags if tag in ("h1", "h2")] == ["h1", "h2", "h2"]
    anchors = [link["href"] for link in parser.all("a")]
    assert anchors == [f"#{section['id']}" for section in parser.all("section")] == ["#section-1", "#section-2"]
    assert "<p>First.</p>\n<p>Second.</p>" in page
    assert '<td class="number">12.3%</td>' in page
    assert "<dt>seed</dt>\n<dd>0</dd>" in page
    assert page.count("<table>") == 1


def test_write_page_single_section_has_no_table_of_contents(tmp_path):
    path = write_page(tmp_path / "page.html", "One", "lead", [Section("Only", "text")])
    assert "<nav" not in path.read_text(encoding="utf-8")


def test_write_page_error_or_full_disk_keeps_the_old_page(tmp_path, monkeypatch):
    path = tmp_path / "page.html"
    path.write_text("old")

    def full_disk(source, target):
        raise OSError(28, "No space left on device")

    with pytest.raises(GapError, match="'broken' is not a PNG"):
        write_page(path, "t", "l", [Section("a", "b", [Figure(b"GIF89a", "broken", "")])])
    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(GapError, match="No space left"):
        write_page(path, "t", "l", [])
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["page.html"]


def test_write_page_name_that_is_not_unicode_is_written(tmp_path):
    path = write_page(tmp_path / "page.html", "a\udcff", "lead", [])
    assert "<h1>a?</h1>" in path.read_text(encoding="utf-8")


CHROMIUM = shutil.which("chromium")


def test_write_page_without_sliders_has_no_script(tmp_path: Path) -> None:
    page = write_page(tmp_path / "index.html", "t", "l", [Section("one", "text")]).read_text()
    assert "<script" not in page and "script-src" not in page


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium to drag the slider in")
def test_write_page_slider_moves_its_line(tmp_path: Path) -> None:
    """The content security policy of the page allows its own script alone, so another page moves the slider."""
    figures = [Figure(to_png_bytes(Image.new("RGB", (40, 30), color)), color, color) for color in ("red", "blue")]
    page = write_page(tmp_path / "index.html", "t", "l", [Section("one", "", sliders=[Slider(*figures, "both")])])
    drag = """<script>onload = () => {
        const inside = frame.contentDocument, input = inside.querySelector(".slider input");
        input.value = 80; input.dispatchEvent(new Event("input"));
        document.title = inside.querySelector(".slider").style.getPropertyValue("--at");
    }</script>"""
    outside = tmp_path / "outside.html"
    outside.write_text(f'<iframe id="frame" src="{page.as_uri()}"></iframe>{drag}')
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--dump-dom"]
    dumped = subprocess.run([str(CHROMIUM), *flags, outside.as_uri()], capture_output=True, text=True, timeout=120)
    assert "<title>80%</title>" in dumped.stdout, dumped.stdout[-2000:] + dumped.stderr[-500:]
