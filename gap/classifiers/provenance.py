"""Fingerprints of the data and the networks of a training, which must be the same when it is resumed."""

from collections.abc import Sequence

from gap.classifiers.classifier import Classifier
from gap.data.dataset import Dataset


def data_fingerprints(data: Dataset, classifiers: Sequence[Classifier] = ()) -> dict[str, str]:
    """A hash of each split and of each attacked classifier, by its description in errors."""
    splits = {f"the {name} images of {data.name}": split.file_fingerprint() for name, split in data.splits.items()}
    return splits | {f"the classifier {classifier.name}": classifier.fingerprint() for classifier in classifiers}
