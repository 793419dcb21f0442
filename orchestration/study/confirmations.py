"""What the confirmations of a search say: for each candidate, its accuracy over all seeds, and which one wins by it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import isfinite
from statistics import fmean, stdev
from typing import Any

from erat.options import SEEDS
from orchestration.study.trial import Trial, confirmation


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure over several seeds.

    Attributes:
        mean: its mean; None if no seed has the figure.
        spread: its standard deviation over the seeds, with n - 1; None for fewer than two seeds.
        n: number of seeds that have the figure.
    """

    mean: float | None
    spread: float | None
    n: int

    @classmethod
    def of(cls, figures: Iterable[float | None]) -> Spread:
        """Return the mean and the spread of the figures that are known and finite."""
        known = [figure for figure in figures if figure is not None and isfinite(figure)]
        return cls(fmean(known) if known else None, stdev(known) if len(known) > 1 else None, len(known))


@dataclass(frozen=True, slots=True)
class Confirmed:
    """A candidate, one of the best trials of a search, and the trials that repeat it with further seeds.

    Attributes:
        trial: the candidate.
        repetitions: the trials that repeat it, in the order of their seeds, ended or not.
    """

    trial: Trial
    repetitions: tuple[Trial, ...]

    @property
    def runs(self) -> tuple[Trial, ...]:
        """Return the candidate and its repetitions that are done."""
        return self.trial, *(run for run in self.repetitions if run.status == "done")

    @property
    def failed(self) -> tuple[Trial, ...]:
        """Return the repetitions that failed, which no figure includes."""
        return tuple(run for run in self.repetitions if run.status == "failed")

    @property
    def complete(self) -> bool:
        """Return whether all repetitions have ended, and at least one of them is done."""
        wanted = max((run.seeds - 1 for run in self.repetitions), default=0)
        ended = sum(run.ended for run in self.repetitions)
        return len(self.runs) > 1 and ended == len(self.repetitions) >= wanted

    @property
    def seeds(self) -> list[int]:
        """Return the seeds of the runs that the figures include."""
        return [int(run.config.get("train.seed", 0)) for run in self.runs]

    @property
    def val(self) -> Spread:
        """Return the validation accuracy of the best epoch over the seeds, in [0, 1]; it decides who wins."""
        return Spread.of(run.best_val_accuracy for run in self.runs)

    @property
    def test(self) -> Spread:
        """Return the clean test accuracy of the last epoch over the seeds, in [0, 1]; it chooses nothing."""
        return Spread.of(run.final_test_accuracy for run in self.runs)

    @property
    def best_val_test(self) -> Spread:
        """Return the clean test accuracy of the epoch with the best validation accuracy over the seeds, in [0, 1]."""
        return Spread.of(run.best_val_test_accuracy for run in self.runs)

    def figures(self) -> dict[str, float | int | None]:
        """Return the figures over the seeds by their names in tables for programs, in MLflow and in `--json`."""
        return {
            "val_accuracy_mean": self.val.mean,
            "val_accuracy_std": self.val.spread,
            "test_accuracy_mean": self.test.mean,
            "test_accuracy_std": self.test.spread,
            "seeds_done": self.val.n,
        }

    def content(self) -> dict[str, Any]:
        """Return everything as JSON values; `left_out` has the repetitions that failed, by seed, and why."""
        return self.figures() | {
            "number": self.trial.number,
            "complete": self.complete,
            "seeds": self.seeds,
            "left_out": [{"seed": run.config.get("train.seed"), "error": run.error} for run in self.failed],
        }


FIGURES = tuple(Confirmed(Trial(0, "", {}), ()).figures())  # the names of the figures


def confirmed(rows: Sequence[Trial]) -> list[Confirmed]:
    """Return the candidates among these trials that are being confirmed, the best mean of validation accuracy first.

    Those whose repetitions have not all ended come last.
    """
    repeats: dict[int, list[Trial]] = {}
    for row in rows:
        if row.confirms is not None:
            repeats.setdefault(row.confirms, []).append(row)
    if not repeats:
        return []
    by_number = {row.number: row for row in rows}
    found = [
        Confirmed(by_number[number], tuple(sorted(runs, key=lambda run: run.number)))
        for number, runs in repeats.items()
        if number in by_number
    ]
    return sorted(found, key=lambda each: (not each.complete, -(each.val.mean or 0.0), each.trial.number))


def winner(rows: Sequence[Trial]) -> Confirmed | None:
    """Return the candidate with the best mean of validation accuracy over its seeds; None if none is confirmed yet.

    Of equal candidates, it is the one with the lowest number. Test accuracy plays no part.
    """
    return next((each for each in confirmed(rows) if each.complete), None)


def candidates(searched: Iterable[Trial], top: int) -> list[Trial]:
    """Return the trials of a search that are confirmed, the best first: done, and of the same settings only the first.

    Args:
        searched: the search's trials, without those that repeat a listed run.
        top: number of candidates.
    """
    distinct: dict[str, Trial] = {}
    for trial in sorted(searched, key=lambda trial: trial.number):
        distinct.setdefault(trial.cell, trial)
    done = [(trial.best_val_accuracy, trial) for trial in distinct.values() if trial.status == "done"]
    known = [(best, trial) for best, trial in done if best is not None and isfinite(best)]
    return [trial for _, trial in sorted(known, key=lambda each: (-each[0], each[1].number))[:top]]


def repetitions(searched: Iterable[Trial], top: int, seeds: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield number and dotted keys of the trials that confirm the best ones, the first further seed of each first.

    Args:
        searched, top: as in `candidates`.
        seeds: number of seeds of each candidate in all.
    """
    chosen = candidates(searched, top)
    for repeat in range(1, seeds):
        for trial in chosen:
            seed = (trial.config["train.seed"] + repeat) % SEEDS
            yield confirmation(trial.number, repeat), trial.params | {"train.seed": seed}


def expected(rows: Sequence[Trial], trials: int, top: int, seeds: int) -> int:
    """Return how many confirmations a study has in all, as far as its trials tell.

    Args:
        rows: the trials of the study so far.
        trials: number of trials of the search.
        top: number of candidates.
        seeds: number of seeds of each of them in all.
    """
    searched = [row for row in rows if row.source != "baseline" and row.confirms is None]
    known = {row.number for row in rows if row.confirms is not None}
    if len(searched) < trials or not all(row.ended for row in searched):
        return max(min(top, trials) * (seeds - 1), len(known))
    listed = {row.cell for row in rows if row.source == "baseline"}
    chosen = candidates((row for row in searched if row.cell not in listed), top)
    return len(known | {confirmation(trial.number, repeat) for trial in chosen for repeat in range(1, seeds)})
