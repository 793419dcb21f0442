"""Tests `python -m tests`: the order of its programs, its exit status, its last line, and its choice of kernels."""

from __future__ import annotations

import os
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
    """Return a function that calls `main` on a given number of cores, with memory in gigabytes.

    Programs are only recorded, and end with the given statuses; those of pytest are given for both parts. It returns
    the exit status and the words of pytest's command lines in the order in which they start.
    """

    def play(
        *words: str, pytests: Sequence[int] = (0, 0), others: int = 0, cores: int = 2, memory: int = 8
    ) -> tuple[int, list[list[str]]]:
        started: list[list[str]] = []
        real = subprocess.Popen

        def pytest_of(command: list[str]) -> int:
            (report,) = (word.partition("=")[2] for word in command if word.startswith("--junit-xml="))
            Path(report).write_text(REPORT.format(10, 1, 2))
            started.append([word for word in command[3:] if not word.startswith(("--junit-xml=", "--ignore="))])
            return pytests["not apart" in command[4]]

        def fake(command: list[str], **more: Any) -> SimpleNamespace:
            if "pytest" in command:
                play.others.append(more["preexec_fn"])  # type: ignore[attr-defined]
                play.environments.append((command[4], more["env"]))  # type: ignore[attr-defined]
            return SimpleNamespace(returncode=pytest_of(command) if "pytest" in command else others)

        def beside(command: list[str], **more: Any) -> Any:
            if "pytest" not in command:
                return real(command, **more)
            code = pytest_of(command)
            play.environments.append((command[4], more["env"]))  # type: ignore[attr-defined]
            print("what pytest said", file=more["stdout"])
            return SimpleNamespace(wait=lambda: code)

        monkeypatch.setattr(checks.subprocess, "run", fake)
        monkeypatch.setattr(checks.subprocess, "Popen", beside)
        monkeypatch.setattr(checks, "TYPES", [sys.executable, "-c", "print('types')"])
        monkeypatch.setattr(checks, "_apart", lambda folders: ["APART"])
        monkeypatch.setattr(checks.os, "sched_getaffinity", lambda _: set(range(cores)))
        monkeypatch.setattr(checks.psutil, "virtual_memory", lambda: SimpleNamespace(available=memory * 1e9))
        return checks.main(list(words)), started

    play.others, play.environments = [], []  # type: ignore[attr-defined]
    return play


SPREAD = ["-n", "2", "--dist", "loadfile"]


def test_ray_and_servers_one_at_a_time_and_beside_them_the_rest_on_all_cores(
    run: Run, capfd: pytest.CaptureFixture[str]
) -> None:
    code, started = run()
    assert code == 0
    assert started == [
        ["-m", "(not slow) and apart", "APART"],
        ["-m", "(not slow) and not apart", *SPREAD, "tests"],
    ]
    assert "apart: what pytest said\n" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("cores", "memory", "spread"),
    [(1, 8, []), (16, 3, []), (16, 6, ["-n", "2"]), (2, 6, ["-n", "2"]), (16, 8, ["-n", "2"]), (16, 11, ["-n", "3"])],
)
def test_there_are_no_more_processes_than_cores_and_memory_allow(
    run: Run, cores: int, memory: int, spread: list[str]
) -> None:
    """With 6 GB there is room for two processes, not for a third that runs the tests apart: these come before."""
    _, started = run(cores=cores, memory=memory)
    assert [words[1] for words in started] == ["(not slow) and apart", "(not slow) and not apart"]
    assert started[1][2:-1] == (spread and [*spread, "--dist", "loadfile"])


@pytest.mark.parametrize(
    ("words", "marks", "left"),
    [
        (["--slow"], ("apart", "not apart"), None),
        (
            ["tests/unit", "-k", "apgd"],
            ("(not slow) and apart", "(not slow) and not apart"),
            ["tests/unit", "-k", "apgd"],
        ),
        (["-m", "slow or cuda", "-x"], ("(slow or cuda) and apart", "(slow or cuda) and not apart"), ["-x"]),
        (["--durations=5", "--slow"], ("apart", "not apart"), ["--durations=5"]),
    ],
)
def test_words_reach_pytest(run: Run, words: list[str], marks: tuple[str, str], left: list[str] | None) -> None:
    _, started = run(*words)
    paths = [[], []] if left and left[0] == "tests/unit" else [["APART"], ["tests"]]
    assert started == [
        ["-m", marks[0], *paths[0], *(left or [])],
        ["-m", marks[1], *SPREAD, *paths[1], *(left or [])],
    ]


@pytest.mark.parametrize("cores", [1, 2])
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
def test_the_worst_status_counts(run: Run, pytests: tuple[int, int], others: int, code: int, cores: int) -> None:
    """The status 5 is pytest's "nothing selected", with which one of the two runs may end."""
    assert run(pytests=pytests, others=others, cores=cores)[0] == code


def test_files_with_tests_apart_are_found_by_name_and_by_mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files = {"tests/e2e/test_a.py": "", "tests/unit/test_b.py": "", "tests/unit/c/test_d.py": "x(marks=mark.apart)"}
    for name, text in files.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text)
    assert checks._apart(["tests"]) == ["tests/e2e/test_a.py", "tests/unit/c/test_d.py"]
    assert checks._apart(["tests/unit"]) == ["tests/unit/c/test_d.py"]


@pytest.mark.parametrize(("cores", "politely"), [(2, True), (1, False)])
def test_what_runs_beside_ray_gives_way_to_it(
    run: Run, cores: int, politely: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ways: dict[str, Any] = {}
    beside = checks._Beside

    def seen(title: str, *rest: Any, gives_way: bool = False) -> Any:
        ways[title] = gives_way
        return beside(title, *rest, gives_way=gives_way)

    monkeypatch.setattr(checks, "_Beside", seen)
    run(cores=cores)
    assert ways == ({"mypy": True, "apart": False} if politely else {"mypy": True})
    assert run.others == ([checks._give_way] if politely else [None, None])  # type: ignore[attr-defined]
    done = subprocess.Popen(
        [sys.executable, "-c", "import os; print(os.nice(0))"], stdout=subprocess.PIPE, preexec_fn=checks._give_way
    )
    assert int(done.communicate()[0]) == min(19, os.nice(0) + 5)


@pytest.mark.parametrize("cores", [1, 2])
def test_ray_does_not_give_way_to_what_runs_beside_it(run: Run, cores: int) -> None:
    """By itself Ray lowers the priority of its workers further than that of the tests beside them."""
    run("-m", "x", cores=cores)
    seen = {marks: environment.get("RAY_worker_niceness") for marks, environment in run.environments}  # type: ignore[attr-defined]
    assert seen == {"(x) and apart": "0", "(x) and not apart": os.environ.get(*checks.RAY_PRIORITY)}


def test_mypy_counts_too(run: Run, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    beside = checks._Beside
    wrong = [sys.executable, "-c", "print('wrong'); exit(1)"]
    monkeypatch.setattr(
        checks,
        "_Beside",
        lambda title, command, *rest, **more: beside(title, wrong if title == "mypy" else command, *rest, **more),
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
    assert [words[2:] for words in started] == [["APART", "-x"], [*SPREAD, *checks.QUICK, "-x"]]
    assert [words[1] for words in started] == [
        f"((not slow) and not exact) and {part}" for part in ("apart", "not apart")
    ]
    _, started = run("--isa", "baseline", "tests/unit/erat/attacks/test_apgd.py::test_x", "--slow")
    assert [words[-1] for words in started] == ["tests/unit/erat/attacks/test_apgd.py::test_x"] * 2
    assert started[0][:2] == ["-m", "(not exact) and apart"]


@pytest.mark.parametrize("cores", [1, 2])
def test_the_quick_tests_are_repeated_beside_those_apart(
    run: Run, cores: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(checks, "kernels", lambda environment: environment.get("ATEN_CPU_CAPABILITY", "own"))
    code, started = run("--slow", "--repeat", "baseline", cores=cores)
    spread = SPREAD if cores > 1 else []
    whole = [["-m", "apart", "APART"], ["-m", "not apart", *spread, "tests"]]
    marks = "((not slow) and not exact)"
    again = [["-m", f"{marks} and apart", "APART"], ["-m", f"{marks} and not apart", *spread, *checks.QUICK]]
    assert started == (whole + again[::-1] if cores > 1 else whole + again)
    kinds = [environment.get("ATEN_CPU_CAPABILITY") for _, environment in run.environments]  # type: ignore[attr-defined]
    assert kinds == [os.environ.get("ATEN_CPU_CAPABILITY")] * 2 + ["default"] * 2
    assert code == 0
    assert "= 4 failed, 28 passed, 8 skipped in " in capfd.readouterr().out.splitlines()[-1], "all four reports count"
    monkeypatch.setattr(checks, "kernels", lambda _: "ATen DEFAULT")
    assert run("--slow", "--repeat", "baseline", cores=cores)[1] == whole


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


def item(path: Path, *marks: str) -> Any:
    """Make what stands for a test in this file; it keeps the marks that are added in `added`."""
    added: list[str] = []
    return SimpleNamespace(
        path=path, nodeid=path.name, added=added, add_marker=added.append, get_closest_marker=marks.__contains__
    )


def test_end_to_end_tests_are_apart() -> None:
    items = [item(conftest.ROOT / path) for path in ("e2e/test_a.py", "unit/test_b.py")]
    conftest.pytest_collection_modifyitems(items)
    assert [one.added for one in items] == [["apart"], []]


def test_a_test_apart_that_would_not_be_found_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "test_a.py"
    path.write_text("pytestmark = pytest.mark.apart")
    conftest.pytest_collection_modifyitems([item(path, "apart")])
    path.write_text("pytestmark = getattr(pytest.mark, 'apart')")
    conftest.pytest_collection_modifyitems([item(path)])
    with pytest.raises(pytest.UsageError, match=r"test_a.py is apart, but `mark.apart` does not stand in its file"):
        conftest.pytest_collection_modifyitems([item(path, "apart")])


@pytest.mark.slow
def test_threads_are_those_that_the_environment_asks_for() -> None:
    code = (
        "import torch; from tests.conftest import small_config\n"
        "print(torch.get_num_threads(), small_config().resources.cpu)"
    )
    environment = unlimited() | {"ERAT_TEST_THREADS": "2"}
    root = conftest.ROOT.parent
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=root, capture_output=True, text=True)
    assert done.stdout == "2 2\n", done.stderr
