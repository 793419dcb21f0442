"""Summarises a sweep: its table, the best setting, and the command that runs that setting again."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from orchestration.report.costs import OTHERS, cost, front
from orchestration.report.notation import (
    MISSING,
    accuracy,
    duration,
    finite,
    header,
    number_of,
    origin,
    promotion,
    settings_number,
    state,
    value,
    with_spread,
)
from orchestration.report.table import Cell, Column, Part, Row, Table
from orchestration.study.confirmations import FIGURES, Confirmed, confirmed, winner
from orchestration.study.overrides import typed
from orchestration.study.trial import Trial
from orchestration.terminal import program

_CHOICE = "★ chosen by validation accuracy (best epoch); test accuracy is for the record and chooses nothing."
_CONFIRMED = (
    "★ chosen by the mean of validation accuracy (best epoch) over seeds; test accuracy is for the record and chooses "
    "nothing."
)
_OVER_SEEDS = (
    "Mean ± standard deviation (n - 1) over the seeds of validation accuracy in the best epoch, which chooses, and of "
    "clean test accuracy in the last epoch, which does not."
)
_LEFT = ("source", "status")
_RECORDED = (
    "best_val_accuracy",
    "final_test_accuracy",
    "best_val_test_accuracy",
    "epoch",
    "epochs",
    "seconds",
    "mlflow_run_id",
    "error",
)


def best(rows: Sequence[Trial]) -> Trial | None:
    """Return the best setting: the one with the best mean over seeds, or else the largest `best_val_accuracy`.

    The former decides as soon as any trial has been confirmed with further seeds; see `confirmations.winner`. Of equal
    ones, it is the lowest number. A trial that a pruner stopped is eligible only if no trial is done, and one that was
    stopped at a rung not even then while others go on, because it lost against them. A baseline is never eligible,
    because it is not a setting of the space. Test accuracy plays no part.
    """
    if (chosen := winner(rows)) is not None:
        return chosen.trial
    searched = [row for row in rows if row.source not in OTHERS and _rank(row)[0] == 0]
    eligible = [row for row in searched if row.status == "done"]
    if not eligible:
        lost = not all(row.ended for row in searched)
        eligible = [row for row in searched if row.status == "stopped" and not (lost and row.at_rung)]
    return min(eligible, key=_rank, default=None)


def _rank(row: Trial) -> tuple[int, float, int]:
    """Return a sort key: measured before unmeasured, then the better validation accuracy, then the lower number."""
    found = finite(row.best_val_accuracy)
    return (1, 0.0, row.number) if found is None else (0, -found, row.number)


def ranked(rows: Sequence[Trial]) -> list[Trial]:
    """Sort trials by validation accuracy, best first; those without one come last.

    Candidates that are confirmed come before all others, each followed by its repetitions with further seeds.
    """
    first = [row for each in confirmed(rows) for row in (each.trial, *each.repetitions)]
    known = {row.number for row in first}
    return [*first, *sorted((row for row in rows if row.number not in known), key=_rank)]


def caption(rows: Sequence[Trial], pareto: bool = False) -> str:
    """Say how the choice was made and, if the configurations tell, which the validation images were.

    Args:
        rows: the trials.
        pareto: whether the search has two objectives.
    """
    words = [_CHOICE if winner(rows) is None else _CONFIRMED]
    said = {(row.config["val.trusted"], row.config.get("val.objective")) for row in rows if "val.trusted" in row.config}
    if len(said) == 1:
        trusted, objective = said.pop()
        kind = "clean, a small checked set" if trusted else "corrupted like the training images"
        attacked = ", judged on perturbed images" if objective == "perturbed" else ""
        words.append(f"Validation: {kind}{attacked} (val.trusted={str(bool(trusted)).lower()}).")
    if rungs := rungs_of(rows):
        words.append(
            f"Rungs after {'epochs' if len(rungs) > 1 else 'epoch'} {listed(rungs)}: there the best third of each "
            "block is promoted (↑ and the epoch), and the others are stopped."
        )
    if pareto:
        words.append("◆ on the Pareto front of validation accuracy and seconds of an epoch.")
    return " ".join(words)


def rungs_of(rows: Sequence[Trial]) -> list[int]:
    """Return the rungs of a search, ascending; none if its pruner has none."""
    return sorted({rung for row in rows for rung in row.rungs})


def listed(numbers: Sequence[int]) -> str:
    """Return numbers as words, such as "11 and 33"."""
    return " and ".join(map(str, numbers))


def summary(rows: Sequence[Trial], columns: Sequence[str], pareto: bool = False) -> Table:
    """Return all trials, best validation accuracy first.

    Args:
        rows: the trials, in any order.
        columns: the searched dotted keys.
        pareto: whether the search has two objectives, so that the seconds of an epoch and the Pareto front are shown.
    """
    chosen, members = best(rows), {row.number for row in front(rows)} if pareto else set()
    accuracies = ("val (best)", "test (last)", "test (best val)")
    names = ("#", "source", *map(header, columns), *accuracies, "epochs", "status", "time")
    names += ("s per epoch",) * pareto
    lines = []
    for row in ranked(rows):
        values = _line(row, columns, row is chosen, row.number in members)
        lines.append(Row(values + (seconds_of(row),) * pareto, row is chosen))
    return Table.of(
        (Column(name, "left" if name in _LEFT else "right") for name in names),
        lines,
        caption=caption(rows, pareto),
        dense=True,
    )


def _line(row: Trial, columns: Sequence[str], chosen: bool, on_front: bool) -> tuple[Cell | str, ...]:
    marked = "★" * chosen + "◆" * on_front
    return (
        Cell(
            f"{marked} {settings_number(row)}".strip(),
            runs=() if row.status == "queued" and not row.epoch else (row.cell,),
        ),
        origin(row),
        *(value(key, row.params.get(key)) for key in columns),
        accuracy(row.best_val_accuracy),
        accuracy(row.final_test_accuracy),
        accuracy(row.best_val_test_accuracy),
        f"{row.epoch}/{row.epochs}" if row.epochs else MISSING,
        status_cell(row),
        duration(row.seconds or None),
    )


def status_cell(row: Trial) -> Cell:
    """Return how a trial stands and, if it was promoted, from which rung it goes on."""
    went_on = promotion(row)
    return Cell(state(row), tail=(Part(f" {went_on}"),) if went_on else (), state=row.status)


def seconds_of(row: Trial) -> str:
    """Return the seconds of an epoch of a trial with three digits, or a dash."""
    seconds = cost(row)
    return MISSING if seconds is None else f"{seconds:.3g}"


def confirmed_table(rows: Sequence[Trial], columns: Sequence[str]) -> Table | None:
    """Return the candidates over their seeds, the best mean of validation accuracy first; None if there are none.

    Args:
        rows: the trials, in any order.
        columns: the searched dotted keys.
    """
    candidates, first = confirmed(rows), winner(rows)
    if not candidates:
        return None
    names = ("#", *map(header, columns), "val (mean)", "test (mean)", "seeds")
    lines = []
    for each in candidates:
        chosen = first is not None and each.trial is first.trial
        lines.append(
            Row(
                (
                    Cell(
                        f"★ {each.trial.number}" if chosen else str(each.trial.number),
                        runs=tuple(run.cell for run in (each.trial, *each.repetitions)),
                    ),
                    *(value(key, each.trial.params.get(key)) for key in columns),
                    with_spread(each.val),
                    with_spread(each.test),
                    str(each.val.n),
                ),
                chosen,
            )
        )
    return Table.of(
        (Column(name) for name in names),
        lines,
        title="The best trials, each trained with further seeds",
        caption=" ".join([_OVER_SEEDS, *_left_out(candidates)]),
        dense=True,
    )


def _left_out(candidates: Sequence[Confirmed]) -> list[str]:
    """Say which repetitions no mean includes: those that failed, and those that have not ended."""
    words = []
    failed = [number_of(run) for each in candidates for run in each.failed]
    open_ = [each.trial.number for each in candidates if not each.complete]
    if failed:
        words.append(f"Left out because they failed: trial {'; trial '.join(failed)}.")
    if open_:
        words.append(f"Not all seeds have ended: trial {listed(open_)}.")
    return words


def best_sentence(rows: Sequence[Trial], columns: Sequence[str]) -> str:
    """Say which setting is best, and what it reached."""
    row, over = best(rows), winner(rows)
    if row is None:
        return f"No trial has come to its {'last epoch' if rungs_of(rows) else 'end'} yet."
    settings = ", ".join(f"{header(key)} = {value(key, row.params.get(key))}" for key in columns)
    if over is not None:
        return (
            f"Best by validation over {over.val.n} seeds: trial {row.number} with {settings}: {with_spread(over.val)} "
            f"in validation, {with_spread(over.test)} on clean test images after the last epoch (mean ± standard "
            "deviation)."
        )
    return (
        f"Best by validation: trial {row.number} with {settings}: {accuracy(row.best_val_accuracy)} in validation, "
        f"{accuracy(row.final_test_accuracy)} on clean test images after the last epoch."
    )


def records(rows: Sequence[Trial], columns: Sequence[str], pareto: bool = False) -> Table:
    """Return everything about each trial, unrounded, under dotted keys; values that were not measured are empty.

    A search with rungs, with confirmations or with two objectives has further columns for these.

    Args:
        rows: the trials, in any order.
        columns: the searched dotted keys.
        pareto: whether the search has two objectives.
    """
    over = {each.trial.number: each.figures() for each in confirmed(rows)}
    members = {row.number for row in front(rows)} if pareto else set()
    more: dict[str, Callable[[Trial], object]] = {}
    if rungs_of(rows):
        more["promoted"] = lambda row: row.promoted or None
    if over:
        more["confirms"] = lambda row: row.confirms
        more["seed"] = lambda row: row.config.get("train.seed")
        more |= {name: lambda row, name=name: over.get(row.number, {}).get(name) for name in FIGURES}  # type: ignore[misc]
    if pareto:
        more |= {"seconds_per_epoch": cost, "pareto": lambda row: row.number in members}
    lines = []
    for row in ranked(rows):
        settings = [row.params.get(key) for key in columns]
        measured = [getattr(row, name) for name in _RECORDED]
        extra = [of(row) for of in more.values()]
        lines.append([row.number, row.cell, row.source, row.status, *settings, *measured, *extra])
    return Table.of(["number", "cell", "source", "status", *columns, *_RECORDED, *more], lines)


def paste_command(row: Trial, preset: str, overrides: Mapping[str, Any]) -> str:
    """Return the shell command that runs the configuration of a trial again.

    Args:
        row: the trial; its searched values take precedence over `overrides`.
        preset: the preset that the sweep started from.
        overrides: the KEY=VALUE settings that the user gave for the sweep.
    """
    settings = {**overrides, **row.params}
    settings.pop("preset", None)
    words = [*program().split(), "train", "--preset", preset]
    return shlex.join(words + [f"{key}={typed(setting)}" for key, setting in settings.items()])
