"""Files of tensors from an untrusted source: loaded or refused with one line, and never executed."""

import errno
import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import foreign
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from gap.core.errors import GapError
from gap.core.safe_load import load_optimizer_checked, load_state_dict_checked, load_untrusted


def make_network() -> nn.Module:
    """With the running statistics of a norm."""
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


def load_weights(network: nn.Module, path: Path) -> None:
    load_state_dict_checked(network, load_untrusted(path), path)


def damage(content: bytes, chance: random.Random) -> bytes:
    """Cut short, or with a few bytes changed."""
    if chance.random() < 0.3:
        return content[: chance.randrange(len(content))]
    changed = bytearray(content)
    for _ in range(chance.randint(1, 3)):
        changed[chance.randrange(len(changed))] = chance.randrange(256)
    return bytes(changed)


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle", "safetensors"])
def test_load_untrusted_damaged_file_raises_only_the_expected_errors(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"weights.{kind}"
    match kind:
        case "safetensors":
            safetensors.torch.save_file({"a": torch.zeros(3), "b": torch.ones(2, 2)}, path)
        case "pickle":
            path.write_bytes(pickle.dumps({"a": [1, 2, (3, 4)], "b": "x"}, protocol=2))
        case _:
            state = {"a": torch.zeros(3), "b": {"c": torch.ones(2, 2)}, "e": 3}
            torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    content, chance, refused = path.read_bytes(), random.Random(0), 0
    for _ in range(400):
        path.write_bytes(damage(content, chance))
        try:
            load_untrusted(path)
        except (GapError, pickle.UnpicklingError):
            refused += 1
    assert refused > 100


def test_load_untrusted_permission_denied_is_not_reported_as_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error is raised by a patch, because root may read every file."""

    def raise_permission_error(path: Path) -> bytes:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    path = tmp_path / "weights.pt"
    torch.save({}, path)
    monkeypatch.setattr(Path, "read_bytes", raise_permission_error)
    with pytest.raises(GapError, match=f"^cannot read {path}: Permission denied$"):
        load_untrusted(path)


def test_load_untrusted_folder_is_not_reported_as_damage(tmp_path: Path) -> None:
    with pytest.raises(GapError, match=f"^cannot read {tmp_path}: Is a directory$"):
        load_untrusted(tmp_path)


def save(state: Any, folder: Path, suffix: str = "pt") -> Path:
    path = folder / f"theirs.{suffix}"
    (safetensors.torch.save_file if suffix == "safetensors" else torch.save)(state, path)
    return path


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_load_state_dict_checked_non_finite_weights_are_counted_and_named(
    tmp_path: Path, value: float, suffix: str
) -> None:
    state = make_network().state_dict()
    state["0.bias"][1:3] = value
    state["1.running_mean"][0] = value
    path = save(state, tmp_path, suffix)
    wanted = rf"in {path} .* 0\.bias has 2 of 4 values that are NaN or infinite \(3 in all\); download it or save it"
    with pytest.raises(GapError, match=wanted) as error:
        load_weights(make_network(), path)
    assert "\n" not in str(error.value)


def test_load_state_dict_checked_overflow_in_the_dtype_of_the_network_is_refused(tmp_path: Path) -> None:
    state = {"weight": torch.full((2, 3), 1e300, dtype=torch.float64), "bias": torch.zeros(2)}
    with pytest.raises(GapError, match="weight has 6 of 6 values that are NaN or infinite"):
        load_weights(nn.Linear(3, 2), save(state, tmp_path))


def test_load_state_dict_checked_buffer_with_infinite_constant_is_loaded(tmp_path: Path) -> None:
    source, target = nn.Linear(3, 2), nn.Linear(3, 2)
    for network in (source, target):
        network.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    load_weights(target, save(source.state_dict(), tmp_path))
    assert torch.equal(target.weight, source.weight)


@pytest.mark.filterwarnings("ignore:.*quantize")
@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda value: value.to(torch.complex64), "holds complex64 values, where float32 is expected"),
        (lambda value: value > 0, "holds bool values, where float32 is expected"),
        (lambda value: value.to(torch.int8), "holds int8 values, where float32 is expected"),
        (lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8), "holds qint8 values, where float32"),
        (lambda value: value.to("meta"), "says a shape and holds no values"),
        (lambda value: torch.zeros(0, *value.shape[1:]), "another shape for weight"),
    ],
)
def test_load_state_dict_checked_incompatible_dtype_or_shape_is_refused(
    tmp_path: Path, change: Callable[[Tensor], Tensor], fault: str
) -> None:
    state = dict(nn.Linear(3, 2).state_dict())
    with pytest.raises(GapError, match=fault) as error:
        load_weights(nn.Linear(3, 2), save(state | {"weight": change(state["weight"])}, tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
def test_load_state_dict_checked_other_float_precision_is_loaded(tmp_path: Path, kind: torch.dtype) -> None:
    target, weight = nn.Linear(3, 2), torch.tensor([[1.0, 0.5, -2.0]] * 2)
    load_weights(target, save({"weight": weight.to(kind), "bias": torch.zeros(2, dtype=kind)}, tmp_path))
    assert torch.equal(target.weight, weight)


def test_load_state_dict_checked_averaged_batch_counter_is_loaded(tmp_path: Path) -> None:
    """Catches: `num_batches_tracked` refused because an average of weights makes it a float."""
    target, state = make_network(), dict(make_network().state_dict())
    load_weights(target, save(state | {"1.num_batches_tracked": torch.tensor(7.0)}, tmp_path))
    assert target.state_dict()["1.num_batches_tracked"] == 7


def test_load_state_dict_checked_negative_variance_is_refused(tmp_path: Path) -> None:
    state = make_network().state_dict()
    state["1.running_var"][2] = -1e-3
    with pytest.raises(GapError, match=r"1\.running_var has a variance below 0; download it or save it again"):
        load_weights(make_network(), save(state, tmp_path))


def test_load_state_dict_checked_lazy_layer_takes_the_shape_of_the_file(tmp_path: Path) -> None:
    source, target = nn.Linear(3, 2), nn.LazyLinear(2)
    load_weights(target, save(source.state_dict(), tmp_path))
    assert torch.equal(target.weight, source.weight)


def test_load_optimizer_checked_state_of_other_weights_is_refused() -> None:
    def trained(size: int) -> torch.optim.Optimizer:
        layer = nn.Linear(size, 2)
        optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
        layer(torch.rand(1, size)).sum().backward()
        optimizer.step()
        return optimizer

    state = trained(3).state_dict()
    load_optimizer_checked(trained(3), state)
    with pytest.raises(ValueError, match="exp_avg of the optimizer's weight 0 is of another shape"):
        load_optimizer_checked(trained(4), state)
    state["param_groups"][0]["lr"] = "fast"
    with pytest.raises(TypeError, match="the optimizer's lr is 'fast'"):
        load_optimizer_checked(trained(3), state)
    del state["state"][0]["exp_avg"]
    with pytest.raises(ValueError, match="weight 1 has other moments than the first"):
        load_optimizer_checked(trained(3), state)


def test_load_state_dict_checked_network_that_checks_its_version_loads() -> None:
    """Catches: a state dict that loses the versions of the modules on its way, which MNASNet refuses."""
    network, twin = foreign.Versioned(), foreign.Versioned()
    nn.init.zeros_(twin.fc.weight)
    load_state_dict_checked(twin, dict(network.state_dict()), "weights.pt")
    assert torch.equal(twin.fc.weight, network.fc.weight)
