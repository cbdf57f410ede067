"""Random and damaged files, names and options give a result, or a GapError of one line.

GAP_FUZZ_CASES=10000 tries that many of each kind.
"""

import copy
import io
import math
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import tiny
import torch
import yaml
from gap.models.classifiers import BUILTIN, BuiltinClassifier
from gap.models.feature_extractor import FeatureExtractor
from gap.models.generators import make_generator
from gap.models.stylizers import make_stylizer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from gap.attacks.criteria import find_criterion
from gap.attacks.generator.model import load_attack
from gap.attacks.generator.options import TrainOptions
from gap.attacks.registry import create_attack, init_folder_of
from gap.classifiers import registry
from gap.classifiers.classifier import load_classifier, model_dir_of
from gap.classifiers.options import PretrainOptions
from gap.classifiers.registry import is_untrained, runs_user_code, split_name
from gap.classifiers.task import parse_input_shape
from gap.core.artifact import CARD, CHECKPOINT, CONFIG, TENSORS, save_artifact, was_written_by_gap
from gap.core.errors import GapError
from gap.core.options import Options, parse_assignments, read_config, read_yaml_file
from gap.core.process import TrainingInterrupted
from gap.data.images import find_pictures, load_image
from gap.data.registry import load_data
from gap.evaluation.benchmark import parse_attacks
from gap.hardening.inner_attacks import parse_inner_attack, parse_mixture
from gap.hardening.options import HardenOptions
from gap.imagery.feed_forward.stylizer import load_stylizer
from gap.threat import Budget

NAME = "small"
SIZE = (8, 8)


def small(channels: int, classes: int) -> nn.Module:
    """A small network with norms."""
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, stride=2),
        nn.BatchNorm2d(6),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, classes),
    )


@pytest.fixture(autouse=True, scope="module")
def _register_small() -> Iterator[None]:
    """Add the small network to the built-in classifiers."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(BUILTIN, NAME, BuiltinClassifier(small, 3, SIZE, 4, (0.5,), (0.5,), "small"))
        yield


def cases(usual: int) -> settings:
    """Settings with the same examples on every run; the environment variable GAP_FUZZ_CASES sets their number."""
    count = int(os.environ.get("GAP_FUZZ_CASES", usual))
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]
    return settings(max_examples=count, derandomize=True, database=None, deadline=None, suppress_health_check=checks)


@contextmanager
def only_gap_errors() -> Iterator[None]:
    """Ignore GapErrors and warnings, so that any other exception fails the test."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with suppress(GapError):
            yield


Damage = Callable[[bytes], bytes]


@st.composite
def damages(draw: st.DrawFn) -> Damage:
    """Ways to replace, truncate, remove or insert bytes; half of them near the beginning, where headers are."""
    kinds = draw(st.lists(st.sampled_from(["replace", "truncate", "remove", "insert"]), min_size=1, max_size=4))
    places = st.tuples(st.booleans(), st.integers(0, 400))
    edits = [(kind, *draw(places), draw(st.binary(min_size=1, max_size=4))) for kind in kinds]

    def damage(content: bytes) -> bytes:
        for kind, near, place, inserted in edits:
            at = min(place, len(content)) if near else len(content) * place // 401
            end = at + len(inserted)
            match kind:
                case "replace":
                    content = content[:at] + inserted[: len(content) - at] + content[end:]
                case "truncate":
                    content = content[:at]
                case "remove":
                    content = content[:at] + content[end:]
                case _:
                    content = content[:at] + inserted + content[at:]
        return content

    return damage


# No number is large enough to fill the memory, and small enough that the allocation is tried.
JUNK: list[Any] = [
    None, "", "x", "linf:1e9", "no/such:thing@x", "\0", "\ud800", -1, 0, 1, 7, 2**62, 10**30, math.nan, math.inf, -0.5,
    True, [], [3], [3, 3, 3], [[]], {}, {"x": 1}, {1: 2}, b"x",
]  # fmt: skip


@st.composite
def value_changes(draw: st.DrawFn) -> Callable[[Any], Any]:
    """Ways to drop a key or an item of nested values, or to replace it by an unexpected value."""
    steps = draw(st.lists(st.integers(0, 30), min_size=1, max_size=4))
    junk = draw(st.sampled_from(["drop", *JUNK]))

    def change(values: Any) -> Any:
        values = copy.deepcopy(values)
        parent = values
        for step in steps[:-1]:
            nested = [key for key in keys(parent) if keys(parent[key])]
            parent = parent[nested[step % len(nested)]] if nested else parent
        if choices := keys(parent):
            key = choices[steps[-1] % len(choices)]
            if junk == "drop":
                del parent[key]
            else:
                parent[key] = junk
        return values

    return change


def keys(values: Any) -> list[Any]:
    return list(values) if isinstance(values, dict) else list(range(len(values))) if isinstance(values, list) else []


@st.composite
def tensor_changes(draw: st.DrawFn) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """Ways to rename, drop, resize or convert one tensor, or to give it values that no weights have."""
    kind = draw(
        st.sampled_from(
            ["rename", "drop", "resize", "empty", "nan", "inf", "negative", "half", "int", "bool", "complex"]
        )
    )
    place = draw(st.integers(0, 200))

    def change(state: dict[str, Tensor]) -> dict[str, Tensor]:
        state = dict(state)
        name = sorted(state)[place % len(state)]
        value = state.pop(name)
        made = {
            "rename": lambda: {f"{name}x": value},
            "drop": dict,
            "resize": lambda: {name: torch.zeros(*value.shape, 2)},
            "empty": lambda: {name: torch.zeros(0, *value.shape[1:])},
            "nan": lambda: {name: torch.full(value.shape, math.nan)},
            "inf": lambda: {name: torch.full(value.shape, math.inf)},
            "negative": lambda: {name: torch.full(value.shape, -1.0)},
            "half": lambda: {name: value.half()},
            "int": lambda: {name: value.int()},
            "bool": lambda: {name: value.bool()},
            "complex": lambda: {name: value.to(torch.complex64)},
        }[kind]()
        return state | made

    return change


def make_artifacts(root: Path) -> dict[str, Path]:
    """A small untrained artifact of every kind."""
    torch.manual_seed(0)
    folders = {kind: root / kind for kind in ("classifier", "thresholded", "direct", "universal", "stylizer")}
    for folder in folders.values():
        folder.mkdir()
        (folder / CONFIG).write_text(yaml.safe_dump(PretrainOptions().to_dict()))
    classifier = load_classifier(NAME)
    save_artifact(
        folders["classifier"], "classifier", classifier.network.state_dict(), {"classifier": classifier.describe()}
    )
    metadata = load_classifier(folders["classifier"]).describe()
    options = {"architecture": "unet", "encoder": "strided-32", "decoder": [16, 8], "pixel_unshuffle": 2}
    card = {
        "budget": "linf:0.1",
        "criterion": "untargeted",
        "channels": 3,
        "size": list(SIZE),
        "classifiers": [metadata],
    }
    state = make_generator(3, **options).state_dict()
    generating = card | {"generator": options}
    save_artifact(folders["thresholded"], "bounded_generator", state, generating)
    save_artifact(folders["direct"], "direct_generator", state, generating | {"budget": None})
    save_artifact(
        folders["universal"], "universal_perturbation", {"perturbation": torch.rand(1, 3, *SIZE) / 10}, generating
    )
    layers = ["0", "3"]
    with torch.no_grad():
        widths = [
            output.shape[1] for output in FeatureExtractor(classifier.network, layers)(torch.rand(1, 3, *SIZE)).values()
        ]
    save_artifact(
        folders["stylizer"],
        "stylizer",
        make_stylizer("adaptive", widths, 3).state_dict(),
        {"backbone": metadata, "type": "adaptive", "layers": layers, "widths": widths},
    )
    return folders


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_artifacts(tmp_path_factory.mktemp("artifacts"))


def use(kind: str, folder: Path) -> None:
    """Load an artifact, and call what it holds, as the next command does."""
    match kind:
        case "classifier":
            load_classifier(folder)
        case "stylizer":
            load_stylizer(folder)(torch.rand(3, 16, 16), [torch.rand(3, 16, 16)])
        case _:
            load_attack(folder)(nn.Flatten(), torch.rand(2, 3, *SIZE), torch.zeros(2, dtype=torch.int64))


@contextmanager
def with_content(path: Path, content: bytes) -> Iterator[None]:
    before = path.read_bytes()
    path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(before)


KINDS = ("classifier", "thresholded", "direct", "universal", "stylizer")


@pytest.mark.parametrize("kind", KINDS)
def test_artifact_of_each_kind_is_loaded(artifacts: dict[str, Path], kind: str) -> None:
    use(kind, artifacts[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_artifact_with_non_finite_tensors_is_refused(artifacts: dict[str, Path], kind: str) -> None:
    path = artifacts[kind] / TENSORS
    state = safetensors.torch.load_file(path)
    name = next(name for name, value in state.items() if value.is_floating_point())
    state[name].view(-1)[0] = math.nan
    wanted = (
        f"in {path} cannot be used: {name} has 1 of .* values that are NaN or infinite .*; make {path.parent} again"
    )
    with with_content(path, safetensors.torch.save(state)), pytest.raises(GapError, match=wanted):
        use(kind, path.parent)


@pytest.mark.parametrize("kind", KINDS)
def test_artifact_with_integer_weights_is_refused(artifacts: dict[str, Path], kind: str) -> None:
    path = artifacts[kind] / TENSORS
    state = {name: value.int() for name, value in safetensors.torch.load_file(path).items()}
    with (
        with_content(path, safetensors.torch.save(state)),
        pytest.raises(GapError, match="int32 values, where float32 is"),
    ):
        use(kind, path.parent)


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        ("classifier", "classes", 10**7),
        ("classifier", "channels", 10**7),
        ("classifier", "size", [8, 10**30]),
        ("classifier", "size", [10**5, 10**5]),
        ("thresholded", "channels", 10**7),
        ("thresholded", "decoder", [10**7, 8]),
        ("direct", "pixel_unshuffle", 16),
        ("universal", "size", [8, 9]),
        ("stylizer", "widths", [10**7, 10**7]),
        ("stylizer", "layers", ["3", "0"]),
    ],
)
def test_artifact_card_with_other_sizes_is_refused(
    artifacts: dict[str, Path], kind: str, key: str, value: object
) -> None:
    path = artifacts[kind] / CARD
    card = yaml.safe_load(path.read_text())
    section = {"classes": "classifier", "decoder": "generator", "pixel_unshuffle": "generator"}.get(key)
    if kind == "classifier":
        section = "classifier"
    (card[section] if section else card)[key] = value
    with with_content(path, yaml.safe_dump(card).encode()), pytest.raises(GapError):
        use(kind, path.parent)


SOME_KIND = st.sampled_from(KINDS)


@cases(25)
@given(kind=SOME_KIND, name=st.sampled_from([CARD, TENSORS]), damage=damages())
def test_artifact_damaged_bytes_are_loaded_or_refused(
    artifacts: dict[str, Path], kind: str, name: str, damage: Damage
) -> None:
    path = artifacts[kind] / name
    with with_content(path, damage(path.read_bytes())), only_gap_errors():
        use(kind, path.parent)


@cases(40)
@given(kind=SOME_KIND, garble=value_changes())
def test_artifact_garbled_card_is_loaded_or_refused(
    artifacts: dict[str, Path], kind: str, garble: Callable[[Any], Any]
) -> None:
    path = artifacts[kind] / CARD
    card = garble(yaml.safe_load(path.read_text()))
    with with_content(path, yaml.safe_dump(card).encode()), only_gap_errors():
        use(kind, path.parent)


@cases(40)
@given(kind=SOME_KIND, change=tensor_changes())
def test_artifact_changed_tensors_are_loaded_or_refused(
    artifacts: dict[str, Path], kind: str, change: Callable[..., dict[str, Tensor]]
) -> None:
    path = artifacts[kind] / TENSORS
    content = safetensors.torch.save(change(safetensors.torch.load_file(path)))
    with with_content(path, content), only_gap_errors():
        use(kind, path.parent)


@cases(25)
@given(damage=damages())
def test_config_damaged_bytes_are_read_or_refused(artifacts: dict[str, Path], damage: Damage) -> None:
    path = artifacts["classifier"] / CONFIG
    with with_content(path, damage(path.read_bytes())), only_gap_errors():
        was_written_by_gap(path.parent)
        PretrainOptions.read(read_yaml_file(path))


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return dict(load_classifier(NAME).network.state_dict())


@cases(25)
@given(damage=damages(), layout=st.sampled_from(["plain", "model", "ema"]), new=st.booleans())
def test_load_classifier_weights_with_damaged_bytes_are_loaded_or_refused(
    weights: dict[str, Tensor], tmp_path: Path, damage: Damage, layout: str, new: bool
) -> None:
    written = io.BytesIO()
    content = {"plain": weights, "model": {"model": weights, "epoch": 3}, "ema": {"ema": {"module": weights}}}[layout]
    torch.save(content, written, _use_new_zipfile_serialization=new)
    (tmp_path / "weights.pt").write_bytes(damage(written.getvalue()))
    with only_gap_errors():
        load_classifier(f"{NAME}@{tmp_path / 'weights.pt'}")


@cases(25)
@given(change=tensor_changes(), garble=value_changes())
def test_load_classifier_weights_with_changed_contents_are_loaded_or_refused(
    weights: dict[str, Tensor], tmp_path: Path, change: Callable[..., Any], garble: Callable[[Any], Any]
) -> None:
    garbled = garble(
        {"model": weights, "model_ema": {"module": weights}, "state_dict": {"a": {"b": [1, 2]}}, "mean": [0.5]}
    )
    for content in (garbled, change(weights), {"ema": change(weights), "model": weights}):
        torch.save(content, tmp_path / "weights.pt")
        with only_gap_errors():
            load_classifier(f"{NAME}@{tmp_path / 'weights.pt'}")


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unfinished")
    with pytest.raises(TrainingInterrupted):
        tiny.run(folder, tiny.at_step(40, tiny.signals(tiny.signal.SIGTERM)))
    return folder


@cases(20)
@given(damage=damages())
def test_checkpoint_damaged_bytes_are_resumed_or_refused(unfinished: Path, damage: Damage) -> None:
    path = unfinished / CHECKPOINT
    with with_content(path, damage(path.read_bytes())), only_gap_errors():
        tiny.run(unfinished, resume=True)


@cases(25)
@given(garble=value_changes())
def test_checkpoint_garbled_values_are_resumed_or_refused(unfinished: Path, garble: Callable[[Any], Any]) -> None:
    path = unfinished / CHECKPOINT
    state = torch.load(path, weights_only=True)
    training = state.pop("training")
    written = io.BytesIO()
    torch.save(garble(state) | {"training": training}, written)
    with with_content(path, written.getvalue()), only_gap_errors():
        tiny.run(unfinished, resume=True)


@pytest.fixture(scope="module")
def image_files() -> dict[str, bytes]:
    contents = {}
    noise = Image.effect_noise((24, 17), 80)
    for form in ("PNG", "JPEG", "GIF", "TIFF", "WEBP"):
        written = io.BytesIO()
        (noise if form == "PNG" else noise.convert("RGB")).save(written, form)
        contents[form] = written.getvalue()
    return contents


@cases(100)
@given(
    form=st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "WEBP"]),
    damage=damages(),
    channels=st.sampled_from([1, 3]),
    size=st.sampled_from([None, (8, 9)]),
)
def test_load_image_damaged_file_is_loaded_or_refused(
    image_files: dict[str, bytes],
    tmp_path: Path,
    form: str,
    damage: Damage,
    channels: int,
    size: tuple[int, int] | None,
) -> None:
    path = tmp_path / f"image.{form.lower()}"
    path.write_bytes(damage(image_files[form]))
    with only_gap_errors():
        image = load_image(path, channels, size)
        assert image.dtype == torch.uint8 and len(image) == channels


# Text with many separators; nothing in it names a module or a network that could be downloaded.
PIECES = st.sampled_from(
    ["@", ":", "/", "=", ",", ".", "..", " ", "\0", "\n", "~", "\\", "-", "%s", "é", "²", "٣", "\ud800", "\U0001f600",
     "q" * 300, "9" * 5000, "q@" * 500, "zq", "zq.py", "zq.py:make", "no_module_of_gap.zq:make", "C:\\zq", "none", "0",
     "1e999", "-1", "nan", "mnist-cnn", "torchvision:resnet81", "timm:resnet81s", "folder:", "mnist-5k", "linf:", "l2:",
     "8/255", "pgd", "pgd:", "steps=", ":steps=", "init=", "relative_step_sizes=", "uap", "generator-start", "trades",
     "target:", "untargeted", "3x", "32x32", "layer1", "relu2_x", "logits"]
)  # fmt: skip
STARTS = [
    "",
    "",
    "folder:",
    "mnist-cnn@",
    "zq.py:make@",
    "torchvision:resnet81@",
    "pgd:init=",
    "generator-start@",
    "~",
]
TEXTS = st.builds(
    lambda start, pieces: start + "".join(pieces),
    st.sampled_from(STARTS),
    st.lists(PIECES | st.text("@:/=,.qz ", max_size=6), max_size=6),
)


@cases(100)
@given(text=TEXTS)
def test_names_of_random_text_are_resolved_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    def raise_missing(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(registry, "importlib", SimpleNamespace(import_module=raise_missing, util=None))
    network = nn.Sequential(nn.Conv2d(1, 2, 3))
    uses: list[Callable[[], object]] = [
        lambda: load_classifier(text, channels=1, size=(28, 28)),
        lambda: split_name(text),
        lambda: runs_user_code(text),
        lambda: is_untrained(text),
        lambda: model_dir_of(text),
        lambda: FeatureExtractor(network, [text]),
        lambda: load_data(text, tmp_path, channels=1, size=(28, 28), download=False),
        lambda: load_data("mnist", text, download=False),
        lambda: load_attack(text),
        lambda: parse_attacks([text]),
        lambda: find_pictures(text),
        lambda: load_image(text, 1),
        lambda: read_config(text),
    ]
    for use_text in uses:
        with only_gap_errors():
            use_text()


@cases(100)
@given(text=TEXTS)
def test_option_text_at_random_is_parsed_or_refused(text: str) -> None:
    budget = Budget("linf", 0.1)
    uses: list[Callable[[], object]] = [
        lambda: Budget.parse(text),
        lambda: find_criterion(text, 10),
        lambda: parse_input_shape(text),
        lambda: parse_inner_attack(text),
        lambda: parse_mixture([text, f"{text}=0.5"]),
        lambda: create_attack(text, budget),
        lambda: init_folder_of(text),
        lambda: parse_assignments([text]),
    ]
    for use_text in uses:
        with only_gap_errors():
            use_text()


@cases(40)
@given(garble=value_changes(), kind=st.sampled_from([PretrainOptions, TrainOptions, HardenOptions]))
def test_option_values_garbled_are_read_or_refused(garble: Callable[[Any], Any], kind: type[Options]) -> None:
    required: dict[type[Options], dict[str, Any]] = {
        PretrainOptions: {},
        TrainOptions: {"classifier": ["mnist-cnn"], "budget": "linf:0.1"},
        HardenOptions: {"classifier": "mnist-cnn", "budget": "linf:0.1"},
    }
    with only_gap_errors():
        kind.read(garble(kind.read(required[kind]).to_dict()))
