"""Weights as the field publishes them: found in what wraps them, and never by running anything."""

import contextlib
import pickle
import shlex
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from gap.classifiers.checkpoints import Normalization, read_weights
from gap.classifiers.classifier import Classifier, ClassifierSpec, load_classifier
from gap.classifiers.export import export
from gap.core.errors import GapError, GapWarning
from gap.core.safe_load import load_state_dict_checked

MEAN, STD = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.4, 0.5, 0.6])


def net() -> nn.Module:
    """With a key, conv1.weight, that others end in, and the running statistics of a norm."""
    inner = nn.Sequential()
    inner.conv1 = nn.Conv2d(3, 4, 3)
    inner.layer1 = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    inner.layer1.conv1 = nn.Conv2d(4, 4, 1)
    return inner


def load_weights(network: nn.Module, path: Path) -> Normalization | None:
    state, normalizer = read_weights(path, network)
    load_state_dict_checked(network, state, str(path))
    return normalizer


def prefixed(prefix: str) -> Callable[[dict[str, Tensor]], Any]:
    return lambda state: {prefix + name: value for name, value in state.items()}


def robustness(state: dict[str, Tensor]) -> Any:
    """As MadryLab's robustness saves: two copies, two normalizers, an optimizer, the epoch."""
    attacker = {"module.attacker.normalize.new_mean": MEAN.view(3, 1, 1), "module.attacker.normalize.new_std": STD}
    normalizer = {"module.normalizer.new_mean": MEAN.view(3, 1, 1), "module.normalizer.new_std": STD.view(3, 1, 1)}
    copies = {**prefixed("module.model.")(state), **prefixed("module.attacker.model.")(state)}
    return {"model": {**normalizer, **attacker, **copies}, "optimizer": {"lr": 0.1}, "epoch": 110}


def robustbench(state: dict[str, Tensor]) -> Any:
    return {"normalize.mean": MEAN, "normalize.std": STD, **prefixed("model.")(state)}


@pytest.mark.parametrize(
    ("save", "normalized"),
    [
        (lambda state: state, False),
        (prefixed("module."), False),
        (prefixed("_orig_mod.module."), False),
        (prefixed("model."), False),
        (lambda state: {"state_dict": prefixed("module.")(state), "best_acc": 0.9, "arch": "resnet18"}, False),
        (lambda state: {"net": state, "epoch": 3}, False),
        (lambda state: {**state, "mu": MEAN.view(1, 3, 1, 1), "sigma": STD.view(1, 3, 1, 1)}, True),
        (robustbench, True),
        (robustness, True),
    ],
)
def test_the_forms_in_which_weights_are_published(save: Callable[..., Any], normalized: bool, tmp_path: Path) -> None:
    theirs, ours = net(), net()
    torch.save(save(theirs.state_dict()), tmp_path / "theirs.pt")
    found = load_weights(ours, tmp_path / "theirs.pt")
    assert all(torch.equal(value, ours.state_dict()[name]) for name, value in theirs.state_dict().items())
    if not normalized:
        assert found is None
    else:
        assert isinstance(found, Normalization)
        assert torch.allclose(torch.tensor([found.mean, found.std]), torch.stack([MEAN, STD]))


def test_two_networks_in_one_file_are_not_mistaken_for_one(tmp_path: Path) -> None:
    first, second = (net().state_dict() for _ in range(2))
    torch.save({**prefixed("module.")(first), **prefixed("other.")(second)}, tmp_path / "theirs.pt")
    with pytest.raises(GapError, match=r"holds two networks with other weights each, other\. and module\.; leave one"):
        load_weights(net(), tmp_path / "theirs.pt")


@pytest.mark.parametrize(
    "name", ["mnist-cnn", "cifar-resnet18-narrow", "torchvision:squeezenet1_1", "timm:test_byobnet"]
)
def test_weights_say_how_many_classes_they_are_for(name: str, tmp_path: Path) -> None:
    fresh = name if ":" not in name else f"{name}@none"
    theirs = load_classifier(fresh, classes=7)
    torch.save(prefixed("module.")(theirs.network.state_dict()), tmp_path / "theirs.pt")
    ours = load_classifier(f"{name}@{tmp_path / 'theirs.pt'}")
    assert (ours.spec.classes, ours.fingerprint()) == (7, theirs.fingerprint())


@pytest.mark.parametrize("head", [torch.zeros(1).expand(10**13), torch.zeros(10**13, device="meta")])
def test_no_network_is_built_as_large_as_a_file_only_says(head: Tensor, tmp_path: Path) -> None:
    torch.save({**load_classifier("mnist-cnn").network.state_dict(), "7.bias": head}, tmp_path / "theirs.pt")
    with pytest.raises(GapError, match=r"another shape for 7\.bias"):
        load_classifier(f"mnist-cnn@{tmp_path / 'theirs.pt'}")


def test_the_normalizer_of_the_checkpoint_is_used(tmp_path: Path) -> None:
    theirs = load_classifier("cifar-resnet18-narrow")
    torch.save(robustness(theirs.network.state_dict()), tmp_path / "theirs.pt")
    name, images = f"cifar-resnet18-narrow@{tmp_path / 'theirs.pt'}", torch.rand(2, 3, 32, 32)
    expected = theirs.network.eval()((images - MEAN.view(1, 3, 1, 1)) / STD.view(1, 3, 1, 1))
    assert torch.allclose(load_classifier(name)(images), expected, atol=1e-5)
    with pytest.raises(GapError, match="has its own normalizer, or none; leave out `mean` and `std`"):
        load_classifier(name, mean=[0.0], std=[1.0])
    beside = load_classifier(name, mean=[0.0], std=[1.0], lenient=True)
    assert torch.allclose(beside(images), expected, atol=1e-5)


def test_a_normalizer_of_the_network_itself_is_its_own(tmp_path: Path) -> None:
    theirs, ours = net(), net()
    for each in (theirs, ours):
        each.register_buffer("mean", torch.rand(3))
        each.register_buffer("std", torch.rand(3))
    torch.save(prefixed("module.")(theirs.state_dict()), tmp_path / "theirs.pt")
    assert load_weights(ours, tmp_path / "theirs.pt") is None
    assert torch.equal(ours.mean, theirs.mean)


def test_the_first_missing_and_the_first_unexpected_key_are_named(tmp_path: Path) -> None:
    state = {"model": prefixed("module.")(net().state_dict())}
    state["model"]["module.fc.weight"] = state["model"].pop("module.layer1.1.running_var")
    torch.save(state, tmp_path / "theirs.pt")
    with pytest.raises(GapError, match=r"it lacks layer1.1.running_var \(1 in all\) and has an unexpected fc.weight"):
        load_weights(net(), tmp_path / "theirs.pt")


def test_a_file_without_a_state_dict(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "history": [1, 2]}, tmp_path / "theirs.pt")
    with pytest.raises(GapError, match="nor holds one as state_dict, model"):
        load_weights(net(), tmp_path / "theirs.pt")


def test_a_checkpoint_written_with_dill_is_refused_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "theirs.pt").write_bytes(b"\x80\x02cdill._dill\n_load_type\nX\x04\x00\x00\x00dict\x85R.")
    with pytest.raises(GapError, match=r"written with dill.*convert it once: python -c .*pickle_module=dill") as error:
        load_weights(net(), tmp_path / "theirs.pt")
    assert "\n" not in str(error.value)


def test_norms_that_do_not_count_their_batches_are_as_good(tmp_path: Path) -> None:
    theirs, ours = net(), net()
    old = {name: value for name, value in theirs.state_dict().items() if not name.endswith("num_batches_tracked")}
    for save in (prefixed("module."), robustness):
        torch.save(save(old), tmp_path / "theirs.pt")
        load_weights(ours, tmp_path / "theirs.pt")
        assert torch.equal(ours.state_dict()["layer1.1.running_mean"], theirs.state_dict()["layer1.1.running_mean"])


@pytest.mark.parametrize("given", [{}, {"mean": [0.0], "std": [1.0]}, {"mean": [0.2]}], ids=str)
@pytest.mark.parametrize(("code", "supposes"), [(False, "as is usual for"), (True, "gets pixels from 0 to 1")])
def test_a_normalizer_that_is_only_supposed_is_told(
    given: dict[str, Any], code: bool, supposes: str, tmp_path: Path
) -> None:
    architecture = "cifar-resnet18-narrow"
    if code:
        architecture = f"{tmp_path / 'mine.py'}:make"
        (tmp_path / "mine.py").write_text(
            "from torch import nn\nmake = lambda: nn.Sequential(nn.Flatten(), nn.Linear(27, 2))\n"
        )
    network = load_classifier(architecture, channels=3, size=(3, 3) if code else None).network
    torch.save(network.state_dict(), tmp_path / "theirs.pt")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load_classifier(f"{architecture}@{tmp_path / 'theirs.pt'}", channels=3, size=(3, 3) if code else None, **given)
    told = [str(each.message) for each in caught if "brings no normalizer" in str(each.message)]
    assert [supposes in each for each in told] == ([] if given else [True])


@pytest.mark.parametrize(("suffix", "kind"), [(".onnx", "ONNX"), (".ts", "TorchScript")])
def test_an_exported_network_is_told_from_weights(suffix: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"net{suffix}"
    path.write_bytes(b"\x08\x08")
    for name in (path, f"mnist-cnn@{path}"):
        with pytest.raises(GapError, match=f"is a network as {kind}, for use elsewhere"):
            load_classifier(name)


@pytest.mark.parametrize("content", [b"hello world", b"", b"\x80\x02.", b"\x80\x02K\x01.", b"PK\x03\x04 not a zip"])
def test_a_file_that_is_no_checkpoint(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "theirs.pt").write_bytes(content)
    with pytest.raises(GapError, match=r"theirs\.pt"):
        load_weights(net(), tmp_path / "theirs.pt")


def test_tensors_that_cannot_be_weights(tmp_path: Path) -> None:
    torch.save({1: torch.zeros(2)}, tmp_path / "numbered.pt")
    with pytest.raises(GapError, match="is not a state dict"):
        load_weights(net(), tmp_path / "numbered.pt")
    torch.save({**net().state_dict(), "conv1.bias": torch.zeros(4).to_sparse()}, tmp_path / "sparse.pt")
    with pytest.raises(GapError, match="cannot be copied into the network"):
        load_weights(net(), tmp_path / "sparse.pt")


@pytest.mark.parametrize("save", [lambda net: net, lambda net: {"net": net.state_dict(), "args": Path("runs")}])
def test_the_conversion_that_is_spelled_out_works(save: Callable[..., Any], tmp_path: Path) -> None:
    """Run as told, on a file name that a shell would take apart; a module stands for a network saved whole."""
    theirs, ours, path = nn.Linear(3, 2), nn.Linear(3, 2), tmp_path / "it's $(them).pt"
    torch.save(save(theirs), path)
    with pytest.raises(GapError, match="convert it once: ") as error:
        load_weights(ours, path)
    command = str(error.value).partition("convert it once: ")[2].replace("python", sys.executable, 1)
    done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    load_weights(ours, tmp_path / "it's $(them)-weights.pt")
    assert torch.equal(ours.weight, theirs.weight)


def saved(state: Any, folder: Path, suffix: str = "pt") -> Path:
    path = folder / f"theirs.{suffix}"
    (safetensors.torch.save_file if suffix == "safetensors" else torch.save)(state, path)
    return path


@pytest.mark.parametrize(
    ("std", "fault"),
    [
        ([0.2, float("nan"), 0.2], "std is not a finite number"),
        ([0.2, 0.0, 0.2], "std is not above 0"),
        ([], "std is not a finite"),
    ],
)
def test_a_normalizer_that_cannot_be_used_is_refused(tmp_path: Path, std: list[float], fault: str) -> None:
    state = {**net().state_dict(), "normalize.mean": MEAN, "normalize.std": torch.tensor(std)}
    with pytest.raises(GapError, match=f"the normalizer in .* cannot be used: normalize.{fault}"):
        load_weights(net(), saved(state, tmp_path))


class Remembering(nn.Linear):
    """A layer that keeps more than tensors in its state dict."""

    def get_extra_state(self) -> dict[str, str]:
        return {"version": "1"}

    def set_extra_state(self, state: dict[str, str]) -> None:
        assert state == {"version": "1"}


@pytest.mark.parametrize("extra", [None, {"version": "2"}, torch.zeros(3)])
def test_extra_state_is_passed_over(tmp_path: Path, extra: object) -> None:
    theirs = nn.Linear(3, 2)
    for ours in (nn.Linear(3, 2), Remembering(3, 2)):
        state = {"state_dict": {**prefixed("module.")(theirs.state_dict()), "module._extra_state": extra}}
        load_weights(ours, saved(state, tmp_path))
        assert torch.equal(ours.weight, theirs.weight)


@pytest.mark.parametrize(
    "holders",
    [
        ("checkpoint",),
        ("ema",),
        ("model_ema",),
        ("state_dict_ema",),
        ("ema_state_dict",),
        ("params",),
        ("weights",),
        ("module",),
        ("checkpoint", "model"),
        ("ema", "module"),
    ],
    ids=".".join,
)
def test_a_state_dict_is_found_under_its_usual_keys(tmp_path: Path, holders: tuple[str, ...]) -> None:
    theirs, ours = net(), net()
    held: Any = theirs.state_dict()
    for holder in reversed(holders):
        held = {holder: held, "epoch": 3}
    load_weights(ours, saved(held, tmp_path))
    assert torch.equal(ours.conv1.weight, theirs.conv1.weight)


AVERAGES: dict[str, Callable[[Any, Any], Any]] = {
    "key": lambda plain, average: {"model_ema": average, "model": plain},
    "nested": lambda plain, average: {
        "ema": {"module": average, "decay": 0.9},
        "state_dict": prefixed("module.")(plain),
    },
    "prefix": lambda plain, average: {"model": {**prefixed("ema.")(average), **prefixed("network.")(plain)}},
    "learned": lambda plain, average: {
        **prefixed("ema.")({key: value for key, value in average.items() if "running" not in key}),
        **prefixed("module.")(plain),
    },
}


@pytest.mark.parametrize("form", AVERAGES)
def test_the_plain_weights_are_taken_beside_an_average(tmp_path: Path, form: str) -> None:
    plain, average, ours = net(), net(), net()
    path = saved(AVERAGES[form](plain.state_dict(), average.state_dict()), tmp_path)
    with pytest.warns(GapWarning, match=r"also holds an average of the weights \(EMA\), .*ema.*, which is passed over"):
        load_weights(ours, path)
    assert torch.equal(ours.conv1.weight, plain.conv1.weight)


@pytest.mark.parametrize(
    ("form", "suffix"), [("key", "pt"), ("nested", "pt"), ("prefix", "pt"), ("flat", "pt"), ("flat", "safetensors")]
)
def test_the_way_to_an_average_that_is_spelled_out_works(tmp_path: Path, form: str, suffix: str) -> None:
    plain, average, ours = net(), net(), net()
    both = plain.state_dict(), average.state_dict()
    flat = {**prefixed("ema.")(both[1]), **prefixed("net.")(both[0])}
    path = saved(flat if form == "flat" else AVERAGES[form](*both), tmp_path, suffix)
    with pytest.warns(GapWarning) as caught:
        load_weights(net(), path)
    run_command(str(caught[0].message).partition("save it once: ")[2], tmp_path)
    load_weights(ours, tmp_path / "theirs-ema.pt")
    assert torch.equal(ours.conv1.weight, average.conv1.weight)


def test_a_prefix_that_a_shell_could_run_is_not_spelled_out(tmp_path: Path) -> None:
    plain, average = net().state_dict(), net().state_dict()
    path = saved({**prefixed('$(touch x)".ema.')(average), **prefixed("net.")(plain)}, tmp_path)
    with pytest.warns(GapWarning, match="which is passed over$"):
        load_weights(net(), path)


@pytest.mark.filterwarnings("error::gap.core.errors.GapWarning")
@pytest.mark.parametrize("form", AVERAGES)
def test_an_average_that_is_the_same_is_passed_over_in_silence(tmp_path: Path, form: str) -> None:
    plain, ours = net().state_dict(), net()
    load_weights(ours, saved(AVERAGES[form](plain, plain), tmp_path))
    assert torch.equal(ours.conv1.weight, plain["conv1.weight"])


def test_an_average_by_names_of_its_own_is_passed_over(tmp_path: Path) -> None:
    plain, ours = net().state_dict(), net()
    strange = {"model_ema.decay": torch.tensor(0.9), "model_ema.conv1weight": plain["conv1.weight"]}
    with pytest.warns(GapWarning, match="an average of the weights .* which is passed over$"):
        load_weights(ours, saved({**prefixed("model.")(plain), **strange}, tmp_path))
    assert torch.equal(ours.conv1.weight, plain["conv1.weight"])


def as_arrays(state: dict[str, Tensor]) -> dict[str, Any]:
    return {name: value.numpy() for name, value in state.items()}


def big_endian(state: dict[str, Tensor]) -> dict[str, Any]:
    return {name: value.numpy().astype(">f4") for name, value in state.items()}


@pytest.mark.parametrize(
    "arrange",
    [
        as_arrays,
        big_endian,
        lambda state: {"checkpoint": {"model": as_arrays(state), "epoch": 3}, "best": as_arrays(state)["bias"][0]},
        lambda state: {**as_arrays(state), "epoch": 3, "name": "net"},
    ],
)
@pytest.mark.parametrize("torch_saves", [True, False])
def test_the_conversion_of_arrays_that_is_spelled_out_works(
    arrange: Callable[..., Any], torch_saves: bool, tmp_path: Path
) -> None:
    theirs, ours, path = nn.Linear(3, 2), nn.Linear(3, 2), tmp_path / "theirs.pt"
    held = arrange({name: value.detach() for name, value in theirs.state_dict().items()})
    if torch_saves:
        torch.save(held, path)
    else:
        path.write_bytes(pickle.dumps(held, protocol=2))
    with pytest.raises(GapError, match="convert it once: ") as error:
        load_weights(ours, path)
    run_command(str(error.value).partition("convert it once: ")[2], tmp_path)
    load_weights(ours, tmp_path / "theirs-weights.pt")
    assert torch.equal(ours.weight, theirs.weight)


def run_command(command: str, folder: Path) -> None:
    """Run the Python that a message spells out, without a shell and another process."""
    python, option, script, *arguments = shlex.split(command)
    assert (python, option) == ("python", "-c")
    with contextlib.chdir(folder), patch.object(sys, "argv", ["-c", *arguments]):
        exec(script, {})


def test_a_network_with_extra_state_is_named_by_its_tensors_and_exported(tmp_path: Path) -> None:
    spec = ClassifierSpec(1, (1, 3), 2)
    plain = nn.Sequential(nn.Flatten(), nn.Linear(3, 2))
    remembering = nn.Sequential(nn.Flatten(), Remembering(3, 2))
    remembering.load_state_dict({**plain.state_dict(), "1._extra_state": {"version": "1"}})
    ours, theirs = (Classifier(each, spec, name="net", architecture="net") for each in (plain, remembering))
    assert ours.fingerprint() == theirs.fingerprint()
    export(theirs, tmp_path / "net.safetensors")
    assert load_weights(plain, tmp_path / "net.safetensors") is None
