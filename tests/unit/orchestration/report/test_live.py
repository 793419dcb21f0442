"""Tests the live view: exact plain lines, a bounded table, the time left, nothing on standard output."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from threading import current_thread
from typing import Any

import pytest
from rich.console import Console

from orchestration.report.live import LiveView, _Terminal, takes_a_table, visible
from orchestration.report.progress import Progress, seconds_per_epoch, sweep_left
from orchestration.study.trial import Trial, confirmation
from tests.trials import make_trial, with_result

COLUMNS = ["defense.epsilon_inf", "defense.epsilon_2"]


class Clock:
    """A clock that advances only when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Screen(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Screen:
    for name in ("NO_COLOR", "CI"):
        monkeypatch.delenv(name, raising=False)
    for name, setting in (("TERM", "xterm-256color"), ("COLUMNS", "100"), ("LINES", "20")):
        monkeypatch.setenv(name, setting)
    return Screen()


def row(number: int, status: str = "queued", epoch: int = 0, **more: Any) -> Trial:
    params = {"defense.epsilon_inf": (number + 1) / 255, "defense.epsilon_2": 0.5}
    more = {"params": params, "seconds": 6.0 * epoch, **more}
    return make_trial(number, f"cell{number}", status=status, epoch=epoch, epochs=10, **more)


class TestPlainLines:
    def test_every_line_is_exact(self, clock: Clock) -> None:
        stream = io.StringIO()
        waiting = row(1, source="paper")
        with LiveView("sweep budgets", COLUMNS, 2, stream, clock) as view:
            view.update([row(0), waiting])
            view.update([row(0, "running"), waiting])
            clock.now += 24
            view.update([row(0, "running", 4, val_accuracy=0.9126, seconds=27.7), waiting])
            view.note("a word from the side")
            clock.now += 36
            ended = row(0, "done", 10, val_accuracy=0.93, best_val_accuracy=0.94, final_test_accuracy=0.921)
            view.update([ended, waiting])
            view.update([ended, with_result(waiting, status="running")])
            clock.now += 5
            error = "Traceback\n\nTrainingFailed: NaN\n"
            view.update([ended, with_result(waiting, status="failed", train_seconds=5, error=error)])
        assert stream.getvalue().splitlines() == [
            "sweep budgets",
            "[0/2] trial 0 running eps_inf=1/255 eps_2=0.5 (optuna)",
            "[0/2] trial 0 epoch 4/10 val 0.913 left 0:42",
            "a word from the side",
            "[1/2] trial 0 done best val 0.940 test 0.921 in 1:00, sweep left 1:00",
            "[1/2] trial 1 running eps_inf=2/255 eps_2=0.5 (paper)",
            "[2/2] trial 1 failed after 0:05: TrainingFailed: NaN",
            "2/2 trials in 1:05: 1 done, 1 failed",
        ]

    def test_epochs_are_told_at_most_every_five_seconds_per_trial(self, clock: Clock) -> None:
        stream = io.StringIO()
        view = LiveView("t", COLUMNS, 2, stream, clock)
        for epoch in range(1, 9):
            view.update([row(0, "running", epoch), row(1, "running", epoch)])
            clock.now += 2
        told = re.findall(r"trial (\d) epoch (\d)/10", stream.getvalue())
        assert told == [(trial, epoch) for epoch in "147" for trial in "01"]

    def test_an_update_without_news_is_silent(self, clock: Clock) -> None:
        stream = io.StringIO()
        view = LiveView("t", COLUMNS, 1, stream, clock)
        rows = [row(0, "running", 3)]
        view.update(rows)
        before = stream.getvalue()
        clock.now += 60
        view.update(rows)
        assert stream.getvalue() == before

    def test_a_trial_that_moved_on_is_news(self, clock: Clock) -> None:
        stream = io.StringIO()
        view = LiveView("t", COLUMNS, 1, stream, clock)
        view.update([row(0)])
        view.update([row(0, "stopped", 2)])
        assert "trial 0 stopped at epoch 2/10" in stream.getvalue()

    def test_a_requeued_trial_and_a_baseline_are_named(self, clock: Clock) -> None:
        stream = io.StringIO()
        view = LiveView("t", COLUMNS, 2, stream, clock)
        baseline = row(1, "running", source="baseline", params={"defense.name": "ce"})
        view.update([row(0, "running"), baseline])
        view.update([row(0), baseline])
        assert stream.getvalue().splitlines()[1:] == [
            "[0/2] trial 1 running CE (baseline)",
            "[0/2] trial 0 queued again",
        ]

    def test_a_stream_that_knows_ascii_only_does_not_crash(self, clock: Clock) -> None:
        stream = io.TextIOWrapper(io.BytesIO(), "ascii")
        LiveView("t", COLUMNS, 1, stream, clock).note("ε∞ = 8/255")
        stream.seek(0)
        assert stream.read() == "?? = 8/255\n"


class TestWhere:
    def test_a_table_needs_a_terminal(self, terminal: Screen) -> None:
        assert takes_a_table(terminal)
        assert not takes_a_table(io.StringIO())

    @pytest.mark.parametrize(("name", "setting"), [("NO_COLOR", "1"), ("CI", "true"), ("TERM", "dumb")])
    def test_the_environment_can_ask_for_lines(
        self, terminal: Screen, monkeypatch: pytest.MonkeyPatch, name: str, setting: str
    ) -> None:
        monkeypatch.setenv(name, setting)
        assert not takes_a_table(terminal)

    def test_everything_goes_to_standard_error(self, capsys: pytest.CaptureFixture[str]) -> None:
        with LiveView("t", COLUMNS, 1) as view:
            view.update([row(0, "running", 1, val_accuracy=0.5)])
        out, err = capsys.readouterr()
        assert out == ""
        assert "trial 0 epoch 1/10 val 0.500" in err


def frame(rows: list[Trial], terminal: Screen, clock: Clock, title: str = "sweep", total: int = 0) -> list[str]:
    """Return the lines that the live table occupies 7 s after these rows were reported."""
    progress = Progress(total, clock)
    progress.update(rows)
    clock.now += 7
    view = _Terminal(title, COLUMNS, progress, terminal, clock)
    console = Console(file=io.StringIO(), width=view._console.width, color_system=None)
    console.print(view._frame())
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


class TestTable:
    def test_cells_and_footer(self, terminal: Screen, clock: Clock) -> None:
        rows = [
            row(0, "done", 10, source="paper", val_accuracy=0.90, best_val_accuracy=0.91),
            row(1, "done", 10, val_accuracy=0.95, best_val_accuracy=0.96),
            row(2, "running", 4, val_accuracy=0.876, best_val_accuracy=0.88),
            row(3),
        ]
        lines = [" ".join(line.split()) for line in frame(rows, terminal, clock, total=5)]
        assert lines[0].strip() == "sweep"
        assert "# source status ε∞ ε2 epoch val best time left" in lines
        assert "★ 1 optuna done 2/255 0.5 10/10 ━━━━━━━━ 0.950 0.960 1:00" in lines
        assert "2 optuna running 3/255 0.5 4/10 ━━━╌╌╌╌╌ 0.876 0.880 0:31 0:29" in lines  # 7 s after the report
        assert "3 optuna queued 4/255 0.5 0/10 ╌╌╌╌╌╌╌╌ - - -" in lines
        # 29 s of trial 2, then two trials of 60 s on the one slot
        assert lines[-1] == "2/5 trials · 2:29 left · best val 0.960 (trial 1) · 2 done, 1 running"

    def test_rungs_and_confirmations(self, terminal: Screen, clock: Clock) -> None:
        def at(trial: Trial, promoted: int = 0) -> Trial:
            return replace(trial, rungs=(2, 5), promoted=promoted)

        rows = [
            at(row(0, "paused", 2, val_accuracy=0.5, best_val_accuracy=0.5)),
            at(row(1, "queued", 2), 2),
            at(row(2, "running", 4), 2),
            at(row(3, "done", 10, best_val_accuracy=0.8), 5),
            replace(row(confirmation(3, 1), "done", 10, best_val_accuracy=0.6, source="confirm"), seeds=2),
        ]
        lines = [" ".join(line.split()) for line in frame(rows, terminal, clock, total=5)]
        assert any(line.startswith("0 optuna paused at 2 1/255") for line in lines)
        assert any(line.startswith("1 optuna promoted at 2 2/255") for line in lines)
        assert any(line.startswith("2 optuna running ↑2 3/255") and line.endswith("0:31 0:00") for line in lines)
        assert any(line.startswith("★ 3 optuna done ↑5 4/255") for line in lines)
        assert any(line.startswith("3 seed - done") for line in lines)
        assert lines[-1].endswith("best val 0.700 ± 0.141 (trial 3, 2 seeds) · 2 done, 1 running, 1 paused")

    @pytest.mark.parametrize(("lines", "running"), [(12, 3), (20, 3), (20, 40)])
    def test_a_long_sweep_never_outgrows_the_terminal(
        self, terminal: Screen, clock: Clock, monkeypatch: pytest.MonkeyPatch, lines: int, running: int
    ) -> None:
        monkeypatch.setenv("LINES", str(lines))
        rows = [row(n, "done", 10, best_val_accuracy=0.5) for n in range(60)]
        rows += [row(n, "running", 1) for n in range(60, 60 + running)] + [row(n) for n in range(100, 200)]
        shown = frame(rows, terminal, clock)
        assert len(shown) < lines
        assert sum("running" in line for line in shown[:-2]) == min(running, lines - 8)
        assert "not shown" in shown[-2]

    def test_running_then_best_then_newest_are_kept(self, clock: Clock) -> None:
        progress = Progress(0, clock)
        rows = [row(n, "running") for n in range(6)] + [row(6)]
        progress.update(rows)
        for number in (4, 1, 3, 0):
            clock.now += 1
            rows[number] = row(number, "done", 10, best_val_accuracy=0.9 if number == 4 else 0.5)
            progress.update(rows)
        assert [r.number for r in visible(progress, 5)] == [0, 2, 3, 4, 5]
        assert [r.number for r in visible(progress, 3)] == [2, 4, 5]
        assert len(visible(progress, 50)) == 7

    @pytest.mark.parametrize("width", [40, 60, 80, 100])
    def test_narrow_terminals_lose_columns_not_lines(
        self, terminal: Screen, clock: Clock, monkeypatch: pytest.MonkeyPatch, width: int
    ) -> None:
        monkeypatch.setenv("COLUMNS", str(width))
        lines = frame([row(n, "running", 4, val_accuracy=0.9) for n in range(3)], terminal, clock, "many words " * 13)
        assert max(map(len, lines)) <= width
        assert sum("4/10" in line for line in lines) == 3
        assert lines[0].endswith("…")  # a title of 141 characters stays on its line
        assert ("source" in lines[2]) == (width >= 80)

    def test_the_real_view_draws_notes_and_cleans_up(
        self, terminal: Screen, clock: Clock, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with LiveView("my [bold] sweep", COLUMNS, 2, terminal, clock) as view:
            view.update([row(0, "running", 4, val_accuracy=0.9), row(1)])
            view.note("hello [red]there")
            view.update([row(0, "failed", 4, error="ValueError: no"), row(1)])
        text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.getvalue())
        assert "my [bold] sweep" in text
        assert "hello [red]there" in text
        assert "trial 0 failed: ValueError: no" in text
        assert text.rstrip().endswith("1/2 trials in 0:00: 1 failed")
        assert terminal.getvalue().endswith("\n")
        assert capsys.readouterr().out == ""

    def test_only_the_drawing_thread_draws_and_it_looks_at_what_changed_alone(
        self, terminal: Screen, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        drawing: list[str] = []
        frame = _Terminal._frame
        monkeypatch.setattr(_Terminal, "_frame", lambda view: drawing.append(current_thread().name) or frame(view))
        with LiveView("t", COLUMNS, 30, terminal, clock) as view:
            view.update([row(n) for n in range(30)])
            begun = len(drawing)
            for epoch in range(1, 11):
                for number in range(30):
                    view.update([row(number, "running", epoch)])
            assert current_thread().name not in drawing[begun:]
            assert view._view._live.refresh_per_second == 2  # type: ignore[union-attr]
            assert [shown.epoch for shown in view._progress.rows] == [10] * 30
            assert view._progress.counts() == "30 running"

    def test_what_is_crafted_meanwhile_has_its_bars_above_the_trials(self, terminal: Screen, clock: Clock) -> None:
        with LiveView("t", COLUMNS, 30, terminal, clock) as view:
            rows = [row(n, "running" if n < 20 else "queued", 4) for n in range(30)]
            view.crafting.show("uap l2 1", "class vectors", 3, 10)
            view.crafting.show("l2c linf 0.3", "trials", 1, 12)
            view.update(rows)
            view._view._live.refresh()  # type: ignore[union-attr]  # as the thread that draws does
            drawn = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.getvalue()).replace("\r", "\n")
            screen = drawn[drawn.rindex(" t\n") :].splitlines()
            assert screen[1].split("━")[0].strip() == "crafting uap l2 1: class vectors"
            assert "3/10" in screen[1]
            assert screen[2].startswith("crafting l2c linf 0.3: trials")
            assert len(screen) < 20, "the terminal's height"
            view.crafting.show("l2c linf 0.3", "trials", 12, 12)
            view.crafting.show("uap l2 1", "class vectors", 10, 10)
            before = len(terminal.getvalue())
            view.update([*rows[1:], row(0, "running", 5)])
            view._view._live.refresh()  # type: ignore[union-attr]
            assert "crafting" not in terminal.getvalue()[before:]

    @pytest.mark.parametrize("reason", [None, KeyboardInterrupt])
    def test_only_an_interrupted_sweep_leaves_its_table_behind(
        self, terminal: Screen, clock: Clock, reason: type[BaseException] | None
    ) -> None:
        view = LiveView("t", COLUMNS, 1, terminal, clock)
        view.__enter__()
        view.update([row(0, "running", 4)])
        view.__exit__(reason, None, None)
        after_the_table = terminal.getvalue().rpartition(" 4/10")[2]
        wiped = "\x1b[1A" in after_the_table  # the cursor goes up again, over the table
        assert wiped == (reason is None)


class TestProgress:
    def test_rows_come_one_by_one_and_are_shown_in_order(self, clock: Clock) -> None:
        progress = Progress(3, clock)
        for change in (row(2), row(0, "running", 1), row(1), row(2, "running"), row(0, "done", 10)):
            assert [new for _, new in progress.update([change])] == [change]
            assert progress.update([change]) == [], "nothing new"
        assert [(each.number, each.status) for each in progress.rows] == [(0, "done"), (1, "queued"), (2, "running")]
        assert (progress.ended, progress.count("running"), progress.count("queued")) == (1, 1, 1)

    def test_the_rate_is_computed_at_most_twice_a_second(self, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
        computed: list[float] = []
        rate = seconds_per_epoch
        monkeypatch.setattr(
            "orchestration.report.progress.seconds_per_epoch",
            lambda *asked: computed.append(clock.now) or rate(*asked),
        )
        progress = Progress(100, clock)
        progress.update([row(number, "running", 1) for number in range(100)])
        for _ in range(100):
            clock.now += 0.01
            for each in progress.rows:
                progress.trial_left(each)
        assert len(computed) == 2


class TestTimeLeft:
    def test_before_anything_is_measured_nothing_is_claimed(self) -> None:
        assert sweep_left([row(0, "running"), row(1)], {}, 2, 1) is None

    def test_slots_share_the_queue(self) -> None:
        rows = [row(0, "done", 10, seconds=40.0)]
        rows += [row(1, "running", 5, seconds=30.0), row(2, "running", 5, seconds=50.0)]
        rows += [row(3), row(4)]
        # 6 s per epoch: trial 3 follows trial 1 at 30 s and ends at 90 s; trial 4 follows trial 2 at 50 s and ends at
        # 110 s
        assert sweep_left(rows, {}, 5, 2) == 110
        assert sweep_left(rows, {1: 10.0, 2: 10.0}, 5, 2) == 100
        assert sweep_left(rows, {}, 6, 2) == 150  # one more trial is proposed after trial 3

    def test_early_stopping_shortens_what_is_expected(self) -> None:
        rows = [row(0, "done", 10), row(1, "stopped", 2)]
        assert sweep_left(rows, {}, 3, 1) == 36

    def test_cheap_baselines_do_not_promise_cheap_trials(self) -> None:
        rows = [row(0, "done", 10), row(1, "done", 10, source="baseline", seconds=10.0)]
        assert seconds_per_epoch(rows) == 6
        assert seconds_per_epoch(rows, baseline=True) == 1
        assert seconds_per_epoch(rows[1:]) == 1  # better than no estimate

    def test_of_a_list_of_runs_those_not_begun_take_what_the_ended_ones_took(self) -> None:
        rows = [
            row(0, "done", 10, seconds=20.0, source="baseline"),
            row(1, "done", 10, seconds=40.0, source="baseline"),
        ]
        assert sweep_left(rows, {}, 6, 2) == 2 * 30

    def test_a_finished_sweep_has_nothing_left(self) -> None:
        assert sweep_left([row(0, "done", 10)], {}, 1, 1) == 0
