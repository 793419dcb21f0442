"""Tracks the state of a running study: what has changed, what is left, and how long it will still take."""

from __future__ import annotations

import heapq
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from orchestration.study.rungs import KEPT
from orchestration.study.trial import FINISHED, Trial

RATE_SECONDS = 0.5
Change = tuple[Trial | None, Trial]  # (the old row, or None if it is new; the present row)


@dataclass(frozen=True)
class _Seen:
    """A row as it was reported, and the time at which this state was first seen."""

    row: Trial
    at: float


class Progress:
    """The rows as last reported, their age, the counts and the time left.

    Args:
        total: the expected number of trials of the study; there may be more.
        clock: returns seconds that never decrease.
    """

    def __init__(self, total: int, clock: Callable[[], float]) -> None:
        self._clock, self._total, self._slots = clock, total, 1
        self._started = clock()
        self._seen: dict[int, _Seen] = {}
        self._lock = threading.Lock()  # held while `_seen` changes, as another thread draws it
        self._counts: Counter[str] = Counter()
        self._left: tuple[float, float | None] | None = None  # when it was computed, seconds until the end
        self._rates: dict[bool, tuple[float, float | None]] = {}  # kind -> (when it was computed, seconds per epoch)

    def update(self, rows: Sequence[Trial]) -> list[Change]:
        """Take rows that may be new or may have changed; return those that have, in order, each with its old state."""
        now, changes = self._clock(), []
        with self._lock:
            for row in sorted(rows, key=lambda row: row.number):
                old = self._seen.get(row.number)
                if old is None or old.row != row:
                    self._seen[row.number] = _Seen(row, now)
                    self._counts[row.status] += 1
                    if old is not None:
                        self._counts[old.row.status] -= 1
                    changes.append((old.row if old else None, row))
            self._slots = max(self._slots, self._counts["running"])
        return changes

    def grow(self, total: int) -> None:
        """Expect `total` trials from now on, as the study was extended."""
        self._total = total

    @property
    def slots(self) -> int:
        """Return the largest number of trials that were seen to run at the same time, at least 1."""
        return self._slots

    @property
    def rows(self) -> list[Trial]:
        """Return the rows in the order of their numbers."""
        with self._lock:
            seen = list(self._seen.values())
        return sorted((each.row for each in seen), key=lambda row: row.number)

    @property
    def total(self) -> int:
        return max(self._total, len(self._seen))

    @property
    def elapsed(self) -> float:
        return self._clock() - self._started

    def count(self, *statuses: str) -> int:
        return sum(self._counts[status] for status in statuses)

    @property
    def ended(self) -> int:
        return self.count(*FINISHED, "failed")

    def age(self, row: Trial) -> float:
        """Return the seconds since a running row last changed; 0 for other rows, whose time does not pass."""
        return self._clock() - self._seen[row.number].at if row.status == "running" else 0.0

    def newest_ended(self) -> list[int]:
        """Return the numbers of the trials that have ended, the latest first."""
        with self._lock:
            ended = [seen for seen in self._seen.values() if seen.row.status in (*FINISHED, "failed")]
        return [seen.row.number for seen in sorted(ended, key=lambda seen: (seen.at, seen.row.number), reverse=True)]

    def trial_left(self, row: Trial) -> float | None:
        """Return the seconds until a running trial ends or pauses at a rung, or None if nothing has been measured."""
        return _trial_left(row, self.age(row), self._rate(row.source == "baseline"))

    def _rate(self, baseline: bool) -> float | None:
        """Return `seconds_per_epoch`, computed anew at most every `RATE_SECONDS`, because it looks at all rows."""
        known, now = self._rates.get(baseline), self._clock()
        if known is None or known[1] is None or now - known[0] >= RATE_SECONDS:
            known = self._rates[baseline] = (now, seconds_per_epoch(self.rows, baseline))
        return known[1]

    def left(self) -> float | None:
        """Return the seconds until the study ends, or None if nothing has been measured.

        They are computed anew at most every `RATE_SECONDS`, because all rows count.
        """
        known, now = self._left, self._clock()
        if known is None or known[1] is None or now - known[0] >= RATE_SECONDS:
            rows = self.rows
            left = sweep_left(rows, {row.number: self.age(row) for row in rows}, self.total, self._slots)
            known = self._left = (now, left)
        return known[1]

    def ended_of_total(self) -> str:
        """Return how many trials have ended, such as "3/10 trials"."""
        return f"{self.ended}/{self.total} trials"

    def counts(self) -> str:
        """Return the number of trials in each state, such as "2 done, 1 failed, 1 running"."""
        counted = [(self.count(status), status) for status in ("done", "stopped", "failed", "running", "paused")]
        return ", ".join(f"{number} {status}" for number, status in counted if number) or "none started"


def seconds_per_epoch(rows: Sequence[Trial], baseline: bool = False) -> float | None:
    """Return the mean seconds of an epoch, for baselines only or for the other trials only.

    The two are kept apart because plain training is several times cheaper. While no trial of the kind has finished an
    epoch, all rows are used; None if no row has.
    """
    measured = [row for row in rows if row.epoch > 0 and row.seconds > 0]
    kind = [row for row in measured if (row.source == "baseline") == baseline] or measured
    epochs = sum(row.epoch for row in kind)
    return sum(row.seconds for row in kind) / epochs if epochs else None


def _trial_left(row: Trial, age: float, rate: float | None) -> float | None:
    """Return the seconds until a running trial ends or pauses at a rung, `age` seconds after its row last changed."""
    if row.seconds_left is not None:
        return max(0.0, row.seconds_left - age)
    if rate is None or not row.epochs:
        return None
    return max(0.0, (row.until - row.epoch) * rate - age)


def sweep_left(rows: Sequence[Trial], ages: Mapping[int, float], total: int, slots: int) -> float | None:
    """Return the seconds until the last trial ends, or None if nothing has been measured.

    Args:
        rows: all trials known so far; those up to `total` that are not among them are still to be proposed.
        ages: seconds since each running row last changed, by number.
        total: number of trials of the study.
        slots: number of trials that run at the same time.
    """
    rates = {kind: seconds_per_epoch(rows, kind) for kind in (False, True)}
    ends: list[float] = []
    for row in rows:
        if row.status == "running":
            left = _trial_left(row, ages.get(row.number, 0.0), rates[row.source == "baseline"])
            if left is None:
                return None
            ends.append(left)
    lengths = []
    for row in rows:
        if row.status == "queued":
            lengths.append((_expected(row, row.epoch) if row.epochs else _usual_epochs(rows), row.source == "baseline"))
        elif row.status in ("running", "paused") and row.rungs:  # what follows its next rung, if it is promoted there
            at = row.epoch if row.status == "paused" else row.until
            lengths.append((_expected(row, at, decided=False), False))
    all_planned = all(row.source == "baseline" for row in rows)  # a list of runs without a search
    proposal = next((row for row in rows if row.rungs), None)
    usual = _usual_epochs(rows) if proposal is None else _expected(proposal, 0)
    lengths += [(usual, all_planned)] * (total - len(rows))
    ends += [0.0] * (slots - len(ends))
    heapq.heapify(ends)
    for epochs, kind in lengths:
        rate = rates[kind]
        if rate is None:
            return None
        heapq.heapreplace(ends, ends[0] + epochs * rate)  # the next trial takes the slot that is free first
    return max(ends, default=0.0)


def _expected(row: Trial, epoch: int, *, decided: bool = True) -> float:
    """Return the mean number of epochs that a trial trains after an epoch, if it is promoted as often as others.

    Args:
        row: the trial.
        epoch: the epoch.
        decided: whether it goes on from this epoch for certain; otherwise the epoch is a rung that is to be decided.
    """
    left, share = 0.0, 1.0 if decided else KEPT
    for stop in [*(rung for rung in row.rungs if rung > epoch), row.epochs]:
        left += share * (stop - epoch)
        epoch, share = stop, share * KEPT
    return max(left, 0.0)


def _usual_epochs(rows: Sequence[Trial]) -> float:
    """Return the mean number of epochs of a trial, which is below its schedule if trials are stopped early."""
    searched = [row for row in rows if row.source != "baseline"] or rows
    taken = [row.epoch for row in searched if row.status in FINISHED and row.epoch]
    return sum(taken) / len(taken) if taken else float(max((row.epochs for row in searched), default=0))
