from gap.evaluation.names import unique_names, unused_name


def test_unique_names_equal_names_are_numbered_in_their_order() -> None:
    assert unique_names(["a", "b", "a", "a"]) == ["a", "b", "a (2)", "a (3)"]
    assert unique_names(["a", "a (2)", "a"]) == ["a", "a (2)", "a (3)"]


def test_unused_name_is_kept_if_free_and_numbered_if_taken() -> None:
    assert unused_name("a", {"b"}) == "a" and unused_name("a", {"a": 1, "a (2)": 2}) == "a (3)"
