"""Drawings as objects: they turn into images, save themselves, and show themselves in a notebook."""

import io
from abc import ABC, abstractmethod
from pathlib import Path

from PIL import Image

from gap.core.files import write_bytes


class Drawing(ABC):
    """Something that can be looked at."""

    @abstractmethod
    def to_pil(self) -> Image.Image:
        """The drawing as an 8-bit PIL image."""

    def save(self, path: str | Path) -> None:
        """Save the drawing as a PNG, which appears whole. Raises GapError where it cannot be written."""
        write_bytes(Path(path), self._repr_png_())

    def _repr_png_(self) -> bytes:
        """What a notebook shows."""
        buffer = io.BytesIO()
        self.to_pil().save(buffer, format="PNG")
        return buffer.getvalue()
