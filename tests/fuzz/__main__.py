"""Prints the table of the fuzz suite: `python -m tests.fuzz` tries every input and counts the faults of each group.

`--keep` writes each input that fails to `tests/fuzz/corpus/`, so that the tests try it from then on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Callable

from tests.fuzz.groups import CORPUS, COUNTS, known, possible, strategies, try_all
from tests.fuzz.sandbox import Input, Outcome, Sandbox
from tests.fuzz.stored import make_bases

KINDS = ("traceback", "hang", "signal", "status", "text", "json", "outside")


def main(arguments: list[str]) -> int:
    """Print each new kind of failure at once, and the table at the end; return 1 if anything failed, else 0."""
    options = _parser().parse_args(arguments)
    rows: dict[str, Counter[str]] = {}
    failures: dict[tuple[str, ...], Input] = {}

    def note(given: Input, outcome: Outcome) -> None:
        faults = outcome.faults(given)
        rows[given.group].update(["inputs", *faults, *(["failed"] if faults else [])])
        shape = (given.group, *(f"{kind}: {_shape(text)}" for kind, text in faults.items()))
        if faults and shape not in failures:
            failures[shape] = given
            told = f"{given}\n    {faults}".encode(errors="backslashreplace").decode()
            print(told, file=sys.stderr, flush=True)

    sandbox = Sandbox()
    try:
        make_bases(sandbox)
        for group in options.groups.split(","):
            rows[group] = Counter()
            _run(sandbox, group, options, note)
            print(_line(group, rows[group]), file=sys.stderr, flush=True)
    finally:
        sandbox.close()
    print(_line("group", None), *(_line(name, row) for name, row in rows.items()), sep="\n")
    print(_line("all", sum(rows.values(), Counter())))
    if options.json:
        print(json.dumps(rows))
    if options.keep:
        for given in failures.values():
            keep(given)
    return int(bool(failures))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Malformed input, and what became of it.")
    parser.add_argument("--groups", default=",".join(COUNTS), help="with commas")
    parser.add_argument("--share", type=float, default=1.0, help="of the generated inputs")
    parser.add_argument("--profile", default="ci", choices=("ci", "long"), help="long: other inputs each time")
    parser.add_argument("--json", action="store_true", help="print the table as one JSON object too")
    parser.add_argument("--keep", action="store_true", help="keep what fails as tests")
    return parser


def _run(sandbox: Sandbox, group: str, options: argparse.Namespace, note: Callable[[Input, Outcome], None]) -> None:
    for given in known():
        if given.group == group and possible(sandbox, given):
            note(given, sandbox.run(given))
    count = max(1, int(COUNTS[group] * options.share))
    try_all(sandbox, strategies(sandbox)[group], count, options.profile, note)


def keep(given: Input) -> None:
    """Write an input to the corpus, with a file name that depends on its content."""
    text = json.dumps(given.as_json(), sort_keys=True)
    name = f"{given.group}-{hashlib.sha256(text.encode()).hexdigest()[:10]}.json"
    (CORPUS / name).write_text(text + "\n")


def _shape(text: str) -> str:
    """Return a fault without the details that differ from input to input."""
    return "".join("#" if char.isdigit() else char for char in text)[:70]


def _line(name: str, row: Counter[str] | None) -> str:
    cells = ("inputs", "failed", *KINDS) if row is None else [str(row[kind]) for kind in ("inputs", "failed", *KINDS)]
    return f"{name:10}" + "".join(f"{cell:>10}" for cell in cells)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
