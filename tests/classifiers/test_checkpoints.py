"""Published checkpoints: the state dict is found in its wrapper, without running code from the file."""

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
    """A network with batch normalization and with a key, conv1.weight, that other keys end in."""
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
    """A checkpoint of MadryLab's robustness: two copies, two normalizers, an optimizer, the epoch."""
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
def test_read_weights_published_form_gives_weights_and_normalizer(
    save: Callable[..., Any], normalized: bool, tmp_path: Path
) -> None:
    source, target = net(), net()
    torch.save(save(source.state_dict()), tmp_path / "published.pt")
    normalizer = load_weights(target, tmp_path / "published.pt")
    assert all(torch.equal(value, target.state_dict()[name]) for name, value in source.state_dict().items())
    if not normalized:
        assert normalizer is None
    else:
        assert isinstance(normalizer, Normalization)
        assert torch.allclose(torch.tensor([normalizer.mean, normalizer.std]), torch.stack([MEAN, STD]))


def test_read_weights_two_networks_in_one_file_raises_gap_error(tmp_path: Path) -> None:
    first, second = (net().state_dict() for _ in range(2))
    torch.save({**prefixed("module.")(first), **prefixed("other.")(second)}, tmp_path / "published.pt")
    with pytest.raises(GapError, match=r"holds two networks with other weights each, other\. and module\.; leave one"):
        load_weights(net(), tmp_path / "published.pt")


@pytest.mark.parametrize(
    "name", ["mnist-cnn", "cifar-resnet18-narrow", "torchvision:squeezenet1_1", "timm:test_byobnet"]
)
def test_load_classifier_weights_file_determines_the_class_count(name: str, tmp_path: Path) -> None:
    untrained = name if ":" not in name else f"{name}@none"
    source = load_classifier(untrained, classes=7)
    torch.save(prefixed("module.")(source.network.state_dict()), tmp_path / "published.pt")
    loaded = load_classifier(f"{name}@{tmp_path / 'published.pt'}")
    assert (loaded.spec.classes, loaded.fingerprint()) == (7, source.fingerprint())


@pytest.mark.parametrize("head", [torch.zeros(1).expand(10**13), torch.zeros(10**13, device="meta")])
def test_load_classifier_huge_tensor_without_storage_raises_gap_error(head: Tensor, tmp_path: Path) -> None:
    """Catches: a network allocated with the size that a small file only claims."""
    torch.save({**load_classifier("mnist-cnn").network.state_dict(), "7.bias": head}, tmp_path / "published.pt")
    with pytest.raises(GapError, match=r"another shape for 7\.bias"):
        load_classifier(f"mnist-cnn@{tmp_path / 'published.pt'}")


def test_load_classifier_normalizer_in_checkpoint_is_used(tmp_path: Path) -> None:
    source = load_classifier("cifar-resnet18-narrow")
    torch.save(robustness(source.network.state_dict()), tmp_path / "published.pt")
    name, images = f"cifar-resnet18-narrow@{tmp_path / 'published.pt'}", torch.rand(2, 3, 32, 32)
    expected = source.network.eval()((images - MEAN.view(1, 3, 1, 1)) / STD.view(1, 3, 1, 1))
    assert torch.allclose(load_classifier(name)(images), expected, atol=1e-5)
    with pytest.raises(GapError, match="has its own normalizer, or none; leave out `mean` and `std`"):
        load_classifier(name, mean=[0.0], std=[1.0])
    lenient = load_classifier(name, mean=[0.0], std=[1.0], lenient=True)
    assert torch.allclose(lenient(images), expected, atol=1e-5)


def test_read_weights_buffers_named_mean_and_std_stay_in_the_network(tmp_path: Path) -> None:
    """Catches: buffers of the network that are taken for a normalizer because of their names."""
    source, target = net(), net()
    for network in (source, target):
        network.register_buffer("mean", torch.rand(3))
        network.register_buffer("std", torch.rand(3))
    torch.save(prefixed("module.")(source.state_dict()), tmp_path / "published.pt")
    assert load_weights(target, tmp_path / "published.pt") is None
    assert torch.equal(target.mean, source.mean)


def test_load_state_dict_checked_wrong_keys_names_the_first_missing_and_unexpected_one(tmp_path: Path) -> None:
    state = {"model": prefixed("module.")(net().state_dict())}
    state["model"]["module.fc.weight"] = state["model"].pop("module.layer1.1.running_var")
    torch.save(state, tmp_path / "published.pt")
    with pytest.raises(GapError, match=r"it lacks layer1.1.running_var \(1 in all\) and has an unexpected fc.weight"):
        load_weights(net(), tmp_path / "published.pt")


def test_read_weights_file_without_state_dict_raises_gap_error(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "history": [1, 2]}, tmp_path / "published.pt")
    with pytest.raises(GapError, match="nor holds one as state_dict, model"):
        load_weights(net(), tmp_path / "published.pt")


def test_read_weights_dill_checkpoint_raises_a_one_line_error_with_a_conversion_command(tmp_path: Path) -> None:
    (tmp_path / "published.pt").write_bytes(b"\x80\x02cdill._dill\n_load_type\nX\x04\x00\x00\x00dict\x85R.")
    with pytest.raises(GapError, match=r"written with dill.*convert it once: python -c .*pickle_module=dill") as error:
        load_weights(net(), tmp_path / "published.pt")
    assert "\n" not in str(error.value)


def test_read_weights_without_num_batches_tracked_loads_the_statistics(tmp_path: Path) -> None:
    source, target = net(), net()
    state = {name: value for name, value in source.state_dict().items() if not name.endswith("num_batches_tracked")}
    for save in (prefixed("module."), robustness):
        torch.save(save(state), tmp_path / "published.pt")
        load_weights(target, tmp_path / "published.pt")
        assert torch.equal(target.state_dict()["layer1.1.running_mean"], source.state_dict()["layer1.1.running_mean"])


@pytest.mark.parametrize("normalizer", [{}, {"mean": [0.0], "std": [1.0]}, {"mean": [0.2]}], ids=str)
@pytest.mark.parametrize(
    ("from_user_code", "assumption"), [(False, "as is usual for"), (True, "gets pixels from 0 to 1")]
)
def test_load_classifier_weights_without_normalizer_warns_of_the_assumed_one(
    normalizer: dict[str, Any], from_user_code: bool, assumption: str, tmp_path: Path
) -> None:
    architecture = "cifar-resnet18-narrow"
    if from_user_code:
        architecture = f"{tmp_path / 'mine.py'}:make"
        (tmp_path / "mine.py").write_text(
            "from torch import nn\nmake = lambda: nn.Sequential(nn.Flatten(), nn.Linear(27, 2))\n"
        )
    network = load_classifier(architecture, channels=3, size=(3, 3) if from_user_code else None).network
    torch.save(network.state_dict(), tmp_path / "published.pt")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load_classifier(
            f"{architecture}@{tmp_path / 'published.pt'}",
            channels=3,
            size=(3, 3) if from_user_code else None,
            **normalizer,
        )
    messages = [str(warning.message) for warning in caught if "brings no normalizer" in str(warning.message)]
    assert [assumption in message for message in messages] == ([] if normalizer else [True])


@pytest.mark.parametrize(("suffix", "kind"), [(".onnx", "ONNX"), (".ts", "TorchScript")])
def test_load_classifier_exported_network_raises_an_error_with_its_format(
    suffix: str, kind: str, tmp_path: Path
) -> None:
    path = tmp_path / f"net{suffix}"
    path.write_bytes(b"\x08\x08")
    for name in (path, f"mnist-cnn@{path}"):
        with pytest.raises(GapError, match=f"is a network as {kind}, for use elsewhere"):
            load_classifier(name)


@pytest.mark.parametrize("content", [b"hello world", b"", b"\x80\x02.", b"\x80\x02K\x01.", b"PK\x03\x04 not a zip"])
def test_read_weights_file_that_is_no_checkpoint_raises_an_error_with_its_path(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "published.pt").write_bytes(content)
    with pytest.raises(GapError, match=r"published\.pt"):
        load_weights(net(), tmp_path / "published.pt")


def test_read_weights_numbered_or_sparse_tensors_raises_gap_error(tmp_path: Path) -> None:
    torch.save({1: torch.zeros(2)}, tmp_path / "numbered.pt")
    with pytest.raises(GapError, match="is not a state dict"):
        load_weights(net(), tmp_path / "numbered.pt")
    torch.save({**net().state_dict(), "conv1.bias": torch.zeros(4).to_sparse()}, tmp_path / "sparse.pt")
    with pytest.raises(GapError, match="cannot be copied into the network"):
        load_weights(net(), tmp_path / "sparse.pt")


@pytest.mark.parametrize("save", [lambda net: net, lambda net: {"net": net.state_dict(), "args": Path("runs")}])
def test_read_weights_conversion_command_in_the_error_works_in_a_shell(
    save: Callable[..., Any], tmp_path: Path
) -> None:
    """Catches: a command that does not quote the file name. The saved module stands for a network pickled whole."""
    source, target, path = nn.Linear(3, 2), nn.Linear(3, 2), tmp_path / "it's $(them).pt"
    torch.save(save(source), path)
    with pytest.raises(GapError, match="convert it once: ") as error:
        load_weights(target, path)
    command = str(error.value).partition("convert it once: ")[2].replace("python", sys.executable, 1)
    process = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    load_weights(target, tmp_path / "it's $(them)-weights.pt")
    assert torch.equal(target.weight, source.weight)


def save_checkpoint(state: Any, folder: Path, suffix: str = "pt") -> Path:
    path = folder / f"published.{suffix}"
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
def test_read_weights_invalid_normalizer_raises_gap_error(tmp_path: Path, std: list[float], fault: str) -> None:
    state = {**net().state_dict(), "normalize.mean": MEAN, "normalize.std": torch.tensor(std)}
    with pytest.raises(GapError, match=f"the normalizer in .* cannot be used: normalize.{fault}"):
        load_weights(net(), save_checkpoint(state, tmp_path))


class LinearWithExtraState(nn.Linear):
    """A layer that keeps more than tensors in its state dict."""

    def get_extra_state(self) -> dict[str, str]:
        return {"version": "1"}

    def set_extra_state(self, state: dict[str, str]) -> None:
        assert state == {"version": "1"}


@pytest.mark.parametrize("extra", [None, {"version": "2"}, torch.zeros(3)])
def test_read_weights_extra_state_is_ignored(tmp_path: Path, extra: object) -> None:
    source = nn.Linear(3, 2)
    for target in (nn.Linear(3, 2), LinearWithExtraState(3, 2)):
        state = {"state_dict": {**prefixed("module.")(source.state_dict()), "module._extra_state": extra}}
        load_weights(target, save_checkpoint(state, tmp_path))
        assert torch.equal(target.weight, source.weight)


@pytest.mark.parametrize(
    "keys",
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
def test_read_weights_state_dict_under_a_usual_key_is_found(tmp_path: Path, keys: tuple[str, ...]) -> None:
    source, target = net(), net()
    checkpoint: Any = source.state_dict()
    for key in reversed(keys):
        checkpoint = {key: checkpoint, "epoch": 3}
    load_weights(target, save_checkpoint(checkpoint, tmp_path))
    assert torch.equal(target.conv1.weight, source.conv1.weight)


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
def test_read_weights_checkpoint_with_ema_takes_the_plain_weights_with_a_warning(tmp_path: Path, form: str) -> None:
    plain, average, target = net(), net(), net()
    path = save_checkpoint(AVERAGES[form](plain.state_dict(), average.state_dict()), tmp_path)
    with pytest.warns(GapWarning, match=r"also holds an average of the weights \(EMA\), .*ema.*, which is passed over"):
        load_weights(target, path)
    assert torch.equal(target.conv1.weight, plain.conv1.weight)


@pytest.mark.parametrize(
    ("form", "suffix"), [("key", "pt"), ("nested", "pt"), ("prefix", "pt"), ("flat", "pt"), ("flat", "safetensors")]
)
def test_read_weights_ema_command_in_the_warning_saves_the_average(tmp_path: Path, form: str, suffix: str) -> None:
    plain, average, target = net(), net(), net()
    states = plain.state_dict(), average.state_dict()
    flat = {**prefixed("ema.")(states[1]), **prefixed("net.")(states[0])}
    path = save_checkpoint(flat if form == "flat" else AVERAGES[form](*states), tmp_path, suffix)
    with pytest.warns(GapWarning) as caught:
        load_weights(net(), path)
    run_command(str(caught[0].message).partition("save it once: ")[2], tmp_path)
    load_weights(target, tmp_path / "published-ema.pt")
    assert torch.equal(target.conv1.weight, average.conv1.weight)


def test_read_weights_ema_prefix_with_shell_code_gives_no_command(tmp_path: Path) -> None:
    """Catches: a command in the warning that would run code from the name of a tensor."""
    plain, average = net().state_dict(), net().state_dict()
    path = save_checkpoint({**prefixed('$(touch x)".ema.')(average), **prefixed("net.")(plain)}, tmp_path)
    with pytest.warns(GapWarning, match="which is passed over$"):
        load_weights(net(), path)


@pytest.mark.filterwarnings("error::gap.core.errors.GapWarning")
@pytest.mark.parametrize("form", AVERAGES)
def test_read_weights_ema_equal_to_the_plain_weights_gives_no_warning(tmp_path: Path, form: str) -> None:
    plain, target = net().state_dict(), net()
    load_weights(target, save_checkpoint(AVERAGES[form](plain, plain), tmp_path))
    assert torch.equal(target.conv1.weight, plain["conv1.weight"])


def test_read_weights_ema_with_unknown_keys_is_ignored_with_a_warning(tmp_path: Path) -> None:
    plain, target = net().state_dict(), net()
    unknown_keys = {"model_ema.decay": torch.tensor(0.9), "model_ema.conv1weight": plain["conv1.weight"]}
    with pytest.warns(GapWarning, match="an average of the weights .* which is passed over$"):
        load_weights(target, save_checkpoint({**prefixed("model.")(plain), **unknown_keys}, tmp_path))
    assert torch.equal(target.conv1.weight, plain["conv1.weight"])


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
def test_read_weights_numpy_arrays_conversion_command_in_the_error_works(
    arrange: Callable[..., Any], torch_saves: bool, tmp_path: Path
) -> None:
    source, target, path = nn.Linear(3, 2), nn.Linear(3, 2), tmp_path / "published.pt"
    checkpoint = arrange({name: value.detach() for name, value in source.state_dict().items()})
    if torch_saves:
        torch.save(checkpoint, path)
    else:
        path.write_bytes(pickle.dumps(checkpoint, protocol=2))
    with pytest.raises(GapError, match="convert it once: ") as error:
        load_weights(target, path)
    run_command(str(error.value).partition("convert it once: ")[2], tmp_path)
    load_weights(target, tmp_path / "published-weights.pt")
    assert torch.equal(target.weight, source.weight)


def run_command(command: str, folder: Path) -> None:
    """Run the Python of the command in a message, without a shell or another process."""
    python, option, script, *arguments = shlex.split(command)
    assert (python, option) == ("python", "-c")
    with contextlib.chdir(folder), patch.object(sys, "argv", ["-c", *arguments]):
        exec(script, {})


def test_classifier_with_extra_state_has_the_fingerprint_of_its_tensors_and_is_exported(tmp_path: Path) -> None:
    spec = ClassifierSpec(1, (1, 3), 2)
    plain = nn.Sequential(nn.Flatten(), nn.Linear(3, 2))
    with_extra_state = nn.Sequential(nn.Flatten(), LinearWithExtraState(3, 2))
    with_extra_state.load_state_dict({**plain.state_dict(), "1._extra_state": {"version": "1"}})
    plain_classifier, extra_classifier = (
        Classifier(network, spec, name="net", architecture="net") for network in (plain, with_extra_state)
    )
    assert plain_classifier.fingerprint() == extra_classifier.fingerprint()
    export(extra_classifier, tmp_path / "net.safetensors")
    assert load_weights(plain, tmp_path / "net.safetensors") is None
