"""Tests `python -m tests`: the order of its programs, its exit status, its last line, and its choice of kernels."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests import __main__ as checks
from tests import conftest
from tests.kernels import kernels, limited_to, unlimited

Run = Callable[..., tuple[int, list[list[str]]]]
REPORT = '<testsuites><testsuite tests="{}" failures="{}" errors="0" skipped="{}"/></testsuites>'


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Return a function that calls `main` on a given number of cores.

    Programs are only recorded, and end with the given statuses; those of pytest are given in turn.
    """

    def play(
        *words: str, pytests: Sequence[int] = (0, 0), others: int = 0, cores: int = 2, memory: int = 8
    ) -> tuple[int, list[list[str]]]:
        started: list[list[str]] = []
        statuses = iter(pytests)

        def fake(command: list[str], **_: Any) -> SimpleNamespace:
            if command[1:3] != ["-m", "pytest"]:
                return SimpleNamespace(returncode=others)
            (report,) = (word.partition("=")[2] for word in command if word.startswith("--junit-xml="))
            Path(report).write_text(REPORT.format(10, 1, 2))
            started.append([word for word in command[3:] if not word.startswith("--junit-xml=")])
            return SimpleNamespace(returncode=next(statuses))

        monkeypatch.setattr(checks.subprocess, "run", fake)
        monkeypatch.setattr(checks, "TYPES", [sys.executable, "-c", "print('types')"])
        monkeypatch.setattr(checks.os, "sched_getaffinity", lambda _: set(range(cores)))
        monkeypatch.setattr(checks.psutil, "virtual_memory", lambda: SimpleNamespace(available=memory * 1e9))
        return checks.main(list(words)), started

    return play


SPREAD = ["-n", "2", "--dist", "loadfile"]


def test_ray_and_servers_come_first_and_alone_then_the_rest_on_all_cores(run: Run) -> None:
    code, started = run()
    assert code == 0
    assert started == [["-m", "(not slow) and apart"], ["-m", "(not slow) and not apart", *SPREAD]]


@pytest.mark.parametrize(("cores", "memory", "spread"), [(1, 8, []), (16, 3, []), (16, 8, ["-n", "3"])])
def test_there_are_no_more_processes_than_cores_and_memory_allow(
    run: Run, cores: int, memory: int, spread: list[str]
) -> None:
    _, started = run(cores=cores, memory=memory)
    assert started[1][2:4] == spread


@pytest.mark.parametrize(
    ("words", "marks", "left"),
    [
        (["--slow"], ("apart", "not apart"), []),
        (
            ["tests/unit", "-k", "apgd"],
            ("(not slow) and apart", "(not slow) and not apart"),
            ["tests/unit", "-k", "apgd"],
        ),
        (["-m", "slow or cuda", "-x"], ("(slow or cuda) and apart", "(slow or cuda) and not apart"), ["-x"]),
        (["--durations=5", "--slow"], ("apart", "not apart"), ["--durations=5"]),
    ],
)
def test_words_reach_pytest(run: Run, words: list[str], marks: tuple[str, str], left: list[str]) -> None:
    _, started = run(*words)
    assert started == [["-m", marks[0], *left], ["-m", marks[1], *SPREAD, *left]]


@pytest.mark.parametrize(
    ("pytests", "others", "code"),
    [
        ((0, 1), 0, 1),
        ((1, 0), 0, 1),
        ((0, 0), 1, 1),
        ((2, 1), 0, 2),
        ((5, 0), 0, 0),
        ((0, 5), 0, 0),
        ((5, 1), 0, 1),
        ((5, 5), 0, 5),
        ((-9, 0), 0, 137),
    ],
)
def test_the_worst_status_counts(run: Run, pytests: tuple[int, int], others: int, code: int) -> None:
    """The status 5 is pytest's "nothing selected", with which one of the two runs may end."""
    assert run(pytests=pytests, others=others)[0] == code


def test_mypy_counts_too(run: Run, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(checks, "TYPES", [])
    real = checks.subprocess.Popen
    monkeypatch.setattr(
        checks.subprocess, "Popen", lambda _, **k: real([sys.executable, "-c", "print('wrong'); exit(1)"], **k)
    )
    assert run()[0] == 1
    assert "mypy: wrong" in capfd.readouterr().out


def test_the_last_line_is_the_sum_as_pytest_would_say_it(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    run()
    last = capfd.readouterr().out.splitlines()[-1]
    assert "= 2 failed, 14 passed, 4 skipped in " in last


def test_another_instruction_set_repeats_the_quick_tests_only(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "kernels", lambda environment: environment.get("ATEN_CPU_CAPABILITY", "own"))
    _, started = run("--isa", "baseline", "-x")
    folders = ["tests/unit", "tests/golden", "tests/contract"]
    assert [words[-4:] for words in started] == [[*folders, "-x"]] * 2
    _, started = run("--isa", "baseline", "tests/unit/erat/attacks/test_apgd.py::test_x", "--slow")
    assert [words[-1] for words in started] == ["tests/unit/erat/attacks/test_apgd.py::test_x"] * 2
    assert started[0][:2] == ["-m", "apart"]


def test_where_there_is_no_other_instruction_set_it_says_so(
    run: Run, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(checks, "kernels", lambda _: "ATen DEFAULT")
    assert run("--isa", "baseline") == (0, [])
    assert "Left out: on this machine baseline changes nothing" in capfd.readouterr().out


def test_the_libraries_confirm_that_they_were_limited() -> None:
    limited = kernels(limited_to("baseline"))
    assert "ATen DEFAULT" in limited or "ATen NO AVX" in limited
    if "oneDNN" in limited:
        assert "SSE4.1" in limited
    if "MKL" in limited:
        assert "CNR:COMPATIBLE" in limited


def test_a_variable_of_the_caller_s_does_not_count_as_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")
    assert "ATEN_CPU_CAPABILITY" not in unlimited()
    assert limited_to("avx2")["ATEN_CPU_CAPABILITY"] == "avx2"


def test_end_to_end_tests_are_apart() -> None:
    marked: list[str] = []

    def item(path: str) -> Any:
        return SimpleNamespace(path=conftest.ROOT / path, add_marker=lambda mark: marked.append(f"{path} {mark}"))

    conftest.pytest_collection_modifyitems([item("e2e/test_a.py"), item("unit/test_b.py")])
    assert marked == ["e2e/test_a.py apart"]


def test_threads_are_those_that_the_environment_asks_for() -> None:
    code = (
        "import torch; from tests.conftest import small_config\n"
        "print(torch.get_num_threads(), small_config().resources.cpu)"
    )
    environment = unlimited() | {"ERAT_TEST_THREADS": "2"}
    root = conftest.ROOT.parent
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=root, capture_output=True, text=True)
    assert done.stdout == "2 2\n", done.stderr
