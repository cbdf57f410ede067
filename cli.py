"""The door of a clone: `python cli.py ...` is the installed command `gap`, with this checkout's code."""

import sys
from pathlib import Path

import gap

HERE = Path(__file__).resolve().parent

# `models/` and `configs/` stand beside `gap/` and are imported as `gap.models` and `gap.configs`. A user's own `models`
# package must stay importable, so the checkout itself leaves the path.
gap.__path__.append(str(HERE))
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != HERE]

from gap.cli.app import main  # noqa: E402

if __name__ == "__main__":
    main()
