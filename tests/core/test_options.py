from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from gap.attacks.generator.options import TrainOptions
from gap.core.errors import GapError
from gap.core.options import deep_merge, named_configs, parse_assignments, read_config, read_yaml
from gap.hardening.options import HardenOptions

REQUIRED: dict[str, Any] = {"classifier": ["mnist-cnn"], "budget": "linf:0.1"}


@settings(max_examples=60, deadline=None)
@given(
    options=st.fixed_dictionaries(
        {"classifier": st.lists(st.text(min_size=1), min_size=1, max_size=3), "budget": st.just("l2:2.4")},
        optional={
            "data": st.text(),
            "data_root": st.none() | st.just("some/where"),
            "labels": st.sampled_from(["auto", "data", "predicted"]),
            "mean": st.none() | st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=3),
            "universal": st.booleans(),
            "epochs": st.none() | st.floats(1e-6, 1e6),
            "lr": st.floats(1e-12, 1e3),
            "batch_size": st.integers(1, 10**6),
            "seed": st.integers(0, 2**40),
            "generator": st.fixed_dictionaries(
                {},
                optional={"decoder": st.lists(st.integers(1, 512), min_size=1), "pixel_unshuffle": st.integers(1, 16)},
            ),
        },
    )
)
def test_options_written_as_yaml_and_read_again_are_equal(options: dict[str, Any]) -> None:
    read = TrainOptions.read(options)
    text = yaml.safe_dump(read.to_dict(), sort_keys=False)
    again = TrainOptions.read(read_yaml(text, "here"))
    assert again == read
    assert again.to_dict() == read.to_dict()
    for name, value in options.items():
        if name != "generator":
            assert read.to_dict()[name] == value


@pytest.mark.parametrize("name", named_configs())
def test_named_configs_each_is_valid_options_of_a_command(name: str) -> None:
    content = read_config(name)
    options = HardenOptions if "hardened" in name else TrainOptions
    read = options.read(content)
    assert options.read(read.to_dict()) == read


def test_named_configs_lists_every_file_in_configs() -> None:
    folder = Path(__file__).parents[2] / "configs"
    assert named_configs() == sorted(path.stem for path in folder.glob("*.yaml"))
    assert len(named_configs()) >= 8


def test_read_config_path_of_a_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("lr: 0.5\n")
    assert read_config(str(tmp_path / "mine.yaml")) == {"lr": 0.5}


def test_read_config_file_that_is_not_utf8_raises_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_bytes("data: caf\xe9\n".encode("latin-1"))
    with pytest.raises(GapError, match=r"mine\.yaml is not readable YAML: .*utf-8.*") as error:
        read_config(str(tmp_path / "mine.yaml"))
    assert "\n" not in str(error.value)


def test_read_config_unknown_name_raises_with_the_nearest() -> None:
    with pytest.raises(GapError, match="unknown config 'mnist-per-imag'; did you mean mnist-per-image"):
        read_config("mnist-per-imag")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b\n", "here must hold a mapping"),
        ("", "here must hold a mapping"),
        ("a: [1", "here is not readable YAML"),
        ("a: !!python/object/apply:os.getcwd []", "here is not readable YAML"),
    ],
)
def test_read_yaml_text_that_is_no_mapping_is_refused(text: str, message: str) -> None:
    with pytest.raises(GapError, match=message) as error:
        read_yaml(text, "here")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batchsize": 3}, "unknown option 'batchsize'; did you mean batch_size"),
        ({"generator": {"decodr": [3]}}, "unknown option 'generator.decodr'; did you mean generator.decoder"),
        ({"classifier": None}, "classifier"),
        ({"lr": -1}, "lr=-1.*greater than 0"),
        ({"lr": float("inf")}, "lr=inf.*finite"),
        ({"epochs": float("inf")}, "epochs=inf.*finite"),
        ({"mean": [float("nan")]}, "mean=nan.*finite"),
        ({"batch_size": "many"}, "batch_size='many'.*integer"),
        ({"generator": {"pixel_unshuffle": 0}}, "generator.pixel_unshuffle=0"),
        ({"labels": "none"}, "unknown labels 'none'; known: auto, data, predicted"),
        ({"loss": "margins"}, "unknown loss 'margins'; did you mean margin"),
        ({"budget": "linf:8"}, "8/255"),
        ({"budget": None}, "a budget is missing"),
        ({"unbounded": True}, "not `budget`"),
        ({"unbounded": True, "budget": None}, "either `target_norm`"),
        ({"unbounded": True, "budget": None, "target_norm": "l2:2", "discriminator": True}, "either `target_norm`"),
        ({"unbounded": True, "universal": True}, "exclude each other"),
        ({"target_norm": "l2:2.7"}, "go with `unbounded`"),
        ({"discriminator": True}, "go with `unbounded`"),
    ],
)
def test_options_read_invalid_value_raises_with_an_explanation_of_one_line(
    change: dict[str, Any], message: str
) -> None:
    with pytest.raises(GapError, match=message) as error:
        TrainOptions.read(REQUIRED, change)
    assert "\n" not in str(error.value)


def test_options_read_missing_option_raises_with_its_name() -> None:
    with pytest.raises(GapError, match="give `classifier`"):
        TrainOptions.read({"budget": "linf:0.1"})


@pytest.mark.parametrize(
    ("assignments", "nested"),
    [
        (["lr=0.001"], {"lr": 0.001}),
        (
            ["generator.pixel_unshuffle=2", "generator.decoder=[8, 4]"],
            {"generator": {"pixel_unshuffle": 2, "decoder": [8, 4]}},
        ),
        (["budget=linf:8/255"], {"budget": "linf:8/255"}),
        (["a=x=y"], {"a": "x=y"}),
        (["epochs="], {"epochs": None}),
        (["universal=true", "universal=false"], {"universal": False}),
        ([], {}),
    ],
)
def test_parse_assignments_values_are_parsed_and_nested(assignments: list[str], nested: dict[str, Any]) -> None:
    assert parse_assignments(assignments) == nested


@pytest.mark.parametrize("text", ["lr", "=3", " =3", "lr=[1"])
def test_parse_assignments_invalid_text_is_refused(text: str) -> None:
    with pytest.raises(GapError, match="--set"):
        parse_assignments([text])


def test_deep_merge_later_values_override_earlier_ones_within_each_section() -> None:
    base = {"a": 1, "b": {"c": 1, "d": 1}}
    assert deep_merge(base, {"b": {"c": 2}, "e": {"f": 3}}) == {"a": 1, "b": {"c": 2, "d": 1}, "e": {"f": 3}}
    assert deep_merge(base, {"b": 5}) == {"a": 1, "b": 5}
    assert base == {"a": 1, "b": {"c": 1, "d": 1}}
    assert TrainOptions.read(REQUIRED, {"lr": 0.1}, {"lr": 0.2}).lr == 0.2


@pytest.mark.parametrize("value", ["2001-13-32", "!!int x", "!!float ''", "!!bool x", "!!timestamp x", "[" * 500])
def test_read_yaml_and_parse_assignments_impossible_value_is_refused(value: str) -> None:
    """Catches: a `ValueError` or `RecursionError` of the YAML reader that reaches the user."""
    with pytest.raises(GapError, match="is not readable YAML"):
        read_yaml(f"seed: {value}", "here")
    with pytest.raises(GapError, match="cannot read the value of --set"):
        parse_assignments([f"seed={value}"])


@pytest.mark.parametrize("name", ["q" * 300, "a\0b", "\ud800"])
def test_read_config_impossible_file_name_is_an_unknown_config(name: str) -> None:
    with pytest.raises(GapError, match="unknown config"):
        read_config(name)
