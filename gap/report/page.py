"""The report as one self-contained HTML page: pictures inside it, nothing fetched, and nothing run but its sliders."""

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

SCREEN_DENSITY = 96  # CSS pixels to the inch
# Moves the line of each slider. The page allows no other script: it names this one's hash.
SCRIPT = (
    'for (const input of document.querySelectorAll(".slider input"))'
    ' input.addEventListener("input", () => input.parentElement.style.setProperty("--at", input.value + "%"));'
)


@dataclass(frozen=True)
class Figure:
    """A picture of the page: the bytes of a PNG file, what stands beneath it, and what is read out in its place."""

    png: bytes
    caption: str
    alt: str

    @property
    def data_uri(self) -> str:
        return "data:image/png;base64," + base64.b64encode(self.png).decode("ascii")

    @property
    def size(self) -> tuple[int, int]:
        """Width and height on the page, in CSS pixels: a PNG that states its density is shown at its true size.

        Raises GapError when the bytes are not a PNG.
        """
        try:
            with Image.open(io.BytesIO(self.png), formats=["PNG"]) as image:
                densities = image.info.get("dpi", (SCREEN_DENSITY, SCREEN_DENSITY))
                across, down = (
                    round(side * SCREEN_DENSITY / density) for side, density in zip(image.size, densities, strict=True)
                )
                return across, down
        except UnidentifiedImageError as error:
            raise GapError(f"the figure {self.caption!r} is not a PNG picture") from error


@dataclass(frozen=True)
class Slider:
    """Two pictures of one size over each other, parted by a line that is dragged, or moved with the arrow keys."""

    before: Figure
    after: Figure
    caption: str


@dataclass(frozen=True)
class Section:
    """One section of the page: what was done (paragraphs parted by blank lines), what it looks like, the figures."""

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
    """Write the page at once, whole, and return its path. All text is escaped.

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
