"""Tests what is said when other programs use the processor."""

from __future__ import annotations

import pytest

from orchestration.run.busy import NICENESS, WINDOW_SECONDS, Meter, busy_cores


@pytest.fixture(autouse=True)
def _ray_s_own_priority(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Ray's workers have the priority that Ray gives them, also where tests of Ray have raised it."""
    monkeypatch.delenv(NICENESS, raising=False)


class Machine:
    """A machine of eight cores, on which other programs use `cores` of them."""

    def __init__(self) -> None:
        self.now, self.seconds = 0.0, 100.0

    def used(self) -> float:
        return self.seconds

    def clock(self) -> float:
        return self.now

    def work(self, cores: float, seconds: float = WINDOW_SECONDS) -> None:
        self.now += seconds
        self.seconds += cores * seconds


def test_it_is_said_once_until_it_was_quiet_again() -> None:
    machine = Machine()
    meter = Meter(machine.used, machine.clock, cores=8)
    said = []
    for cores in (1.0, 7.5, 7.5, 0.0, 4.0):
        machine.work(cores)
        said.append(meter.news())
    assert [line is not None for line in said] == [False, True, False, False, True]
    assert str(said[1]).startswith("other programs use 7.5 of 8 cores of this machine; Ray's workers have low priority")
    assert "\n" not in str(said[1])


def test_it_is_measured_over_a_while() -> None:
    machine = Machine()
    meter = Meter(machine.used, machine.clock, cores=8)
    machine.work(8.0, seconds=WINDOW_SECONDS / 2)
    assert meter.news() is None, "a short load is of no concern"
    machine.work(0.5, seconds=WINDOW_SECONDS / 2)
    assert meter.news() is not None, "but counts"


@pytest.mark.parametrize(("cores", "busy"), [(0.0, False), (3.9, False), (4.0, True), (8.0, True)])
def test_half_of_the_cores_is_much(cores: float, busy: bool) -> None:
    assert (Meter(lambda: 0.0, cores=8).words(cores) is not None) is busy


def test_this_machine_can_be_measured() -> None:
    assert busy_cores(0.02) >= 0.0
