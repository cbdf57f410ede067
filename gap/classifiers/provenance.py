"""What a training run learns from: work is taken up again only on the same."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from gap.classifiers.classifier import Classifier
from gap.core.errors import GapError
from gap.data.dataset import Dataset


def data_fingerprints(data: Dataset, classifiers: Sequence[Classifier] = ()) -> dict[str, str]:
    """A hash of each split and of each classifier attacked, under the name that an error gives it."""
    splits = {f"the {name} images of {data.name}": split.file_fingerprint() for name, split in data.splits.items()}
    return splits | {f"the classifier {classifier.name}": classifier.fingerprint() for classifier in classifiers}


def check_fingerprints(now: Mapping[str, str], then: Mapping[str, str], path: Path) -> None:
    """Raise GapError, naming what differs, when work saved in `path` was made of something else."""
    changed = [name for name in {**now, **then} if now.get(name) != then.get(name)]
    if changed:
        raise GapError(
            f"{' and '.join(changed)} changed since {path} was saved;"
            " bring back what was there, or start again with `overwrite`"
        )
