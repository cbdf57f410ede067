"""`python -m gap` and `accelerate launch -m gap`: the same command as `gap`."""

import os
import sys

# `python -m` puts the current folder first. Here it goes last, after all installed packages.
sys.path[:] = [entry for entry in sys.path if entry not in ("", os.getcwd())] + [os.getcwd()]

from gap.cli.app import main  # noqa: E402

if __name__ == "__main__":
    main()
