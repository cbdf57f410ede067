import torch

from gap.classifier import load_classifier
from gap.data.named import load_data
from gap.training.identity import identify


def test_what_is_the_same_is_known_again_and_what_is_not_is_told_apart() -> None:
    torch.manual_seed(0)
    data, classifier = load_data("mnist-5k"), load_classifier("mnist-cnn")
    made_of = identify(data, [classifier])
    splits = {f"the {split} images of mnist-5k" for split in ("train", "validation", "test")}
    assert made_of.keys() == splits | {"the classifier mnist-cnn"}
    assert identify(load_data("mnist-5k"), [classifier]) == made_of
    with torch.no_grad():
        next(classifier.parameters()).flatten()[0] += 1e-3
    changed = identify(data, [classifier])
    assert {name for name in made_of if made_of[name] != changed[name]} == {"the classifier mnist-cnn"}
