import io
import re

import pytest
from rich.console import Console

from gap.report.tables import Column, html_table, print_table

DASH = "\N{EN DASH}"
COLUMNS = [
    Column("attack", "attack"),
    Column("images", "images", ",d"),
    Column("accuracy", "accuracy under attack", ".1%"),
    Column("l2_mean", "L2 mean", ".3f"),
]
ROWS = [
    {"attack": "pgd", "images": 10000, "accuracy": 0.0072, "accuracy_interval": (0.006, 0.0091), "l2_mean": 2.39961},
    {"attack": "noise [red]", "images": 5, "accuracy": 1.0, "l2_mean": None},
    {"attack": "a name with many words in it", "images": 5, "accuracy": float("nan")},
]


def print_to_text(rows, columns, width=80, terminal=False) -> str:
    out = io.StringIO()
    print_table(
        rows, columns, "A title [b]", Console(file=out, width=width, force_terminal=terminal, color_system=None)
    )
    return out.getvalue()


def test_print_table_accuracies_are_percentages_with_their_interval():
    text = print_to_text(ROWS, COLUMNS)
    assert re.search(rf"^ pgd +10,000 +0\.7% 0\.6{DASH}0\.9 +2\.400$", text, re.MULTILINE)
    assert re.search(rf"^ noise \[red\] +5 +100\.0% +{DASH}$", text, re.MULTILINE)
    assert re.search(rf"^ a name with many words in it +5 +{DASH} +{DASH}$", text, re.MULTILINE)
    assert text.startswith("A title [b]\n")


def test_column_interval_list_from_json_is_formatted():
    row = {"accuracy": 0.5, "accuracy_interval": [0.4, 0.6]}
    assert COLUMNS[2].interval(row) == f"40.0{DASH}60.0"
    assert COLUMNS[2].interval({"accuracy": 0.5, "accuracy_interval": None}) == ""


def many_columns(count: int) -> tuple[list[dict], list[Column]]:
    columns = [COLUMNS[0], *(Column(f"k{k}", f"figure {k}", ".4f") for k in range(count))]
    return [{"attack": f"attack-{r}", **{f"k{k}": r + k / 100 for k in range(count)}} for r in range(3)], columns


@pytest.mark.parametrize("width", [80, 40])
def test_print_table_outside_a_terminal_each_row_is_one_full_line(width):
    rows, columns = many_columns(20)
    lines = [line for line in print_to_text(rows, columns, width).splitlines() if "attack-1" in line]
    assert len(lines) == 1
    assert all(f"{1 + k / 100:.4f}" in lines[0] for k in range(20))


@pytest.mark.parametrize("width", [80, 40])
def test_print_table_narrow_terminal_wraps_columns_without_clipping(width):
    rows, columns = many_columns(20)
    text = print_to_text(rows, columns, width, terminal=True)
    assert max(map(len, text.splitlines())) <= width
    assert all(f"{r + k / 100:.4f}" in text for r in range(3) for k in range(20))
    assert text.count("attack-1") > 1


def test_print_table_that_fits_the_terminal_is_not_split():
    assert print_to_text(ROWS, COLUMNS, 80, terminal=True).count("pgd") == 1


def test_print_table_without_rows_prints_the_headings():
    assert "L2 mean" in print_to_text([], COLUMNS)


def test_html_table_aligns_numbers_and_escapes_text():
    rows = [{"attack": "<script>x</script>", "accuracy": 0.25, "accuracy_interval": (0.2, 0.3), "l2_mean": 1.5}]
    columns = [*COLUMNS, Column("none", "<b>heading</b>")]
    text = html_table(rows, columns, "a & b")
    assert "<script>" not in text
    assert "&lt;script&gt;x&lt;/script&gt;" in text
    assert "&lt;b&gt;heading" in text
    assert "<caption>a &amp; b</caption>" in text
    assert f'<td class="number">25.0% <span class="interval">20.0{DASH}30.0</span></td>' in text
    assert '<th scope="row">' in text
    assert '<td class="number">1.500</td>' in text
    assert f"<td>{DASH}</td>" in text
