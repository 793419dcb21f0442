"""The table of the fuzz suite: `python -m tests.fuzz` tries every input and says, by group, what went wrong.

`--keep` writes each input that fails into `tests/fuzz/corpus/`, where the tests find it from then on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections import Counter

from tests.fuzz.groups import CORPUS, COUNTS, known, possible, strategies, tried
from tests.fuzz.sandbox import Input, Outcome, Sandbox
from tests.fuzz.stored import make_bases

KINDS = ("traceback", "hang", "signal", "status", "text", "json", "outside")


def main(arguments: list[str]) -> int:
    """Print the table and what failed; 1 if anything did."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Malformed input, and what became of it.")
    parser.add_argument("--groups", default=",".join(COUNTS), help="with commas")
    parser.add_argument("--share", type=float, default=1.0, help="of the generated inputs")
    parser.add_argument("--profile", default="ci", choices=("ci", "long"), help="long: other inputs each time")
    parser.add_argument("--failures", default=None, help="file for the inputs that failed, with what was said")
    parser.add_argument("--json", action="store_true", help="print the table as one JSON object too")
    parser.add_argument("--keep", action="store_true", help="keep what fails as tests")
    options = parser.parse_args(arguments)
    rows: dict[str, Counter[str]] = {}
    failures: dict[tuple[str, ...], tuple[Input, Outcome]] = {}
    sandbox = Sandbox()
    try:
        make_bases(sandbox)
        for group in options.groups.split(","):
            rows[group] = Counter()
            for given, outcome in _outcomes(sandbox, group, options):
                faults = outcome.faults(given)
                rows[group].update(["inputs", *faults, *(["failed"] if faults else [])])
                if faults:
                    failures.setdefault(
                        (group, *(f"{kind}: {_shape(text)}" for kind, text in faults.items())), (given, outcome)
                    )
            print(_line(group, rows[group]), file=sys.stderr, flush=True)
    finally:
        sandbox.close()
    print(
        "\n".join(
            [
                _line("group", None),
                *(_line(name, row) for name, row in rows.items()),
                _line("all", sum(rows.values(), Counter())),
            ]
        )
    )
    if options.json:
        print(json.dumps(rows))
    told = [f"{given}\n    {outcome.faults(given)}\n" for given, outcome in failures.values()]
    if options.failures:
        with open(options.failures, "w", errors="backslashreplace") as file:
            file.write("\n".join(told))
    if options.keep:
        for given, _ in failures.values():
            text = json.dumps(given.as_json(), sort_keys=True)
            (CORPUS / f"{given.group}-{hashlib.sha256(text.encode()).hexdigest()[:10]}.json").write_text(text + "\n")
    return int(bool(failures))


def _outcomes(sandbox: Sandbox, group: str, options: argparse.Namespace) -> list[tuple[Input, Outcome]]:
    mine = [one for one in known() if one.group == group and possible(sandbox, one)]
    count = max(1, int(COUNTS[group] * options.share))
    return [
        *((one, sandbox.run(one)) for one in mine),
        *tried(sandbox, strategies(sandbox)[group], count, options.profile),
    ]


def _shape(text: str) -> str:
    """A fault without what differs from input to input."""
    return "".join("#" if char.isdigit() else char for char in text)[:70]


def _line(name: str, row: Counter[str] | None) -> str:
    cells = ("inputs", "failed", *KINDS) if row is None else [str(row[kind]) for kind in ("inputs", "failed", *KINDS)]
    return f"{name:10}" + "".join(f"{cell:>10}" for cell in cells)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
