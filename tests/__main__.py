"""Runs all checks: style, pages, types, tests. `python -m tests --help` in the root of the repository has options."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from xml.etree import ElementTree

import psutil

from tests.kernels import SETS, kernels, limited_to, unlimited

STYLE = (
    [sys.executable, "-m", "ruff", "check", "."],
    [sys.executable, "-m", "ruff", "format", "--check", "."],
)
TYPES = [sys.executable, "-m", "mypy"]
ALL = ("tests",)
QUICK = ("tests/unit", "tests/golden", "tests/contract")  # the tests that are repeated with another instruction set
END_TO_END = "tests/e2e"
WORKER_BYTES = 2.5e9  # memory of a process that ran all quick tests, or of Ray's processes together
NO_TESTS = 5  # pytest's exit status if no test was selected
# Ray lowers the priority of its workers by 15, below that of the tests beside them: an import would take a minute.
RAY_PRIORITY = {"RAY_worker_niceness": "0"}
# By itself Ray gives up after half a minute if one of its processes has not started, as on a busy machine.
RAY_PATIENCE = {
    "RAY_agent_register_timeout_ms": "300000",
    "RAY_gcs_server_port_wait_time_s": "300",
    "RAY_raylet_start_wait_time_s": "300",
    "RAY_worker_register_timeout_seconds": "300",
}


@dataclass(frozen=True)
class Tests:
    """Tests that are run with one environment, those apart and the others.

    Args:
        marks: expression of marks that select tests; empty: all.
        environment: all environment variables.
        folders: where the tests are, unless the command line names paths.
    """

    marks: str
    environment: Mapping[str, str]
    folders: Sequence[str] = ALL


def main(arguments: list[str]) -> int:
    """Run every check, even after one has failed, so that all problems are seen; return the worst status."""
    options, words = _parser().parse_known_args(arguments)
    marks = options.m if options.m is not None else "" if options.slow else "not slow"
    began = time.monotonic()
    with TemporaryDirectory() as folder:
        name = options.isa or options.repeat
        environment = None if name is None else _another(name)
        repeated = (
            None
            if environment is None
            else Tests(_inexact("not slow" if options.repeat else marks), environment, QUICK)
        )
        if options.isa is None:
            codes = _everything([Tests(marks, os.environ), *([repeated] if repeated else [])], words, Path(folder))
        elif repeated is None:
            return 0
        else:
            codes = _tests([repeated], words, Path(folder))
        print(_closing_line(Path(folder), time.monotonic() - began), flush=True)
    return max(codes)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests",
        description="Style, pages, types and tests. All other words go to pytest: paths, -k, -x, --durations, ...",
        allow_abbrev=False,
    )
    parser.add_argument("--slow", action="store_true", help="slow tests too")
    parser.add_argument("-m", metavar="MARKS", help="tests with these marks, instead of those that are not slow")
    kernels_of = parser.add_mutually_exclusive_group()
    kernels_of.add_argument(
        "--isa",
        choices=SETS,
        help="only tests that compute (without paths: unit, golden, contract), on an older instruction set's kernels",
    )
    kernels_of.add_argument(
        "--repeat",
        choices=SETS,
        help="after all else what --isa runs, without slow tests, while the tests apart still run",
    )
    return parser


def _everything(tests: Sequence[Tests], words: Sequence[str], folder: Path) -> list[int]:
    """Run the style checks, then the tests with mypy beside them."""
    codes = [_status(subprocess.run(command, check=False).returncode) for command in STYLE]
    codes += _site(folder)
    with _Beside("mypy", TYPES, folder, os.environ, gives_way=True) as types:
        codes += _tests(tests, words, folder)
        codes.append(types.end())
    return codes


class _Beside:
    """A program that runs beside others, and whose output is printed in one piece when it has ended.

    Args:
        title: what stands before the output, and the name of a file in `folder`.
        command: the words of the command line.
        folder: where the output is kept until then.
        environment: all environment variables of the program.
        gives_way: whether the program leaves the cores to others that want them.
    """

    def __init__(
        self,
        title: str,
        command: Sequence[str],
        folder: Path,
        environment: Mapping[str, str],
        gives_way: bool = False,
    ) -> None:
        self._title = title
        self._said = (folder / title).open("w+")
        self._process = subprocess.Popen(
            command, stdout=self._said, stderr=self._said, env=environment, preexec_fn=_give_way if gives_way else None
        )

    def __enter__(self) -> _Beside:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.wait()  # after an interrupt too, which the program gets as well
        self._said.close()

    def end(self) -> int:
        """Wait for the end, print the output, and return the exit status as a shell does."""
        code = _status(self._process.wait())
        self._said.seek(0)
        print(f"{self._title}: {self._said.read()}", end="", flush=True)
        return code


def _site(folder: Path) -> list[int]:
    """Build the pages of docs/ as a site, where a warning is a fault; nothing where MkDocs is not installed."""
    if find_spec("mkdocs") is None or find_spec("material") is None:
        return []
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder / "site")]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}  # about the future of MkDocs, not of these pages
    return [_status(subprocess.run(command, check=False, env=quiet).returncode)]


def _tests(tests: Sequence[Tests], words: Sequence[str], folder: Path) -> list[int]:
    """Run tests that start Ray or servers one at a time, and beside these the others, those of a file on one core.

    Tests of Ray mostly wait for processes to start, so they take little from the others' cores; Ray gives its processes
    a limited time to start, so the others give way to them. With little memory, or on one core, the others come after
    them instead.
    """
    cores, fitting = len(os.sched_getaffinity(0)), int(psutil.virtual_memory().available / WORKER_BYTES)
    together = min(cores, fitting - 1) > 1
    workers = min(cores, fitting - together)
    spread = ["-n", str(workers), "--dist", "loadfile"] if workers > 1 else []
    named = any(Path(word.partition("::")[0]).exists() for word in words)

    def command(part: str, each: Tests) -> list[str]:
        own, paths = ([], _apart(each.folders)) if part == "apart" else (spread, _others(each.folders))
        chosen = ["-m", f"({each.marks}) and {part}" if each.marks else part, *own, *([] if named else paths), *words]
        report = f"--junit-xml={folder / f'{part} {tests.index(each)}'}.xml"
        return [sys.executable, "-m", "pytest", *chosen, report]

    def run(part: str, each: Tests) -> int:
        environment = {**each.environment, **RAY_PRIORITY, **RAY_PATIENCE} if part == "apart" else each.environment
        way = _give_way if together else None
        return _status(subprocess.run(command(part, each), check=False, env=environment, preexec_fn=way).returncode)

    first, *more = tests
    if together:
        environment = {**first.environment, **RAY_PRIORITY, **RAY_PATIENCE}
        with _Beside("apart", command("apart", first), folder, environment) as apart:
            codes = [run("not apart", each) for each in tests]
            codes.append(apart.end())
        codes += [run("apart", each) for each in more]
    else:
        codes = [run(part, each) for each in tests for part in ("apart", "not apart")]
    # Some of them may have no tests to run.
    return [code for code in codes if code != NO_TESTS] or [NO_TESTS]


def _give_way() -> None:
    """Lower the priority of this process, and so of all that it starts."""
    os.nice(5)


def _inexact(marks: str) -> str:
    """Return the expression that selects, of the tests that `marks` selects, those that compute."""
    return f"({marks}) and not exact" if marks else "not exact"


def _apart(folders: Sequence[str]) -> list[str]:
    """Return the files in these folders that have tests marked `apart`, so that pytest need not import all others."""
    files = [file for folder in folders for file in sorted(Path(folder).rglob("test_*.py"))]
    return [str(file) for file in files if file.is_relative_to(END_TO_END) or "mark.apart" in file.read_text()]


def _others(folders: Sequence[str]) -> list[str]:
    return [*folders, f"--ignore={END_TO_END}"]


def _another(name: str) -> dict[str, str] | None:
    """Return the environment for an older instruction set, or None if it changes nothing on this machine."""
    environment = limited_to(name)
    own, limited = kernels(unlimited()), kernels(environment)
    print(f"This machine: {own}\nThese tests: {limited}", flush=True)
    if own == limited:
        print(f"Left out: on this machine {name} changes nothing")
        return None
    return environment


def _status(code: int) -> int:
    """Return an exit status as a shell does: 128 plus the number of the signal, for a process that a signal ended."""
    return code if code >= 0 else 128 - code


def _closing_line(folder: Path, seconds: float) -> str:
    """Return the summed results of pytest's runs, in the form of pytest's own last line."""
    counts: Counter[str] = Counter()
    for file in folder.glob("*.xml"):
        for suite in ElementTree.parse(file).getroot().iter("testsuite"):
            counts.update({key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")})
    passed = counts["tests"] - counts["failures"] - counts["errors"] - counts["skipped"]
    named = {"failed": counts["failures"], "passed": passed, "skipped": counts["skipped"], "errors": counts["errors"]}
    said = ", ".join(f"{count} {name}" for name, count in named.items() if count) or "no tests ran"
    return f" {said} in {seconds:.2f}s ({int(seconds // 60)}:{int(seconds % 60):02}) ".center(100, "=")


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
