"""Tests one table in every format: what each escapes, marks and leaves out; and that no other module draws a table."""

from __future__ import annotations

import csv
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from orchestration.report.render.html import html
from orchestration.report.render.latex import latex, latex_file
from orchestration.report.render.markdown import markdown
from orchestration.report.render.spreadsheet import csv_text
from orchestration.report.render.terminal import terminal
from orchestration.report.table import Cell, Column, Mark, Part, Row, Table
from orchestration.terminal import Terminal

ROOT = Path(__file__).parents[4]
# A table of a kind that the project does not have: how fast machines train.
NAMES = [
    "a|b",
    "R&D <b>",
    "my_set _x_",
    "=1+1",
    "\x1b[31mred\u202e",
    "ε∞ ± λ",
    "[link](x)",
    r"\ ` * {50%} #1 $ ^ ~",
    None,
]
HEADINGS = [Column("node_name", "left"), Column("ε∞ | η"), Column("images/s", kind="mean")]
TABLE = Table.of(
    HEADINGS,
    [
        Row(
            (
                Cell(NAMES[0], notes=(1,)),
                None,
                Cell("91.5", Mark.BEST, (Part(" ± 0.5", "spread"),), (Part("90.25", "paper", "[90.2]", notes=(2,)),)),
            )
        ),
        Row((NAMES[1], 0.1, Cell("80.0", Mark.SECOND, runs=("c1", "c2"))), chosen=True),
        *(Row((name, "", Cell("failed", state="failed", shade=0.5))) for name in NAMES[2:]),
    ],
    title="Speed & cost",
    caption="Images a second_of training; more is better.",
    notes=(3,),
)


def lines_of(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]


def test_markdown_shows_every_text_as_it_is() -> None:
    title, head, rule, *body, caption = lines_of(markdown(TABLE))
    assert title == "**Speed & cost**"
    assert head == r"| node_name | ε∞ \| η | images/s |"
    assert rule == "| :-- | --: | --: |"
    assert body == [
        r"| a\|b |  | **91.5 ± 0.5 [90.2]** |",
        "| R&D &lt;b> | 0.1 | <u>80.0</u> |",
        r"| my_set \_x\_ |  | failed |",
        "| =1+1 |  | failed |",
        r"| \\x1b[31mred\\u202e |  | failed |",
        "| ε∞ ± λ |  | failed |",
        r"| \[link](x) |  | failed |",
        r"| \\ \` \* {50%} #1 \$ ^ \~ |  | failed |",
        "|  |  | failed |",
    ]
    assert caption == "Images a second_of training; more is better."
    assert markdown(Table.of(["a"], [["&lt;\n1"]])).splitlines()[-1] == r"| &amp;lt;\\n1 |", "one line a row"


def test_csv_is_read_back_and_runs_nothing() -> None:
    lines = list(csv.reader(io.StringIO(csv_text(TABLE))))
    assert lines[0] == ["node_name", "ε∞ | η", "images/s"]
    assert lines[1] == ["a|b", "", "91.5 ± 0.5 [90.2]"]
    assert lines[2] == ["R&D <b>", "0.1", "80.0"]
    assert lines[4][0] == "'=1+1", "a spreadsheet shows it and does not reckon it"
    assert [line[0] for line in lines[3:]] == ["'=1+1" if name == "=1+1" else name or "" for name in NAMES[2:]]
    numbers = csv_text(Table.of(["x"], [[1 / 3], [-2], [float("-inf")], [None], [True]]), "\r\n")
    assert numbers == 'x\r\n0.3333333333333333\r\n-2\r\n-inf\r\n""\r\nTrue\r\n', "numbers with all their digits"


def test_latex_is_escaped_and_has_as_many_cells_as_columns() -> None:
    text = latex(TABLE)
    assert r"\caption{Speed \& cost. Images a second\_of training; more is better.}" in text
    assert r"\begin{tabular}{lrr}" in text
    body = [line.removesuffix(r" \\") for line in text.splitlines() if line.endswith(r"\\")]
    assert body == [
        r"node\_name & $\varepsilon$$_\infty$ \textbar{} $\eta$ & images/s",
        r"a\textbar{}b &  & \textbf{91.5 $\pm$ 0.5} [90.2]",
        r"\textbf{R\&D \textless{}b\textgreater{}} & \textbf{0.1} & \textbf{80.0}",
        r"my\_set \_x\_ &  & failed",
        "=1+1 &  & failed",
        r"\textbackslash{}x1b[31mred\textbackslash{}u202e &  & failed",
        r"$\varepsilon$$_\infty$ $\pm$ $\lambda$ &  & failed",
        "{}[link](x) &  & failed",  # text in brackets after \\ would be its argument
        r"\textbackslash{} ` * \{50\%\} \#1 \$ \textasciicircum{} \textasciitilde{} &  & failed",
        " &  & failed",
    ]


def test_a_latex_file_brings_what_its_tables_need_and_its_footnotes() -> None:
    text = latex_file([TABLE, TABLE], ["a_note", "another"])
    assert text.startswith("% Needs no package") and r"\providecommand{\toprule}{\hline}" in text
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 2
    assert text.endswith("% [1] a\\_note\n% [2] another\n")


def printed(table: Table, colours: bool = False, width: int = 100, **options: bool) -> str:
    console = Terminal(
        file=io.StringIO(), width=width, force_terminal=colours, color_system="standard" if colours else None
    )
    console.print(terminal(table, **options))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_terminal_shows_every_text_and_obeys_none() -> None:
    text = printed(TABLE)
    lines = [" ".join(line.split()) for line in lines_of(text)]
    assert lines[:2] == ["Speed & cost", "node_name ε∞ | η images/s"]
    assert lines[2].strip("─") == ""
    assert lines[3:5] == ["a|b 91.5 ± 0.5 [90.2]", "R&D <b> 0.1 80.0"]
    assert r"\x1b[31mred\u202e failed" in lines and "[link](x) failed" in lines
    assert "\x1b" not in text and "\u202e" not in text
    assert "─" not in printed(TABLE, rules=False)
    assert Console(width=100).measure(terminal(TABLE)).maximum <= 100


def test_the_terminal_marks_the_best_and_colours_a_status() -> None:
    text = printed(TABLE, colours=True)
    assert re.search(r"\x1b\[1m *91\.5 ± 0\.5 \[90\.2\]", text)
    assert re.search(r"\x1b\[1m *R&D <b>", text)
    assert re.search(r"\x1b\[1;31m *failed", text)
    assert re.search(r"\x1b\[4m *80\.0", printed(Table.of(["a"], [[Cell("80.0", Mark.SECOND)]]), colours=True))


def test_a_dense_table_breaks_headings_and_never_cells() -> None:
    columns = [f"column {number}" for number in range(12)]
    dense = Table.of(columns, [["word word"] * 12], dense=True)
    lines = lines_of(printed(dense, width=130))
    assert lines[0].split() == ["column"] * 12 and lines[1].split() == [str(number) for number in range(12)]
    assert len(lines) == 4
    assert "…" in printed(dense, width=60)
    assert "…" in printed(Table.of(["a"], [["word " * 9]]), width=20, wrap=False).replace("...", "…")


class Elements(HTMLParser):
    """A parser that collects the cells of a table by row as [attributes, text]; elements must be nested."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[tuple[dict[str, str | None], list[str]]]] = []
        self.names: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        if tag != "br":
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("th", "td"):
            self.rows[-1].append((dict(attrs), []))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"th", "td"} & set(self.open):
            self.rows[-1][-1][1].append(data)


def test_html_is_escaped_and_nested() -> None:
    text = html(TABLE, "matrix", "speed")
    seen = Elements(text)
    assert text.startswith('<table id="speed" class="matrix">')
    assert '<caption>Speed &amp; cost<sup><a href="#note-3"' in text
    words = ["".join(line[0][1]) for line in seen.rows[1:]]
    expected = ["" if name is None else name for name in NAMES]
    expected[0], expected[4] = "a|b1", r"\x1b[31mred\u202e"  # the 1 is that of the footnote
    assert words == expected
    assert [{attributes["scope"] for attributes, _ in line[:1]} for line in seen.rows] == [{"col"}] + 9 * [{"row"}]
    best, second, failed = (seen.rows[line][2] for line in (1, 2, 3))
    assert best[1] == ["91.5", " ± 0.5", "90.25", "2"], "a page has the figure beside in full, with its footnote"
    assert '<b>91.5</b><span class="spread"> ± 0.5</span></span><span class="paper">90.25<sup>' in text
    assert second[0]["data-runs"] == "c1 c2" and "<u>80.0</u>" in text and '<tr class="chosen">' in text
    assert failed[0]["class"] == "mean t-failed" and str(failed[0]["style"]).startswith("background:#")
    assert {name for name in seen.names if name not in ("span", "b", "u", "sup", "a", "br")} == {
        *("table", "caption", "thead", "tbody", "tr", "th", "td")
    }


def test_the_words_of_a_cell_are_the_same_in_every_format() -> None:
    plain = Table.of(["name", "figure"], [["one", "12.5"], ["two", 3], ["three", None]])
    expected = [["name", "figure"], ["one", "12.5"], ["two", "3"], ["three", ""]]
    assert [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown(plain).splitlines()] == [
        expected[0],
        [":--", "--:"],
        *expected[1:],
    ]
    assert list(csv.reader(io.StringIO(csv_text(plain)))) == expected
    assert [
        [cell.strip() for cell in line.removesuffix(r"\\").split("&")]
        for line in latex(plain).splitlines()
        if line.endswith(r"\\")
    ] == expected
    assert [line.split() for line in lines_of(printed(plain, rules=False))] == [
        [word for word in line if word] for line in expected
    ]
    assert [["".join(words) for _, words in line] for line in Elements(html(plain)).rows] == expected
    assert "caption" not in html(plain) + latex(plain)


def test_a_row_has_a_value_for_every_column() -> None:
    with pytest.raises(ValueError, match="row 1 must have 2 values, got 1"):
        Table.of(["a", "b"], [[1, 2], [3]])
    wider = TABLE.with_column("note", "=x")
    assert [len(row.values) for row in wider.rows] == [4] * 9
    assert csv_text(wider).splitlines()[1].endswith(",'=x")


def test_no_other_module_draws_a_table() -> None:
    sources = {
        path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
        for folder in ("orchestration", "erat")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".html")
    }
    render = "orchestration/report/render/"
    drawn = {
        r"rich\.table": {render + "terminal.py"},
        r"begin\{+tabular": {render + "latex.py"},
        r"--:": {render + "markdown.py"},
        r"csv\.writer|DictWriter": {"erat/data/spreadsheets.py"},
        r"spreadsheets\.csv_text|spreadsheets import .*csv_text": {render + "spreadsheet.py"},
        r"<(table|thead|tr|th|td)\b": {"orchestration/report/assets/table.html"},
    }
    for pattern, places in drawn.items():
        assert {name for name, text in sources.items() if re.search(pattern, text)} == places, pattern
