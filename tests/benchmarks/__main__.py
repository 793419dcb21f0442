"""Prints a table of ratios with their spread: `python -m tests.benchmarks [PART ...]`; with `--json` also as JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from importlib import import_module

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from rich.console import Console
from rich.table import Table

from tests.benchmarks.harness import Result, keep_freed_memory, measure

SHORT = (
    "attacks",
    "step",
    "beyond",
    "crafting",
    "augment",
    "pipeline",
    "selection",
    "store",
    "tracking",
    "parallel",
    "tune",
)
TABLES = ("search",)  # parts that print a table of their own
PARTS = (*SHORT, *TABLES, "driver", "sweep")  # the last three take minutes
WIDTH = 180  # characters of a table that is written to a file


def main() -> int:
    """Run the benchmarks and return exit status 0 if every bound is kept, else 1."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks",
        description=__doc__,
        epilog="examples: python -m tests.benchmarks crafting --repeats 9; python -m tests.benchmarks --json",
    )
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help=f"which: {', '.join(PARTS)} (by default all but the last three)"
    )
    parser.add_argument("--repeats", type=int, default=7, help="counted repeats of each (default 7)")
    parser.add_argument("--long", action="store_true", help="all parts, the default sweep of minutes too")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    arguments = parser.parse_args()
    for part in arguments.parts:
        if part not in PARTS:
            parser.error(f"unknown part {part!r}; allowed: {', '.join(PARTS)}")
    torch.set_num_threads(1)
    keep_freed_memory()
    console = Console(stderr=True, width=None if sys.stderr.isatty() else WIDTH)
    results: list[Result] = []
    broken: list[str] = []
    kept = True
    for part in arguments.parts or (PARTS if arguments.long else SHORT):
        if part in TABLES:
            kept &= import_module(f"tests.benchmarks.{part}").report(console, arguments.repeats)
            continue
        for comparison in import_module(f"tests.benchmarks.{part}").comparisons():
            console.print(f"measuring {comparison.name} ...", style="dim")
            try:
                results.append(measure(comparison, arguments.repeats))
            except Exception:  # a comparison that fails must not cost the figures of the others
                console.print_exception()
                broken.append(comparison.name)
                continue
            latest = results[-1]
            console.print(f"  {_ratio(latest.ratio)} of {latest.reference}, bound {_bound(latest)}", style="dim")
    if results:
        console.print(_table(results))
    if broken:
        console.print(f"broken: {', '.join(broken)}", style="red")
    if arguments.json:
        machine = {"torch": torch.__version__, "python": platform.python_version(), "machine": platform.machine()}
        print(json.dumps({**machine, "results": [result.json() for result in results]}))
    return int(bool(broken) or not kept or any(result.kept is False for result in results))


def _table(results: list[Result]) -> Table:
    table = Table("what", "against", "ratio", "least-most", "bound", "ms", "ms of reference", "made of", box=None)
    for result in results:
        table.add_row(
            result.name,
            result.reference,
            _ratio(result.ratio),
            f"{_ratio(result.least)}-{_ratio(result.most)}",
            _bound(result),
            f"{1000 * result.seconds:.1f}",
            f"{1000 * result.reference_seconds:.1f}",
            result.note,
        )
    return table


def _ratio(ratio: float) -> str:
    return f"{ratio:.3f}" if ratio >= 0.01 else f"{ratio:.1g}"


def _bound(result: Result) -> str:
    if result.kept is None:
        return "-"
    bound = f"{result.bound:g}" if result.limit_ms is None else f"{result.limit_ms:g} ms"
    return f"{bound} {'kept' if result.kept else 'MISSED'}"


if __name__ == "__main__":
    sys.exit(main())
