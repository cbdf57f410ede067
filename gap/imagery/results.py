"""The base class of drawings, with conversion to images, saving, and display in notebooks."""

import io
from abc import ABC, abstractmethod
from pathlib import Path

from PIL import Image

from gap.core.files import write_bytes


class Drawing(ABC):
    """The base class of drawings."""

    @abstractmethod
    def to_pil(self) -> Image.Image:
        """The drawing as an 8-bit PIL image."""

    def save(self, path: str | Path) -> None:
        """Save the drawing as a PNG file. Raises GapError where it cannot be written."""
        write_bytes(Path(path), self._repr_png_())

    def _repr_png_(self) -> bytes:
        """The PNG that a notebook shows."""
        buffer = io.BytesIO()
        self.to_pil().save(buffer, format="PNG")
        return buffer.getvalue()
