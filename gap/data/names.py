"""The names of data sets, and the folder of downloaded ones. Importing this does not import torch."""

import os
from pathlib import Path

from gap.core.paths import expanded

FOLDER = "folder:"


def list_datasets() -> dict[str, str]:
    """The names of all data sets of `load_data`, with a description of one line."""
    return {
        "mnist-5k": "5,000 MNIST digits that come with a dependency: 28 x 28, gray, 10 classes",
        "mnist": "MNIST digits, 60,000 and 10,000: 28 x 28, gray, 10 classes",
        "fashion-mnist": "Zalando's clothes, 60,000 and 10,000: 28 x 28, gray, 10 classes",
        "cifar10": "CIFAR-10, 50,000 and 10,000: 32 x 32, RGB, 10 classes",
        "svhn": "street view house numbers, 73,257 and 26,032: 32 x 32, RGB, 10 classes",
        "stl10": "STL-10, 5,000 and 8,000: 96 x 96, RGB, 10 classes",
        "folder:PATH": "your pictures: train/ and test/ with class folders, class folders, or pictures (labels.csv)",
    }


def default_root() -> Path:
    """The folder of downloaded data sets: the variable GAP_DATA, or else ~/.cache/gap."""
    return expanded(os.environ.get("GAP_DATA") or "~/.cache/gap")
