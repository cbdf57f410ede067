"""Tables in the terminal, Markdown, LaTeX, CSV and HTML, from the same description of columns."""

import csv
import html
import io
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from gap.core.files import write_text

Row = Mapping[str, object]

MISSING = "\N{EN DASH}"
HEADING_WIDTH = 9  # the minimum width at which a heading is wrapped


@dataclass(frozen=True)
class Column:
    """A column of a table: the key of its values in rows, its heading and its format.

    `format` is a Python format specification, such as ".1%", ".3f" or ",d"; without one the column is text. If a row
    has a pair `<key>_interval`, it is shown after the value. None, NaN and missing values are shown as a dash.
    """

    key: str
    heading: str
    format: str = ""

    @property
    def is_number(self) -> bool:
        return bool(self.format)

    def value(self, row: Row) -> str:
        return self._format_value(row.get(self.key))

    def interval(self, row: Row) -> str:
        """The interval, such as "97.1\N{EN DASH}98.5"; empty where the row has none."""
        pair = row.get(f"{self.key}_interval")
        if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
            return ""
        low, high = (self._format_value(end).removesuffix("%") for end in pair)
        return f"{low}\N{EN DASH}{high}"

    def _format_value(self, value: object) -> str:
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return MISSING
        return format(value, self.format) if isinstance(value, int | float) else str(value)


@dataclass(frozen=True)
class Table:
    """Rows, the columns to show, and an optional caption."""

    rows: Sequence[Row]
    columns: Sequence[Column]
    caption: str = ""


def print_table(rows: Sequence[Row], columns: Sequence[Column], title: str, console: Console | None = None) -> None:
    """Print the rows with a title.

    In a terminal that is too narrow, the columns are split into several tables, each with the first column. Without a
    terminal, every row is one line.
    """
    console = console or Console()
    console.print(Text(title, style="bold"), soft_wrap=True)
    if not console.is_terminal:
        console.out(_full_lines(rows, columns, console), highlight=False)
        return
    for part in _parts(rows, columns, console):
        console.print(_rich_table(rows, part))


def text_table(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """The rows as plain text, one line each."""
    return _full_lines(rows, columns, Console())


def markdown_table(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """The rows as a table of GitHub's Markdown, with numbers aligned right."""
    lines = [
        [column.heading for column in columns],
        ["---:" if column.is_number else "---" for column in columns],
        *([_text_cell(column, row).plain for column in columns] for row in rows),
    ]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def latex_table(rows: Sequence[Row], columns: Sequence[Column], caption: str = "") -> str:
    """The rows as a LaTeX table with the rules of the booktabs package."""
    lines = [[column.heading for column in columns], *([column.value(row) for column in columns] for row in rows)]
    heading, *body = (" & ".join(map(_latex, line)) + r" \\" for line in lines)
    alignment = "".join("r" if column.is_number else "l" for column in columns)
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            *([rf"\caption{{{_latex(caption)}}}"] if caption else []),
            rf"\begin{{tabular}}{{{alignment}}}",
            r"\toprule",
            heading,
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    )


def csv_table(rows: Sequence[Row], path: Path) -> None:
    """Save all values of the rows, unrounded, as CSV: a column for each key, and two for each pair."""
    flat = [dict(_split_pairs(row)) for row in rows]
    keys = list(dict.fromkeys(key for row in flat for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, keys, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    write_text(path, text.getvalue())


def _split_pairs(row: Row) -> Iterator[tuple[str, object]]:
    for key, value in row.items():
        if isinstance(value, list | tuple) and len(value) == 2:
            yield from ((f"{key}_low", value[0]), (f"{key}_high", value[1]))
        else:
            yield key, value


def _latex(text: str) -> str:
    """Text with the special characters of LaTeX escaped."""
    escaped = "".join(
        {"\\": r"\textbackslash{}"}.get(letter, f"\\{letter}" if letter in "&%$#_{}" else letter) for letter in text
    )
    return escaped.replace("~", r"\textasciitilde{}").replace("^", r"\textasciicircum{}").replace(MISSING, "--")


def html_table(rows: Sequence[Row], columns: Sequence[Column], caption: str = "") -> str:
    """The rows as an HTML table with escaped text; cells of numbers have the class `number`."""
    lines = ["<table>"]
    if caption:
        lines.append(f"<caption>{html.escape(caption)}</caption>")
    headings = "".join(f'<th scope="col"{_class(column)}>{html.escape(column.heading)}</th>' for column in columns)
    lines.append(f"<thead><tr>{headings}</tr></thead>")
    lines.append("<tbody>")
    for row in rows:
        first, *others = columns
        heading = f'<th scope="row"{_class(first)}>{_html_cell(first, row)}</th>'
        cells = "".join(f"<td{_class(column)}>{_html_cell(column, row)}</td>" for column in others)
        lines.append(f"<tr>{heading}{cells}</tr>")
    lines += ["</tbody>", "</table>"]
    return "\n".join(lines)


def _class(column: Column) -> str:
    return ' class="number"' if column.is_number else ""


def _html_cell(column: Column, row: Row) -> str:
    value, interval = html.escape(column.value(row)), html.escape(column.interval(row))
    return f'{value} <span class="interval">{interval}</span>' if interval else value


def _parts(rows: Sequence[Row], columns: Sequence[Column], console: Console) -> list[list[Column]]:
    """The columns in groups that fit the console, each with the first column."""
    first, *others = columns
    parts = [[first]]
    for column in others:
        widened = [*parts[-1], column]
        if len(parts[-1]) > 1 and _natural_width(console, _rich_table(rows, widened)) > console.width:
            parts.append([first, column])
        else:
            parts[-1] = widened
    return parts


def _full_lines(rows: Sequence[Row], columns: Sequence[Column], console: Console) -> str:
    """The table as plain text, with any width."""
    table = _rich_table(rows, columns)
    options = console.options.update(width=_natural_width(console, table))
    lines = console.render_lines(table, options)
    return "\n".join("".join(segment.text for segment in line).rstrip() for line in lines)


def _rich_table(rows: Sequence[Row], columns: Sequence[Column]) -> RichTable:
    table = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for column in columns:
        cells = [_text_cell(column, row) for row in rows]
        widest = max((cell.cell_len for cell in cells), default=0)
        table.add_column(
            Text(textwrap.fill(column.heading, max(HEADING_WIDTH, widest), break_long_words=False)),
            justify="right" if column.is_number else "left",
            no_wrap=column.is_number,
            overflow="fold",
        )
    for row in rows:
        table.add_row(*(_text_cell(column, row) for column in columns))
    return table


def _text_cell(column: Column, row: Row) -> Text:
    interval = column.interval(row)
    return Text.assemble(column.value(row), (f" {interval}" if interval else "", "dim"))


def _natural_width(console: Console, table: RichTable) -> int:
    """The width without wrapping."""
    return console.measure(table, options=console.options.update(width=100_000)).maximum
