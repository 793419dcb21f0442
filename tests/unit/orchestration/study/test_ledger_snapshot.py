"""Tests the snapshot of a ledger: with it the ledger says the same as without it, whatever became of either file."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from erat.result import RunResult
from orchestration.storage.forms import SNAPSHOT_PART
from orchestration.study import snapshot
from orchestration.study.ledger import Ledger

SPEC = {"space": {"name": "budgets", "parameters": {}}, "preset": "demo", "base": {"train.lr": 0.1}}
FIGURES = ("val_accuracy", "best_val_accuracy", "final_test_accuracy", "best_val_test_accuracy")
OLD = Path(__file__).parent / "ledgers"
STATES = ("done", "failed", "stopped", "paused", "done", "running")


def result(number: int, status: str) -> RunResult:
    history = [0.1 + number / 97, 1 / 3]
    figures = dict.fromkeys(FIGURES, history[-1] if status == "done" else None)
    error = "ValueError: a\nb" if status == "failed" else None
    content = {"cell": f"c{number}", "status": status, "epochs": 2, "error": error, "val_history": history, **figures}
    return RunResult.of(content | {"train_seconds": 0.1 * number, "device": "cpu"})


def run(ledger: Ledger, sweep: str, numbers: range) -> None:
    for number in numbers:
        params = {"defense.eta": number / 7, "x": [1, "é"]}
        ledger.append("proposed", sweep=sweep, number=number, params=params, source="optuna", cell=f"c{number}")
        if (status := STATES[number % len(STATES)]) != "running":
            ledger.finish(result(number, status), sweep=sweep, mlflow_run_id=f"r{number}")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return the path of a ledger with events of every kind."""
    ledger = Ledger(tmp_path / "home" / "ledger.jsonl")
    for name in ("b", "a", "gone"):
        ledger.append("sweep", name=name, spec=SPEC, trials=4)
    ledger.withdraw("gone")
    run(ledger, "b", range(12))
    run(ledger, "a", range(6, 20))
    ledger.append("sweep", name="b", spec=SPEC | {"images": {"here": "0" * 16}}, trials=9, window=3)
    ledger.append("promoted", sweep="b", number=3, epoch=2)
    ledger.append("tracked", sweep="a", cell="c7", mlflow_run_id="r77")
    ledger.append("retry", cell="c7")
    ledger.append("place", sweep="a", where="GPU 1 of node x", out="3 trials died there")
    ledger.finish(result(50, "done"), sweep=None)
    return ledger.path


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a snapshot written of any ledger that has grown, with few rows in a line."""
    monkeypatch.setattr(snapshot, "WORTH", 1)
    monkeypatch.setattr(snapshot, "ROWS", 3)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Return the lines of the ledger that have been read; it is kept up to date."""
    lines: list[bytes] = []
    whole = Ledger._read

    def noted(self: Ledger, line: bytes) -> None:
        lines.append(line)
        whole(self, line)

    monkeypatch.setattr(Ledger, "_read", noted)
    return lines


def says(ledger: Ledger) -> list[Any]:
    """Return everything that a ledger says, in its order."""
    studies = [(name, study, list(study.proposals), list(study.stopped)) for name, study in ledger.studies.items()]
    return [*studies, list(ledger._outcomes.items()), ledger._offset, ledger._lines]


def without(path: Path) -> list[Any]:
    """Return what a ledger says when it is read from its beginning."""
    alone = path.with_name("alone") / path.name
    alone.parent.mkdir(exist_ok=True)
    shutil.copy(path, alone)
    snapshot.path_of(alone).unlink(missing_ok=True)
    return says(Ledger(alone))


@pytest.mark.usefixtures("eager")
def test_it_says_what_the_ledger_says_and_no_line_is_read_again(path: Path, read: list[bytes]) -> None:
    expected = without(path)
    Ledger(path)
    assert snapshot.path_of(path).exists()
    read.clear()
    assert says(Ledger(path)) == expected
    assert read == []


@pytest.mark.usefixtures("eager")
def test_what_has_come_since_is_read_and_appended(path: Path, read: list[bytes]) -> None:
    Ledger(path)
    later = Ledger(path)
    run(later, "a", range(20, 26))
    read.clear()
    again = Ledger(path)
    assert 0 < len(read) < 12
    assert says(again) == says(later) == without(path)
    with again.in_background():
        run(again, "a", range(26, 32))
    assert says(Ledger(path)) == says(again) == without(path)


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("old", sorted(OLD.iterdir()), ids=lambda path: path.stem)
def test_ledgers_of_earlier_versions(old: Path, tmp_path: Path, read: list[bytes]) -> None:
    path = tmp_path / "ledger.jsonl"
    shutil.copy(old, path)
    expected = says(Ledger(path))
    read.clear()
    assert says(Ledger(path)) == expected
    assert expected[0][2], "it has trials"
    assert read == []


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Return the parts of snapshots that have been read; it is kept up to date."""
    taken: list[dict[str, Any]] = []
    whole = snapshot._Lines.part

    def noted(self: snapshot._Lines, number: int) -> dict[str, Any]:
        taken.append(whole(self, number))
        return taken[-1]

    monkeypatch.setattr(snapshot._Lines, "part", noted)
    return taken


@pytest.mark.usefixtures("eager")
def test_whoever_opens_a_study_takes_in_that_one_alone(path: Path, parts: list[dict[str, Any]]) -> None:
    expected = Ledger(path)
    parts.clear()
    ledger = Ledger(path)
    assert list(ledger.studies) == ["b", "a"]
    assert "c0" in ledger._outcomes
    assert "x" not in ledger._outcomes
    assert parts == []
    assert ledger.studies["a"] == expected.studies["a"]
    assert {part.get("name") or part["study"] for part in parts} == {"a"}
    parts.clear()
    assert ledger.outcome("c50") == expected.outcome("c50")
    assert [part["part"] for part in parts] == ["ended"], "one part of several"
    ledger.append("retry", cell="c50")
    assert ledger.outcome("c50") is None


@pytest.mark.usefixtures("eager")
def test_a_snapshot_that_is_replaced_meanwhile_is_read_to_its_end(path: Path) -> None:
    Ledger(path)
    early = Ledger(path)
    run(Ledger(path), "a", range(20, 26))
    Ledger(path)
    early.refresh()
    assert says(early) == without(path)


@pytest.mark.usefixtures("eager")
def test_a_driver_has_all_of_it_before_it_writes_in_a_thread(path: Path, parts: list[dict[str, Any]]) -> None:
    Ledger(path)
    ledger = Ledger(path)
    parts.clear()
    with ledger.in_background():
        assert parts
        parts.clear()
        assert list(ledger._outcomes.values())
        assert parts == []


@pytest.mark.usefixtures("eager")
def test_the_values_of_listed_runs_are_kept_once(tmp_path: Path) -> None:
    runs = [{"train.seed": 0, "train.lr": 1.0}, {"train.seed": 1, "train.lr": 1.0}, {"train.seed": 2}]
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append("sweep", name="a", spec={**SPEC, "space": {"baselines": runs}}, trials=0)
    for number, params in enumerate([runs[0], {"train.seed": 1, "train.lr": 1}, {"train.seed": 2.5}, {"eta": 0.1}]):
        ledger.append("proposed", sweep="a", number=number, params=params, source="baseline", cell=f"c{number}")
    Ledger(ledger.path)
    study = Ledger(ledger.path).studies["a"]
    assert study == ledger.studies["a"]
    listed = study.spec["space"]["baselines"]
    assert [study.proposals[number].params is listed[number] for number in range(3)] == [True, False, False]
    assert type(study.proposals[1].params["train.lr"]) is int


def changed(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] = ord("7") if content[place] != ord("7") else ord("8")
    path.write_bytes(bytes(content))


def rewritten(path: Path, change: Callable[[list[dict[str, Any]]], object]) -> None:
    """Change the lines of a snapshot, and have its head agree with them."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    change(lines)
    body = b"".join(json.dumps(line).encode() + b"\n" for line in lines[1:])
    lines[0]["body"] = hashlib.sha256(body).hexdigest()
    path.write_bytes(json.dumps(lines[0]).encode() + b"\n" + body)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def circle(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


SPOILT: dict[str, Callable[[Path, Path], object]] = {
    "a byte of the ledger": lambda ledger, kept: changed(ledger, ledger.read_bytes().index(b'"number": 5') + 10),
    "the ledger is shorter": lambda ledger, kept: os.truncate(ledger, ledger.read_bytes().index(b"\n", 900) + 1),
    "the ledger is another one": lambda ledger, kept: ledger.write_bytes(
        ledger.read_bytes().replace(b'"c1"', b'"c0"') * 2
    ),
    "a byte of the snapshot": lambda ledger, kept: changed(kept, kept.read_bytes().rindex(b"0.3333") + 3),
    "the snapshot is cut": lambda ledger, kept: os.truncate(kept, kept.stat().st_size // 2),
    "the snapshot is cut at a line": lambda ledger, kept: os.truncate(kept, kept.read_bytes().index(b"\n", 900) + 1),
    "the snapshot is empty": lambda ledger, kept: kept.write_bytes(b""),
    "the snapshot is none": lambda ledger, kept: kept.write_bytes(b"\x00\xff5\n" * 99),
    "the snapshot is a folder": lambda ledger, kept: folder(kept),
    "a circular link": lambda ledger, kept: circle(kept),
    "another form": lambda ledger, kept: rewritten(kept, lambda lines: lines[0].update(form=1)),
    "a field is missing": lambda ledger, kept: rewritten(kept, lambda lines: lines[-1].pop("device")),
    "a list is shorter": lambda ledger, kept: rewritten(kept, lambda lines: lines[-1]["device"].pop()),
    "a name that leaves": lambda ledger, kept: rewritten(kept, lambda lines: lines[2].update(name="../x")),
    "trials of no study": lambda ledger, kept: rewritten(kept, lambda lines: lines[3].update(study="x")),
    "an accuracy above 1": lambda ledger, kept: rewritten(
        kept, lambda lines: lines[-1].update(val_accuracy=[9.0] * len(lines[-1]["cell"]))
    ),
}


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
def test_a_snapshot_that_does_not_fit_is_passed_over(
    spoil: Callable[[Path, Path], object], path: Path, read: list[bytes]
) -> None:
    Ledger(path)
    spoil(path, snapshot.path_of(path))
    expected = without(path)
    read.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert says(Ledger(path)) == expected
    assert len(read) == path.read_bytes().count(b"\n"), "every line is read"


@pytest.mark.usefixtures("eager")
def test_a_line_that_is_no_event_is_warned_of_with_and_without_it(path: Path, read: list[bytes]) -> None:
    with path.open("ab") as file:
        file.write(b"5\n")
    said = []
    for _ in range(2):
        read.clear()
        with pytest.warns(UserWarning, match="1 line was not understood and passed over") as caught:
            ledger = Ledger(path)
        said += [str(warning.message) for warning in caught]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            ledger.refresh()
    assert read == []
    assert len(said) == 2
    assert said[0] == said[1]


@pytest.mark.usefixtures("eager")
def test_a_line_that_is_not_complete_yet_is_left_to_the_next_reader(path: Path) -> None:
    line = json.dumps({"event": "sweep", "name": "late", "spec": SPEC, "trials": 1}).encode()
    with path.open("ab") as file:
        file.write(line[:30])
    Ledger(path)
    with path.open("ab") as file:
        file.write(line[30:] + b"\n")
    assert "late" in Ledger(path).studies
    assert says(Ledger(path)) == without(path)


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("fault", [OSError(errno.EROFS, "Read-only file system"), KeyboardInterrupt()])
def test_whoever_cannot_write_it_or_is_killed_meanwhile_leaves_everything_as_it_was(
    fault: BaseException, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, before = without(path), path.read_bytes()

    def refuse(*_: Any) -> None:
        raise fault

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        try:
            assert says(Ledger(path)) == expected
        except KeyboardInterrupt:
            assert isinstance(fault, KeyboardInterrupt)
    assert sorted(file.name for file in path.parent.iterdir() if file.is_file()) == [
        "ledger.jsonl",
        "ledger.jsonl.lock",
    ]
    assert path.read_bytes() == before
    assert says(Ledger(path)) == expected


def test_a_short_ledger_has_none_and_a_long_one_is_not_written_again_for_every_line(path: Path) -> None:
    Ledger(path)
    assert not snapshot.path_of(path).exists()
    assert [snapshot.is_due(before, now) for before, now in ((0, 2**23 - 1), (0, 2**23))] == [False, True]
    assert not snapshot.is_due(2**30, 2**30 + 2**26)
    assert snapshot.is_due(2**30, 2**30 + 2**27)


def test_every_field_of_a_result_is_kept() -> None:
    """A field that is added to the results and not to the schema would be lost, or make every snapshot useless."""
    required = SNAPSHOT_PART.json_schema()["$defs"]["ResultsPart"]["required"]
    assert set(required) == {"part", "study", *snapshot._FIELDS}
