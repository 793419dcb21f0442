"""Put right what MLflow has of a study, from the ledger and the directories of its runs, which alone decide.

What a driver tells MLflow arrives in order and is kept while the server is away. Something may be lost nevertheless:
the kept calls were deleted or damaged, the server refused some, or another store is used now. Whatever MLflow lacks can
be made again from what is on the disk. A run that is as it must be is not touched, so a second call changes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from orchestration.report.summary import best
from orchestration.run.directory import METRICS, RunDirectory
from orchestration.run.heartbeat import is_running
from orchestration.search.ends import ending, track_winner
from orchestration.storage.workspace import Workspace
from orchestration.study.confirmations import winner
from orchestration.study.ledger import Ledger
from orchestration.study.recorded import RecordedResult
from orchestration.study.spec import StudySpec
from orchestration.study.status import confirmations_of
from orchestration.study.trial import FINISHED, Trial
from orchestration.tracking.found import FoundRun
from orchestration.tracking.text import RUN_NAME, TAG_LENGTH, as_tags, run_tags
from orchestration.tracking.tracker import MLFLOW_STATUS, Tracker

Show = Callable[[int, int], None]


@dataclass
class Synced:
    """What was put right: numbers of runs, parent run included, and of epochs.

    Attributes:
        runs: runs that were looked at.
        made: runs that MLflow lacked, and has now.
        mended: runs of which something was missing or wrong.
        epochs: epochs that were missing.
        whole: whether all runs were looked at.
    """

    runs: int = 0
    made: int = 0
    mended: int = 0
    epochs: int = 0
    whole: bool = True

    def content(self) -> dict[str, int]:
        """Return the numbers by name."""
        return {name: value for name, value in asdict(self).items() if name != "whole"}


@dataclass
class _Sync:
    name: str
    spec: StudySpec
    workspace: Workspace
    ledger: Ledger
    tracker: Tracker
    every_epoch: bool
    enough: Callable[[], bool]

    def __post_init__(self) -> None:
        self.done = Synced()
        self.record = self.ledger.studies[self.name]
        self.parent: str | None = None

    # -- runs -------------------------------------------------------------------------------------------------------

    def trials(self) -> dict[str, Trial]:
        """Return cell -> trial; of several trials with one configuration the first that ended, or else the first."""
        chosen: dict[str, Trial] = {}
        for trial in self.spec.proposals(self.record).values():
            known = chosen.get(trial.cell)
            if known is None or not (self._now(known).ended or not self._now(trial).ended):
                chosen[trial.cell] = trial
        return chosen

    def _now(self, trial: Trial) -> Trial:
        return self.ledger.with_outcome(trial, self.name)

    def children(self, show: Show) -> bool:
        """Put the runs of the study right; return whether none is left, because it was not enough before."""
        trials, found = self.trials(), dict[str, tuple[str, bool]]()
        for run in self.tracker.runs_of(self.name):
            cell = run.tags.get("cell", "")
            if self.enough():
                return False
            if run.is_parent or cell not in trials:
                continue
            if cell not in found or run.run_id == self.record.tracked.get(cell):  # the ledger knows which is the run
                found[cell] = run.run_id, self._is_right(run, trials[cell])
        for number, (cell, proposed) in enumerate(trials.items(), start=1):
            if self.enough():
                return False
            known, right = found.get(cell, (None, False))
            if not (right and not self.every_epoch):
                self._put_right(self._whole(proposed), known, right)
            elif known != self.record.tracked.get(cell):
                self._remember(cell, known)
            self.done.runs += known is not None
            show(number, len(trials))
        return True

    def _whole(self, proposed: Trial) -> Trial:
        return self._now(self.spec.completed(proposed))

    def _is_right(self, run: FoundRun, proposed: Trial) -> bool:
        """Return whether a run is as it must be, apart from its epochs."""
        trial = self._whole(proposed)
        directory = RunDirectory(self.workspace, trial.cell)
        if not _has_ending(trial):
            return run.status != "RUNNING" or not self.every_epoch or is_running(directory)
        status, summary, _, error, more = ending(trial.so_far, directory, at_rung=trial.at_rung)
        own = {"status": status, **({"error": error[-TAG_LENGTH:]} if error else {}), **(more or {})}
        tags = as_tags(self._tags(trial)) | {key: str(value) for key, value in own.items()}
        del tags[RUN_NAME]  # which anybody may change on MLflow's page
        return run.status == MLFLOW_STATUS[status] and run.has(tags, trial.config, summary)

    def _tags(self, trial: Trial) -> dict[str, Any]:
        return run_tags(
            trial.cell, trial.config, parent=self.parent, sweep=self.name, source=trial.source, tags=_placed(trial)
        )

    def _put_right(self, trial: Trial, known: str | None, right: bool) -> None:
        """Complete the run of a trial, or make it.

        Args:
            trial: the trial, whole.
            known: MLflow's id of its run. None: MLflow has none.
            right: whether all but its epochs is right already.
        """
        run, ended = RunDirectory(self.workspace, trial.cell), _has_ending(trial)
        recorded = trial.result.sweep if isinstance(trial.result, RecordedResult) else self.name
        if known is None and recorded != self.name and trial.cell not in self.record.tracked:
            return  # another study trained it, or the command `train`, and has its run
        if not ended and (not self.every_epoch or is_running(run)):
            return
        if not (run.path / METRICS).exists():
            run.fetch(METRICS)
        rows = run.read_metrics()[: trial.epoch if ended else trial.until]
        if known is None and not ended and not rows:
            return  # it has not begun
        stored = self.tracker.epochs_of(known) if known is not None else set[int]()
        missing = sum(row["epoch"] not in stored for row in rows)
        if right and not missing:
            return
        at = trial.result.time if isinstance(trial.result, RecordedResult) else None
        moment = time.time() if at is None else at
        run_id = known
        if run_id is None or not right:
            run_id = self.tracker.start_run(
                trial.cell,
                trial.config,
                parent=self.parent,
                sweep=self.name,
                source=trial.source,
                known=known,
                fresh=known is None,
                tags=_placed(trial),
                at=moment - sum(row["epoch_seconds"] for row in rows),
            )
        if missing:
            self.tracker.add_missing_epochs(run_id, rows, moment)
        if not ended and not right:
            self.tracker.finish(run_id, "interrupted", {})
        elif not right:
            if trial.status in FINISHED and not run.artifacts.exists():
                run.fetch_artifacts()
            self.tracker.finish(run_id, *ending(trial.so_far, run, at_rung=trial.at_rung), at=at)
        self.done.made += known is None
        self.done.mended += known is not None
        self.done.epochs += missing
        self.tracker.then(lambda: self._remember(trial.cell, run_id))

    def _remember(self, cell: str, run_id: str | None) -> None:
        """Let the ledger have MLflow's id of a run, which the next session then finds without a search."""
        if run_id is not None and self.tracker.is_known(run_id):
            found = self.tracker.id_of(run_id)
            if self.record.tracked.get(cell) != found:
                self.ledger.append("tracked", sweep=self.name, cell=cell, mlflow_run_id=found)

    # -- the study --------------------------------------------------------------------------------------------------

    def begin(self) -> FoundRun | None:
        """Find the run of the study, or make it; return it as it was found."""
        found = next((run for run in self.tracker.runs_of(self.name) if run.is_parent), None)
        self.parent = found.run_id if found is not None else self._start_parent()
        return found

    def _start_parent(self) -> str:
        return self.tracker.start_parent(self.name, kind="sweep", tags=self._parent_tags(), at=self.record.began)

    def _parent_tags(self) -> dict[str, str]:
        return {"space": self.spec.space.name, "preset": self.spec.preset}

    def end(self, found: FoundRun | None) -> None:
        """Put the run of the study right, after its children."""
        complete = self._whole if self.spec.search is not None else self._now  # only a search asks for configurations
        rows = [complete(trial) for trial in self.spec.proposals(self.record).values()]
        total = self.spec.size(self.record.trials) + confirmations_of(self.spec, self.record.trials, rows)
        over = sum(row.ended for row in rows) >= total
        status = "interrupted" if not over else "failed" if any(row.status == "failed" for row in rows) else "done"
        wanted: dict[str, Any] = {"kind": "sweep", "status": status, **self._parent_tags()}
        figures: Mapping[str, float | None] = {}
        if over:
            chosen, over_seeds = best(rows), winner(rows)
            wanted |= {} if chosen is None else {"best_trial": chosen.number, "best_cell": chosen.cell}
            figures = {} if over_seeds is None else over_seeds.figures()
        self.done.runs += found is not None
        right = found is not None and found.status == MLFLOW_STATUS[status] and found.has(as_tags(wanted), (), figures)
        if right and not (
            over and self.done.made + self.done.mended
        ):  # a run that was made lacks the means of its seeds
            return
        parent = self._start_parent()
        if over:
            metrics, tags = track_winner(self.tracker, rows)
            ends = [row.result.time for row in rows if isinstance(row.result, RecordedResult) and row.result.time]
            folder = self.workspace.report(self.name)
            self.tracker.finish_parent(
                parent,
                summary=metrics,
                artifacts=folder if folder.is_dir() else None,
                ok=status == "done",
                tags=tags,
                at=max(ends, default=None),
            )
        else:
            self.tracker.finish(parent, "interrupted", {})
        self.done.made += found is None
        self.done.mended += found is not None and not right


def sync(
    name: str,
    spec: StudySpec,
    workspace: Workspace,
    ledger: Ledger,
    tracker: Tracker,
    *,
    show: Show = lambda done, total: None,
    resuming: bool = False,
    enough: Callable[[], bool] = lambda: False,
) -> Synced:
    """Put right what MLflow has of a study that nobody drives; return what was done.

    Runs that MLflow lacks are made, epochs that are missing are added, and status, tags and final metrics are set as
    the ledger and the directories of the runs say; so are params where a run has none. What waits in the outbox is sent
    first.

    Args:
        name: name of the study.
        spec: its specification.
        workspace: the workspace, with its storage.
        ledger: its ledger, which gets the ids of the runs.
        tracker: where runs are tracked.
        show: called with the number of trials that were looked at, and their number in all.
        resuming: whether the study goes on in a moment. Then its own run stays as it is, and so do runs that have not
            ended; and MLflow is not asked for the epochs of runs that are right otherwise, as these arrive before a
            run's end does.
        enough: called before each run; once it returns true, the others are left as they are.

    Raises:
        UserError: MLflow cannot be read.
    """
    tracker.flush()
    work = _Sync(name, spec, workspace, ledger, tracker, every_epoch=not resuming, enough=enough)
    found = work.begin()
    work.done.whole = work.children(show)
    if not resuming:
        work.end(found)
    elif found is None and work.parent is not None:
        tracker.finish(work.parent, "interrupted", {})
    tracker.flush()
    return work.done


def _has_ending(trial: Trial) -> bool:
    """Return whether MLflow has heard that a run ended, or that it waits at a rung."""
    return trial.ended or trial.status == "paused"


def _placed(trial: Trial) -> dict[str, int]:
    """Return the tags of `Trial.placed_tags`, and the rung from which a trial went on, which its run keeps."""
    return trial.placed_tags() | ({"rung": trial.promoted} if trial.promoted else {})
