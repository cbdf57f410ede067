"""Self-contained HTML pages: images are embedded, nothing is loaded, and the only script is that of sliders."""

import base64
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image, UnidentifiedImageError

from gap.core.errors import GapError
from gap.core.files import write_bytes
from gap.report.tables import Table, html_table

SCREEN_DENSITY = 96  # CSS pixels per inch
# The script of sliders. The page allows no other script: its content security policy has the hash of this one.
SCRIPT = (
    'for (const input of document.querySelectorAll(".slider input"))'
    ' input.addEventListener("input", () => input.parentElement.style.setProperty("--at", input.value + "%"));'
)


@dataclass(frozen=True)
class Figure:
    """An image of the page: the bytes of a PNG file, its caption and its alternative text."""

    png: bytes
    caption: str
    alt: str

    @property
    def data_uri(self) -> str:
        return "data:image/png;base64," + base64.b64encode(self.png).decode("ascii")

    @property
    def size(self) -> tuple[int, int]:
        """Width and height on the page, in CSS pixels. A PNG with a density is shown in its physical size.

        Raises GapError when the bytes are not a PNG.
        """
        try:
            with Image.open(io.BytesIO(self.png), formats=["PNG"]) as image:
                densities = image.info.get("dpi", (SCREEN_DENSITY, SCREEN_DENSITY))
                width, height = (
                    round(side * SCREEN_DENSITY / density) for side, density in zip(image.size, densities, strict=True)
                )
                return width, height
        except UnidentifiedImageError as error:
            raise GapError(f"the figure {self.caption!r} is not a PNG picture") from error


@dataclass(frozen=True)
class Slider:
    """Two images of the same size with a slider between them."""

    before: Figure
    after: Figure
    caption: str


@dataclass(frozen=True)
class Section:
    """A section of the page: text with paragraphs separated by blank lines, figures, a table and facts."""

    title: str
    text: str
    figures: Sequence[Figure] = ()
    table: Table | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    sliders: Sequence[Slider] = ()

    @property
    def paragraphs(self) -> list[str]:
        return [paragraph.strip() for paragraph in self.text.split("\n\n") if paragraph.strip()]


def write_page(path: str | Path, title: str, lead: str, sections: Sequence[Section]) -> Path:
    """Write the page atomically and return its path. All text is escaped.

    Raises GapError when a figure is not a PNG or the file cannot be written.
    """
    environment = Environment(
        loader=PackageLoader("gap.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("page.html.jinja")
    script = SCRIPT if any(section.sliders for section in sections) else ""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    page = template.render(
        title=title, lead=lead, sections=sections, html_table=html_table, script=Markup(script), digest=digest
    )
    return write_bytes(path, page.encode("utf-8", errors="replace"))
