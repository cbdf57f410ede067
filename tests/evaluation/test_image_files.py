import pytest

from gap.evaluation.image_files import _unique_name


@pytest.mark.parametrize(
    ("stems", "names"),
    [
        (["a", "a", "b"], ["a", "a-2", "b"]),
        (["a", "a-side-by-side"], ["a", "a-side-by-side-2"]),
        (["a-side-by-side", "a", "a"], ["a-side-by-side", "a-2", "a-3"]),
    ],
)
def test_unique_name_avoids_other_images_and_their_comparisons(stems: list[str], names: list[str]) -> None:
    taken: set[str] = set()
    assert [_unique_name(stem, taken) for stem in stems] == names
