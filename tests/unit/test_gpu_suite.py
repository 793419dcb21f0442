"""Tests the suite `python -m tests.gpu` on the CPU: parts at tiny sizes, its verdicts, its end and its refusals."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.gpu import __main__ as suite
from tests.gpu import correctness, setting, sync, throughput
from tests.gpu.setting import Row, Setting, tried

TINY = Setting("cpu", True)
ROOT = Path(__file__).parents[2]


def test_a_difference_beyond_the_bounds_fails() -> None:
    steps = correctness.Steps(torch.tensor([2.0, 1.0]), torch.tensor([3.0, 4.0]), setting.EpochPlan(()), [])
    compared = partial(correctness.compared, "name", theirs=steps, bounds=(0.01, 0.1))
    assert compared(steps).kept
    assert compared(replace(steps, losses=torch.tensor([2.0, 1.009]))).kept
    assert compared(replace(steps, losses=torch.tensor([2.0, 1.02]))).kept is False
    assert compared(replace(steps, moved=torch.tensor([3.0, 3.4]))).kept is False
    standing = replace(steps, moved=torch.zeros(2))
    assert correctness.compared("name", standing, standing, (0.01, 0.1)).kept is False, "nothing moved"


def test_another_device_s_draws_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison with the CPU fails where the device's updates are others."""
    assert correctness._as_on_the_cpu(TINY, "at").kept
    real = correctness.three
    monkeypatch.setattr(
        correctness,
        "three",
        lambda config, data, plan=None: real(config if plan is None else config.with_seed(1), data, plan),
    )
    assert correctness._as_on_the_cpu(TINY, "at").kept is False


def test_a_run_whose_device_draws_resumes_to_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU stands for a device that makes its own draws."""
    own = correctness._resumed(TINY, "at")
    monkeypatch.setattr("erat.data.random.ON_DEVICE", ("cpu",))
    assert own.kept and correctness._resumed(TINY, "at").kept


def test_a_lost_state_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    take_in = correctness.Trainer._take_in
    monkeypatch.setattr(
        correctness.Trainer,
        "_take_in",
        lambda self, state: take_in(self, state | {"draws": self._batches.draws.get_state()}),
    )
    row = correctness._resumed(TINY, "at")
    assert row.kept is False
    assert "tensors differ" in row.value


def test_a_step_that_reads_a_value_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sync._without_values(TINY, "ce", "title").kept
    loss = sync.DEFENSES["ce"].loss

    def reading(self: Any, batch: Any, clock: Any) -> Any:
        terms = loss(self, batch, clock)
        float(terms.total.detach())
        return terms

    monkeypatch.setattr(sync.DEFENSES["ce"], "loss", reading)
    row = tried(TINY, "title", lambda: sync._without_values(TINY, "ce", "title"))
    assert row.kept is False
    assert "test_gpu_suite.py" in row.value, "where it was read"


def test_a_gradient_passes_through_the_exchange_of_one_rank() -> None:
    row = throughput._one_rank(TINY)
    assert row.kept
    assert "gloo: same bits" in row.value


def test_a_rate_has_its_operations() -> None:
    flops = throughput._counted(TINY, 4).numbers["operations"]
    assert flops > 1e6
    row = throughput._rate(TINY, 4, {}, "title", flops)
    assert row.numbers["images/s"] == pytest.approx(8000 / row.numbers["ms a step"])
    assert row.numbers["10^12 operations/s"] == pytest.approx(flops / row.numbers["ms a step"] / 1e9)


def test_an_error_costs_one_line_and_so_does_a_lack_of_time() -> None:
    def fail() -> Row:
        raise ValueError("no\nsuch thing")

    row = tried(TINY, "title", fail)
    assert (row.kept, row.left_out) == (False, False)
    assert row.value.startswith("ValueError: no such thing (test_gpu_suite.py:")
    late = tried(replace(TINY, until=time.monotonic() - 1), "title", fail)
    assert (late.kept, late.left_out, late.value) == (None, True, "no time left")


def test_what_needs_cuda_is_left_out_in_one_line() -> None:
    assert TINY.only_cuda("title") == Row("title", "needs CUDA", left_out=True)
    assert Setting("cuda", True).only_cuda("title") is None


def test_lacking_packages_are_named_with_how_to_carry_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(suite, "find_spec", lambda name: None if name in ("pydantic", "PIL") else find_spec(name))
    assert suite.main([]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: not installed here: pydantic, pillow; carry them: `pip install --target carried")
    assert said.count("\n") == 1


def test_a_package_that_two_defenses_need_costs_their_lines() -> None:
    def lacking(module: str) -> Row:
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    row = tried(TINY, "title", partial(lacking, "sklearn"))
    assert (row.value, row.kept, row.left_out) == ("scikit-learn is not installed", None, True)
    assert tried(TINY, "title", partial(lacking, "erat.nothing")).kept is False


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_it_says_what_can_be_done(capsys: pytest.CaptureFixture[str]) -> None:
    assert suite.main([]) == 2
    assert capsys.readouterr().err.startswith("error: torch sees no CUDA device here; --device cpu --quick")


def test_an_unknown_part_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        suite.main(["speed", "--device", "cpu"])
    assert ended.value.code == 2
    assert "unknown part 'speed'; allowed: correctness, sync, study, throughput" in capsys.readouterr().err


def _parts(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """Let a part be this Python program."""
    real = subprocess.Popen
    monkeypatch.setattr(
        suite.subprocess, "Popen", lambda command, **more: real([sys.executable, "-c", program], **more)
    )


def test_a_part_that_takes_too_long_is_ended_and_its_lines_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time is over, for this test, once the first line is there."""
    line = json.dumps(suite._row("sync", "a", "", True))
    _parts(monkeypatch, f"import time; print({line!r}, flush=True); time.sleep(100)")
    alarms: list[Callable[[], None]] = []

    class Alarm:
        def __init__(self, seconds: float, ring: Callable[[], None]) -> None:
            assert seconds == 60
            alarms.append(ring)

        def start(self) -> None: ...

        def cancel(self) -> None: ...

    monkeypatch.setattr(suite.threading, "Timer", Alarm)
    monkeypatch.setattr(suite, "_print_row", lambda row: alarms.pop()() if alarms else None)
    rows = suite._in_a_process("sync", "cpu", True, 60)
    assert [(row["name"], row["kept"], row["left_out"]) for row in rows] == [
        ("a", True, False),
        ("the rest", None, True),
    ]


def test_a_part_that_dies_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    _parts(monkeypatch, "import os; os._exit(7)")
    (row,) = suite._in_a_process("sync", "cpu", True, 60)
    assert (row["name"], row["value"], row["kept"]) == ("the rest", "ended with exit status 7", False)


@pytest.mark.slow
@pytest.mark.timeout(1700)  # it compiles, beside whatever else runs
def test_all_parts_but_the_study_on_the_cpu() -> None:
    parts = ["correctness", "sync", "throughput"]
    command = [sys.executable, "-m", "tests.gpu", "--device", "cpu", "--quick", "--minutes", "26", *parts]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1650)
    summary = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == 0, [row for row in summary["rows"] if row["kept"] is False]
    assert {row["part"] for row in summary["rows"]} == {"correctness", "sync", "throughput"}
    left_out = [row["name"] for row in summary["rows"] if row["left_out"]]
    assert all("torchattacks" in name or "memory" in name or "tf32" in name or "graphs" in name for name in left_out)
    assert sum(row["kept"] is True for row in summary["rows"]) > 25
