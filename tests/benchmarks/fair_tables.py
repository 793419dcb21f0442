"""Makes the tables of docs/defenses.md that have several draws at equal compute, and goes on where it was stopped.

    python -m tests.benchmarks.fair_tables --dry-run      # what it would take
    python -m tests.benchmarks.fair_tables                # every block, one after the other
    python -m tests.benchmarks.fair_tables --tables       # the tables from the file of results, without running

A block is one study for each label noise of a grid; a block that was stopped is continued from the ledger. After each
block its results are written to the CSV file, of which the tables are made.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev

ROOT = Path(__file__).resolve().parents[2]
NOISES = ("instance", "symmetric", "asymmetric")
COLUMNS = ("grid", "dataset", "noise", "corruption", "defense", "planned", "done", "seeds")
Row = Mapping[str, str]


def command(verb: str, *words: str) -> list[str]:
    """Return the words of a command of the orchestrator."""
    return [sys.executable, "orchestrate.py", verb, *words]


def block(grid: str, noise: str, draws: str, seeds: str, only: str | None) -> tuple[str, list[str]]:
    """Return the name of a block's study, and the words of the command that runs it or goes on with it."""
    name = f"{grid}-{noise}"
    choice = ["--only", f"noise={noise}", *(["--only", only] if only else [])]
    return name, command("matrix", "--grid", grid, "--draws", draws, "--seeds", seeds, *choice, "--name", name)


def read_report(grid: str, text: str) -> list[dict[str, str]]:
    """Return the lines of the CSV form of a matrix's report, as far as the file of results keeps them."""
    return [{"grid": grid} | {key: line[key] for key in COLUMNS[1:]} for line in csv.DictReader(text.splitlines())]


def merged(before: Iterable[Row], new: Sequence[Row]) -> list[Row]:
    """Return the lines of `before`, with those of the grids and noises of `new` replaced by `new`."""
    fresh = {(row["grid"], row["noise"]) for row in new}
    return [*(row for row in before if (row["grid"], row["noise"]) not in fresh), *new]


def tables(rows: Sequence[Row]) -> str:
    """Return a Markdown table for each grid, data set and noise: mean ± standard deviation over runs, in percent."""
    found: dict[tuple[str, str, str], dict[str, dict[str, str]]] = {}
    for row in rows:
        values = [float(value) for value in row["seeds"].split()]
        spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
        count = row["done"] if row["done"] == row["planned"] else f"{row['done']} of {row['planned']}"
        text = f"{mean(values):.1f}{spread} ({count})" if values else "-"
        lines = found.setdefault((row["grid"], row["dataset"], row["noise"]), {})
        lines.setdefault(row["defense"], {})[row["corruption"]] = text
    parts = []
    for (grid, dataset, noise), lines in found.items():
        columns = list(dict.fromkeys(name for cells in lines.values() for name in cells))
        head = [f"| defense | {' | '.join(columns)} |", f"|---|{'--:|' * len(columns)}"]
        body = [f"| {name} | {' | '.join(cells.get(of, '-') for of in columns)} |" for name, cells in lines.items()]
        parts.append("\n".join([f"**{grid}: {dataset}, {noise} label noise**", "", *head, *body]))
    return "\n\n".join(parts)


def _read(file: Path) -> list[Row]:
    return list(csv.DictReader(file.read_text().splitlines())) if file.exists() else []


def _write(file: Path, rows: Sequence[Row]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main() -> int:
    """Run the blocks, or print the tables; return the exit status of the first command that failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grids", default="fair3,fair6", help="grids, with commas")
    parser.add_argument("--draws", default="0,1,2", help="seeds of the corruption")
    parser.add_argument("--seeds", default="0,1", help="seeds of training")
    parser.add_argument("--only", help="points to keep, such as 'defense=erat,mspl corruption=up'")
    parser.add_argument("--results", type=Path, default=ROOT / "docs/data/fair-tables.csv", help="file of results")
    parser.add_argument("--dry-run", action="store_true", help="say what each block would take")
    parser.add_argument("--tables", action="store_true", help="print the tables from the file of results")
    asked = parser.parse_args()
    if asked.tables:
        print(tables(_read(asked.results)))
        return 0
    for grid in asked.grids.split(","):
        for noise in NOISES:
            name, words = block(grid, noise, asked.draws, asked.seeds, asked.only)
            done = subprocess.run(words + ["--dry-run"] * asked.dry_run, cwd=ROOT, check=False)
            if done.returncode:
                return done.returncode
            if not asked.dry_run:
                report = command("report", name, "--format", "csv")
                text = subprocess.run(report, cwd=ROOT, check=True, capture_output=True, text=True).stdout
                _write(asked.results, merged(_read(asked.results), read_report(grid, text)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
