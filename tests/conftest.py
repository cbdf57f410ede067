from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _denormals() -> Iterator[None]:
    """Training flushes denormal numbers to 0, for speed and for the whole process; tests that follow need them."""
    yield
    torch.set_flush_denormal(False)
