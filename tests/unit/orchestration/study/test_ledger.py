"""Tests the ledger: every record on disk counts, whoever wrote it, except for those that a crash left incomplete."""

from __future__ import annotations

import errno
import gc
import json
import os
import warnings
from pathlib import Path
from typing import Any

import pytest

from erat.errors import UserError
from erat.result import RunResult
from orchestration.study import ledger
from orchestration.study.ledger import Ledger
from orchestration.study.trial import Trial
from tests.forks import prepared

FIGURES = ("val_accuracy", "best_val_accuracy", "final_test_accuracy", "best_val_test_accuracy")
DONE = {"status": "done", "epochs": 4} | dict.fromkeys(FIGURES, 0.5)
SPEC = {"space": {"name": "budgets"}, "preset": "demo"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "workspace" / "ledger.jsonl"


def begun(path: Path, *names: str) -> Ledger:
    ledger = Ledger(path)
    for name in names:
        ledger.append("sweep", name=name, spec=SPEC, trials=4)
    return ledger


def finish(ledger: Ledger, cell: str, status: str, sweep: str | None = None, **result: Any) -> None:
    error = "boom" if status == "failed" else None
    ledger.finish(RunResult.of({**DONE, "error": error, **result, "cell": cell, "status": status}), sweep=sweep)


class TestReading:
    def test_a_missing_file_is_an_empty_ledger_and_is_not_made_by_looking(self, path: Path) -> None:
        assert Ledger(path).studies == {}
        assert not path.parent.exists()

    def test_what_is_appended_is_known_at_once_and_after_a_restart(self, path: Path) -> None:
        ledger = begun(path, "a")
        ledger.append("proposed", sweep="a", number=3, params={"defense.eta": 0.25}, source="optuna", cell="c3")
        for one in (ledger, Ledger(path)):
            proposal = one.studies["a"].proposals[3]
            assert (proposal.params, proposal.source, proposal.cell) == ({"defense.eta": 0.25}, "optuna", "c3")
            assert (one.studies["a"].spec, one.studies["a"].trials) == (SPEC, 4)

    def test_two_readers_see_each_other_s_events_by_refreshing(self, path: Path) -> None:
        one, other = begun(path, "a"), Ledger(path)
        finish(one, "c", "done", best_val_accuracy=0.5)
        assert other.outcome("c") is None
        other.refresh()
        assert other.outcome("c").best_val_accuracy == 0.5  # type: ignore[union-attr]
        finish(other, "d", "failed")
        one.refresh()
        assert one.outcome("d").error == "boom"  # type: ignore[union-attr]

    def test_appending_takes_in_what_others_wrote_meanwhile(self, path: Path) -> None:
        one, other = begun(path, "a"), Ledger(path)
        finish(one, "c", "done")
        finish(other, "d", "done")
        assert other.outcome("c") is not None

    def test_events_of_other_kinds_and_of_unknown_sweeps_are_passed_over(self, path: Path) -> None:
        ledger = begun(path, "a")
        ledger.append("remark", text="kept for later versions")
        ledger.append("proposed", sweep="gone", number=0, params={}, source="paper", cell="c")
        finish(ledger, "c", "stopped", sweep="gone")
        assert list(ledger.studies) == ["a"]
        assert ledger.outcome("c") is None

    def test_every_event_is_one_line_of_json_with_its_time(self, path: Path) -> None:
        ledger = begun(path, "a")
        finish(ledger, "c", "failed", error="two\nlines")
        events = [json.loads(line) for line in path.read_text().splitlines()]
        assert [event["event"] for event in events] == ["sweep", "failed"]
        assert all(event["time"] > 1.7e9 for event in events)

    @pytest.mark.parametrize("large", [False, True])
    def test_the_collector_rests_only_while_much_is_read(
        self, large: bool, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        begun(path, "a")
        during: list[bool] = []
        apply = Ledger._apply
        monkeypatch.setattr(Ledger, "_apply", lambda self, event: during.append(gc.isenabled()) or apply(self, event))
        if large:
            monkeypatch.setattr(ledger, "_READ", 10)
        Ledger(path)
        assert (during, gc.isenabled()) == ([not large], True)


class TestTornLines:
    def test_a_torn_last_line_is_passed_over_and_does_not_swallow_the_next(self, path: Path) -> None:
        begun(path, "a")
        with path.open("ab") as file:
            file.write(b'{"event": "done", "cell": "torn", "resu')
        reader = Ledger(path)
        assert reader.outcome("torn") is None
        finish(reader, "c", "done")
        for one in (reader, Ledger(path)):
            assert one.outcome("c") is not None
            assert one.outcome("torn") is None

    def test_a_reader_from_before_the_tear_goes_on(self, path: Path) -> None:
        early = begun(path, "a")
        with path.open("ab") as file:
            file.write(b'{"event": "do\xff')
        early.refresh()
        finish(Ledger(path), "c", "done")
        early.refresh()
        assert early.outcome("c") is not None

    def test_a_line_is_taken_in_when_it_is_whole(self, path: Path) -> None:
        ledger = begun(path, "a")
        line = json.dumps({"event": "done", "cell": "c", "result": DONE}).encode()
        with path.open("ab") as file:
            file.write(line[:20])
            file.flush()
            ledger.refresh()
            assert ledger.outcome("c") is None
            file.write(line[20:] + b"\n")
        ledger.refresh()
        assert ledger.outcome("c") is not None

    def test_a_line_that_lacks_only_its_end_counts(self, path: Path) -> None:
        begun(path, "a")
        path.write_bytes(path.read_bytes().rstrip(b"\n"))
        ledger = Ledger(path)
        finish(ledger, "c", "done")
        assert "a" in ledger.studies
        assert ledger.outcome("c") is not None


def write_many(path: Path, who: int, count: int) -> None:
    ledger = Ledger(path)
    for number in range(count):
        finish(ledger, f"{who}-{number}", "done", checksum="x" * 5000)


def test_processes_that_append_at_once_lose_nothing(path: Path) -> None:
    context, count = prepared(), 25
    writers = [context.Process(target=write_many, args=(path, who, count)) for who in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(300)
    assert [writer.exitcode for writer in writers] == [0] * 4
    lines = path.read_text().splitlines()
    assert len(lines) == 4 * count
    assert all(json.loads(line)["event"] == "done" for line in lines)
    ledger = Ledger(path)
    assert all(ledger.outcome(f"{who}-{number}") for who in range(4) for number in range(count))


class TestOutcomes:
    def test_done_is_a_property_of_the_run(self, path: Path) -> None:
        ledger = begun(path, "a", "b")
        finish(ledger, "c", "done", sweep="a")
        assert [ledger.outcome("c", sweep).status for sweep in ("a", "b", None)] == ["done"] * 3  # type: ignore[union-attr]

    def test_stopped_is_a_property_of_the_run_in_its_sweep(self, path: Path) -> None:
        ledger = begun(path, "a", "b")
        finish(ledger, "c", "stopped", sweep="a", val_history=[0.1])
        assert ledger.outcome("c", "a").status == "stopped"  # type: ignore[union-attr]
        assert ledger.outcome("c", "b") is None
        assert ledger.outcome("c") is None

    def test_one_sweep_s_stop_does_not_hide_another_s_end(self, path: Path) -> None:
        ledger = begun(path, "a", "b")
        finish(ledger, "c", "done", sweep="b")
        finish(ledger, "c", "stopped", sweep="a")
        assert ledger.outcome("c", "b").status == "done"  # type: ignore[union-attr]

    def test_retry_forgets_a_failure_until_the_next_end(self, path: Path) -> None:
        ledger = begun(path, "a")
        finish(ledger, "c", "failed", sweep="a")
        assert ledger.outcome("c", "a").error == "boom"  # type: ignore[union-attr]
        ledger.append("retry", cell="c", sweep="a")
        assert ledger.outcome("c", "a") is None
        assert Ledger(path).outcome("c", "a") is None
        finish(ledger, "c", "done", sweep="a")
        assert Ledger(path).outcome("c", "a").status == "done"  # type: ignore[union-attr]

    def test_more_trials_extend_a_sweep_and_fewer_do_not_shorten_it(self, path: Path) -> None:
        ledger = begun(path, "a")
        ledger.append("proposed", sweep="a", number=0, params={}, source="paper", cell="c")
        ledger.append("sweep", name="a", spec=SPEC, trials=9)
        ledger.append("sweep", name="a", spec=SPEC, trials=2)
        for one in (ledger, Ledger(path)):
            assert one.studies["a"].trials == 9
            assert list(one.studies["a"].proposals) == [0]


class TestRungs:
    """Tests what a resume finds of trials that wait at a rung, were promoted from it, or were stopped there."""

    @pytest.fixture
    def ledger(self, path: Path) -> Ledger:
        made = begun(path, "a", "b")
        finish(made, "c", "paused", "a", epochs=3, val_history=[0.1, 0.5, 0.4], mlflow_run_id="r")
        return made

    def state(self, path: Path, sweep: str = "a", number: int = 7) -> tuple[str, int]:
        trial = Ledger(path).with_outcome(Trial(number, "c", {}), sweep)
        return trial.status, trial.epoch

    def test_a_trial_that_waits_is_known_with_its_epochs_in_its_study_alone(self, ledger: Ledger, path: Path) -> None:
        assert self.state(path) == ("paused", 3)
        assert self.state(path, "b") == ("queued", 0)
        trial = Ledger(path).with_outcome(Trial(7, "c", {}), "a")
        assert trial.so_far.val_history == [0.1, 0.5, 0.4]
        assert ledger.outcome("c", "a") is None, "it has not ended"

    def test_places_are_excluded_and_used_again(self, ledger: Ledger, path: Path) -> None:
        ledger.append("place", sweep="a", where="GPU 1 of node x", out="3 trials died there")
        assert Ledger(path).studies["a"].out == {"GPU 1 of node x": "3 trials died there"}
        ledger.append("place", sweep="a", where="GPU 1 of node x", out=None)
        assert Ledger(path).studies["a"].out == {}

    def test_a_promoted_trial_is_queued_again_with_its_epochs(self, ledger: Ledger, path: Path) -> None:
        ledger.append("promoted", sweep="a", number=7, epoch=3)
        assert self.state(path) == ("queued", 3)
        assert self.state(path, number=8) == ("paused", 3), "the promotion is of number 7"
        assert Ledger(path).studies["a"].promoted == {7: 3}

    def test_at_the_next_rung_it_waits_again(self, ledger: Ledger, path: Path) -> None:
        ledger.append("promoted", sweep="a", number=7, epoch=3)
        finish(ledger, "c", "paused", "a", epochs=9)
        assert self.state(path) == ("paused", 9)
        ledger.append("promoted", sweep="a", number=7, epoch=9)
        assert self.state(path) == ("queued", 9)

    @pytest.mark.parametrize("status", ["stopped", "done", "failed"])
    def test_its_end_counts_more(self, status: str, ledger: Ledger, path: Path) -> None:
        finish(ledger, "c", status, "a")
        assert self.state(path) == (status, 4)

    def test_a_promoted_trial_that_failed_goes_on_from_its_rung_when_it_is_retried(
        self, ledger: Ledger, path: Path
    ) -> None:
        ledger.append("promoted", sweep="a", number=7, epoch=3)
        finish(ledger, "c", "failed", "a")
        ledger.append("retry", cell="c")
        assert self.state(path) == ("queued", 3)

    def test_each_extension_is_remembered_once(self, ledger: Ledger, path: Path) -> None:
        for trials in (4, 9, 6, 9, 12):
            ledger.append("sweep", name="a", spec=SPEC, trials=trials)
        assert Ledger(path).studies["a"].totals == [4, 9, 12]

    @pytest.mark.parametrize("epoch", [0, -1, 1.5, "3", None])
    def test_a_promotion_from_no_epoch_is_no_event(self, epoch: Any, ledger: Ledger, path: Path) -> None:
        with ledger.path.open("ab") as file:
            file.write(line(event="promoted", sweep="a", number=7, epoch=epoch))
        with pytest.warns(UserWarning, match="1 line was not understood and passed over"):
            assert Ledger(path).studies["a"].promoted == {}


def test_a_name_under_which_nothing_was_tried_can_be_given_back(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append("sweep", name="a", spec={"space": 1}, trials=3)
    ledger.withdraw("a")
    assert "a" not in Ledger(ledger.path).studies
    ledger.append("sweep", name="a", spec={"space": 2}, trials=1)
    ledger.append("proposed", sweep="a", number=0, params={}, source="baseline", cell="c")
    ledger.withdraw("a")
    assert Ledger(ledger.path).studies["a"].spec == {"space": 2}


def line(**fields: Any) -> bytes:
    return json.dumps(fields).encode() + b"\n"


END = {"event": "done", "cell": "c", "result": DONE}
NOT_UNDERSTOOD = {
    "a number": b"5\n",
    "null": b"null\n",
    "a list": b"[]\n",
    "no event": b"{}\n",
    "no fields": b'{"event": "sweep"}\n',
    "an event that is a number": b'{"event": 5}\n',
    "binary": b"\x00\xff\x00\n",
    "latin-1": '{"event": "retry", "cell": "é"}\n'.encode("latin-1"),
    "deep": b'{"event":"sweep","spec":' + b"[" * 3000 + b"\n",
    "a huge number": b'{"event":"sweep","name":"x","spec":{},"trials":' + b"9" * 5000 + b"}\n",
    "many trials": line(event="sweep", name="x", spec={}, trials=10**9),
    "no number": line(event="sweep", name="x", spec={}, trials=float("nan")),
    "a name that leaves": line(event="sweep", name="../x", spec={}, trials=1),
    "a cell that leaves": line(**END | {"cell": "../../etc"}),
    "a specification that is none": line(event="sweep", name="x", spec=[], trials=1),
    "a number below 0": line(event="proposed", sweep="a", number=-1, params={}, source="paper", cell="c"),
    "a result that is none": line(**END | {"result": None}),
    "done without figures": line(**END | {"result": {"status": "done"}}),
    "done that failed": line(**END | {"result": DONE | {"status": "failed"}}),
    "an accuracy above 1": line(**END | {"result": DONE | {"final_test_accuracy": 97.0}}),
    "an accuracy that is none": line(**END | {"result": DONE | {"val_accuracy": float("nan")}}),
    "a time that never comes": line(**END | {"time": 1e300}),
}


class TestForeignLines:
    @pytest.mark.parametrize("foreign", NOT_UNDERSTOOD.values(), ids=NOT_UNDERSTOOD)
    def test_a_line_that_is_no_event_is_passed_over_with_a_warning(self, foreign: bytes, path: Path) -> None:
        begun(path, "a")
        with path.open("ab") as file:
            file.write(foreign + line(event="done", cell="after", result=DONE))
        with pytest.warns(
            UserWarning, match=r"ledger.jsonl: 1 line was not understood and passed over \(line 2: "
        ) as said:
            ledger = Ledger(path)
        assert len(said) == 1
        assert len(str(said[0].message).splitlines()) == 1
        assert list(ledger.studies) == ["a"]
        assert ledger.outcome("c") is None
        assert ledger.outcome("after") is not None

    def test_one_warning_counts_them_all(self, path: Path) -> None:
        begun(path, "a")
        with path.open("ab") as file:
            file.write(b"5\n" * 10)
        with pytest.warns(UserWarning, match=r"10 lines were not understood and passed over \(line 2: ") as said:
            Ledger(path)
        assert len(said) == 1

    @pytest.mark.parametrize(
        "known",
        [
            line(event="sweep", name="b", spec=SPEC, trials=1).replace(b"\n", b"\r\n"),
            line(event="remark", text="of a later version"),
            line(**END | {"a": "field of a later version"}),
            b"\n \r\n",
            b'{"event": "done", "cell": "torn", "resu\n',
        ],
    )
    def test_what_is_no_damage_is_not_warned_of(self, known: bytes, path: Path) -> None:
        begun(path, "a")
        with path.open("ab") as file:
            file.write(known)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            Ledger(path)

    def test_a_mark_of_the_byte_order_hides_no_sweep(self, path: Path) -> None:
        begun(path, "a")
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
        assert list(Ledger(path).studies) == ["a"]

    def test_a_line_without_end_is_not_held_in_memory(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ledger, "MOST_LINE", 1000)
        monkeypatch.setattr(ledger, "_READ", 300)
        early = begun(path, "a")
        with path.open("ab") as file:
            file.write(b"x" * 10_000)
        early.refresh()
        assert early._offset == path.stat().st_size, "it is not read again at each look"
        with path.open("ab") as file:
            file.write(b"x" * 100 + b"\n")
        with pytest.warns(UserWarning, match=r"line 2: longer than 1,000 bytes"):
            early.refresh()
        finish(early, "c", "done")
        with pytest.warns(UserWarning, match=r"line 2: longer than 1,000 bytes"):
            assert Ledger(path).outcome("c") is not None


class TestNoLedger:
    def test_what_is_no_file_is_one_line(self, path: Path) -> None:
        path.mkdir(parents=True)
        with pytest.raises(
            UserError, match=r"^the ledger .*ledger.jsonl cannot be read: it is not a regular file; move"
        ):
            Ledger(path)
        path.rmdir()
        os.mkfifo(path)
        with pytest.raises(UserError, match="not a regular file"):
            Ledger(path)
        path.unlink()
        path.symlink_to(path)
        with pytest.raises(UserError, match="symbolic links"):
            Ledger(path)

    def test_a_lock_that_is_a_folder_is_one_line(self, path: Path) -> None:
        ledger = begun(path, "a")
        lock = path.with_name("ledger.jsonl.lock")
        lock.unlink()
        lock.mkdir()
        with pytest.raises(UserError, match=r"^the lock .*ledger.jsonl.lock cannot be taken: "):
            finish(ledger, "c", "done")

    def test_a_line_that_does_not_fit_on_the_disk_leaves_nothing(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ledger = begun(path, "a")
        before = path.read_bytes()
        write, calls = os.write, []

        def full(file: int, content: Any) -> int:
            calls.append(file)
            if len(calls) == 2:
                raise OSError(errno.ENOSPC, "No space left on device")
            return write(file, bytes(content)[:7])

        with monkeypatch.context() as patch:
            patch.setattr(os, "write", full)
            with pytest.raises(OSError, match="No space left") as caught:
                finish(ledger, "c", "done")
        assert caught.value.filename == str(path)
        assert path.read_bytes() == before
        finish(ledger, "c", "done")
        assert Ledger(path).outcome("c") is not None


def test_a_foreign_line_does_not_replace_what_a_sweep_is(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    spec = {"space": {"name": "s"}, "preset": "demo", "overrides": {}, "base": {"x": 1}}
    ledger.append("sweep", name="s", spec=spec, trials=3)
    ledger.append("sweep", name="s", spec=spec | {"images": {"here": "0" * 16}}, trials=3)
    ledger.append("sweep", name="s", spec={}, trials=0)
    assert ledger.studies["s"].spec == spec | {"images": {"here": "0" * 16}}


def test_a_listed_run_is_neither_stopped_nor_paused_by_a_trial_with_its_configuration(path: Path) -> None:
    ledger = begun(path, "a")
    for cell, status in (("c", "stopped"), ("d", "paused"), ("e", "done")):
        finish(ledger, cell, status, sweep="a")
    states = {
        source: [ledger.with_outcome(Trial(0, cell, {}, source), "a").status for cell in "cde"]
        for source in ("optuna", "baseline", "confirm")
    }
    assert states["optuna"] == ["stopped", "paused", "done"]
    assert states["baseline"] == states["confirm"] == ["queued", "queued", "done"]


def test_a_run_is_wanted_by_another_study_while_it_waits_there(path: Path) -> None:
    ledger = begun(path, "a", "b")
    finish(ledger, "c", "paused", sweep="a")
    assert not ledger.is_wanted("c", but="a")
    assert ledger.is_wanted("c", but="b")
    finish(ledger, "c", "stopped", sweep="a")
    assert not ledger.is_wanted("c", but="b")
