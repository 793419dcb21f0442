"""The driver of a running study, which keeps ledger, tracker and view up to date. It imports neither Ray nor MLflow."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from erat.config import RunConfig
from erat.result import RunResult, summarise
from orchestration.report.notation import number_of
from orchestration.run.directory import METRICS, RESULT_FILE, RunDirectory, stop_request
from orchestration.run.heartbeat import is_running
from orchestration.run.places import Place, Places
from orchestration.run.resources import per_device
from orchestration.run.retries import WORKER_DIED, Retries, Retry
from orchestration.search.ends import read_end, track_end
from orchestration.search.observations import Sampler
from orchestration.search.queue import Queue
from orchestration.storage.background import giving_way
from orchestration.storage.lease import session_words
from orchestration.storage.workspace import Workspace
from orchestration.study.ledger import Ledger
from orchestration.study.recorded import StudyRecord
from orchestration.study.registries import PRUNERS
from orchestration.study.spaces import Confirmation
from orchestration.study.spec import StudySpec
from orchestration.study.trial import Trial
from orchestration.tracking.tracker import Tracker


@dataclass
class StudyDriver:
    """A listener to a running study, which keeps the ledger, the tracker and the view up to date.

    Args:
        name: name of the study.
        spec: its specification.
        total: number of trials of the search, without the listed runs.
        workspace: the workspace of the study.
        ledger: its ledger.
        tracker: where runs are tracked.
        parent: the tracker's id of the study's run.
        sampler: proposes the search's trials.
        view: called with the trials that an event has changed.
        work_of: returns how long a run is, in any unit, so that the longest listed runs begin first. None: they begin
            in their order.
        ready: number of a trial -> whether it may begin.
        pool: makes proposals beside the caller; see `Queue`.
    """

    name: str
    spec: StudySpec
    total: int
    workspace: Workspace
    ledger: Ledger
    tracker: Tracker
    parent: str
    sampler: Sampler
    view: Callable[[list[Trial]], None] = lambda trials: None
    work_of: Callable[[RunConfig], float] | None = None
    ready: Callable[[int], bool] = lambda number: True
    pool: Executor | None = None

    def __post_init__(self) -> None:
        work_of = self.work_of
        self.queue = make_queue(
            self.spec,
            self.total,
            self.name,
            self.ledger,
            self.sampler,
            on_proposed=self._proposed,
            on_promoted=self._promoted,
            on_stopped=self._stopped_at_rung,
            work_of=(lambda overrides: work_of(self.spec.config(overrides))) if work_of else lambda overrides: 0.0,
            ready=self.ready,
            pool=self.pool,
        )
        record = self.ledger.studies.get(self.name)
        self._earlier = frozenset(record.proposals) if record else frozenset()  # proposed before this session
        self._runs: dict[int, str] = {}  # number -> the tracker's id of the run
        self._run_of: dict[str, str] = {}  # cell -> the same
        self._rows: dict[int, list[dict[str, Any]]] = {}  # number of a running trial -> the figures of each epoch
        self._logged: dict[int, int] = {}  # number of a running trial -> number of epochs that the tracker has
        self._retries = Retries()
        self._request = stop_request(self.name, self.workspace)
        self._session = session_words(self.name, self.workspace.root)
        gpu = self.spec.base.resources.gpu
        self.places = Places(shared=per_device(gpu), each=max(1, int(gpu)))
        for where in list(record.out) if record else ():  # whoever starts a study again may have mended them
            self.ledger.append("place", sweep=self.name, where=where, out=None)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Let ledger and tracker write beside the caller during the block; at its end, both have written everything.

        Raises:
            OSError, UserError: The ledger, or what waits for the tracker, cannot be written.
        """
        # Only a run whose proposal is in the ledger may be in MLflow: `_track_start` relies on that.
        with giving_way(), self.ledger.in_background(), self.tracker.in_background(before=self.ledger.flush):
            yield
        for number, run in self._runs.items():
            if (trial := self.queue.trials[number]).mlflow_run_id != (known := self.tracker.id_of(run)):
                self.queue.record(number, trial.so_far, known)

    # -- calls from the search --------------------------------------------------------------------------------------

    def trial_parameters(self, trial: Trial) -> dict[str, Any]:
        """Prepare the directory of a trial's run, and return the parameters for its worker as JSON values."""
        config = self.spec.config(trial.params)
        self._directory(trial.cell).prepare()
        return {
            "number": trial.number,
            "cell": trial.cell,
            "workspace": str(self.workspace.root),
            "config": config.model_dump_json(),
            "stop_request": self._request,
            "session": self._session_of(trial),
            "pause_after": self.queue.pauses_after(trial.number),
        }

    def started(self, number: int) -> None:
        """Record that a trial has begun, or has resumed from its checkpoint."""
        self.places.started(number)
        self._track_start(number)
        self._logged.pop(number, None)
        self._read(number)
        self._progressed(number, "running")

    def epoch(self, number: int, figures: str | None = None) -> None:
        """Record that a trial has finished an epoch.

        Args:
            number: number of the trial.
            figures: the figures of the epoch, as JSON; see `orchestration.cluster.execution`. Nobody but this driver
                opens them. None: the metrics in the directory of the run are read.
        """
        self.ledger.check()
        self.places.progressed(number)
        rows = self._rows.setdefault(number, [])
        row = None if figures is None else json.loads(figures)
        if row is None or row["epoch"] > len(rows) + 1:
            self._read(number)
        else:
            again = row["epoch"] <= len(rows)
            rows[row["epoch"] - 1 :] = [row]  # after a restart, an epoch may come again
            if self.workspace.place is not None:  # `status` looks at this machine, and the worker writes elsewhere
                self._directory(self.queue.trials[number].cell).copy_metrics(rows, anew=again)
        self._progressed(number, self.queue.trials[number].status)

    def _read(self, number: int) -> None:
        run = self._directory(self.queue.trials[number].cell)
        run.fetch(METRICS)
        self._rows[number] = run.read_metrics()

    def _progressed(self, number: int, status: str, *, whole: bool = False) -> None:
        # Beyond its next rung another study trained the run. No decision and no proposal may depend on that, unless the
        # run is done, which counts in every study.
        rows = self._rows[number][: None if whole else self.queue.pauses_after(number)]
        trial = self.queue.record(number, summarise(self.queue.trials[number].cell, status, rows))
        for row in rows[self._logged.get(number, 0) :]:
            self.tracker.log_epoch(self._runs[number], row, row["epoch"])
        self._logged[number] = max(self._logged.get(number, 0), len(rows))
        self.view([trial])

    def stop(self, number: int, epoch: int) -> None:
        """Ask a trial to stop after this epoch. Later epochs that it may have begun do not count."""
        self._directory(self.queue.trials[number].cell).ask_to_stop(self._request, epoch)

    def heard(self, number: int, words: str) -> None:
        """Remember Ray's message on the death of a trial's worker; see `Retries.heard`."""
        self._retries.heard(number, words)

    def landed(self, number: int, place: Place) -> bool:
        """Take note where a trial's worker has started; return whether it may train there.

        If it may not, the trial is queued again: another worker is to take it.
        """
        if self.places.landed(number, place):
            return True
        self.places.left_alone(number)
        self._queue_again(self.queue.trials[number])
        return False

    def ended(self, number: int) -> RunResult | Retry:
        """Record how a trial ended or paused and return its result, or return a `Retry` if it is to run again."""
        trial = self.queue.trials[number]
        run = self._directory(trial.cell)
        pause_after = self.queue.pauses_after(number)
        result = read_end(
            run, number, self._request, pause_after, self._retries, self._lacked_memory, self._session_of(trial)
        )
        if isinstance(result, Retry):
            warnings.warn(f"trial {number_of(trial)}: {result.reason}; it goes on", stacklevel=2)
            if result.cause == "death":
                self._say_of_places(self.places.died(number, result.reason, again=result.again))
            self.places.left_alone(number)
            self._queue_again(trial)
            return result
        if result.status != "failed":
            self._say_of_places(self.places.ended(number))
        else:
            died = self.places.died(number, "", again=False) if (result.error or "").startswith(WORKER_DIED) else []
            self._say_of_places([*died, *self.places.gave_up(number)])
        if number not in self._runs:
            self._track_start(number)
        if len(self._rows.setdefault(number, [])) != result.epochs:
            self._read(number)
        self._progressed(number, trial.status, whole=result.status == "done")
        del self._rows[number], self._logged[number]
        self.queue.record(number, result)
        withdraw = partial(run.withdraw_stop, self._request) if result.status == "stopped" else None
        self._record_end(self._runs[number], result, run, withdraw)
        self.view([self.queue.trials[number]])
        return result

    def _record_end(
        self,
        run_id: str,
        result: RunResult,
        run: RunDirectory,
        then: Callable[[], None] | None = None,
        *,
        at_rung: bool = False,
    ) -> None:
        """Pass the result of a run to the tracker and then to the ledger, and call `then` when it is on the disk.

        The ledger comes last: if the driver dies before, the next one finds the run's result again and completes what
        the tracker lacks.
        """
        track_end(self.tracker, run_id, result, run, at_rung=at_rung)
        known = self.tracker.id_of(run_id) if self.tracker.is_known(run_id) else None
        self.ledger.note(result, sweep=self.name, mlflow_run_id=known)
        self.tracker.then(
            lambda: self.ledger.finish(
                result, sweep=self.name, mlflow_run_id=self.tracker.id_of(run_id), then=then, noted=True
            )
        )

    def interrupted(self) -> None:
        """Record that the study was interrupted: the trials that ran are queued again."""
        for trial in self.trials:
            if trial.status == "running":
                self._queue_again(trial)
                self.tracker.finish(self._runs[trial.number], "interrupted", {}, None, None)

    # -- trials -----------------------------------------------------------------------------------------------------

    @property
    def trials(self) -> list[Trial]:
        """Return all trials made so far, in the order of their numbers."""
        return [self.queue.trials[number] for number in sorted(self.queue.trials)]

    def _queue_again(self, trial: Trial) -> None:
        self.view([self.queue.record(trial.number, replace(trial.so_far, status="queued"))])

    def _proposed(self, trial: Trial) -> None:
        known = self.ledger.studies[self.name].proposals.get(trial.number)
        if known is None or known.cell != trial.cell:  # they differ if the known one could not be made and was left out
            self.ledger.append(
                "proposed",
                sweep=self.name,
                number=trial.number,
                params=trial.params,
                source=trial.source,
                cell=trial.cell,
            )
        self.view([trial])

    def _promoted(self, trial: Trial, epoch: int) -> None:
        self.ledger.append("promoted", sweep=self.name, number=trial.number, epoch=epoch)
        if trial.status == "paused":  # the queue changes it in a moment
            self.view([replace(trial, result=replace(trial.so_far, status="queued"), promoted=epoch)])

    def _stopped_at_rung(self, trial: Trial) -> None:
        run = self._directory(trial.cell)
        run_id = (
            self._run_of.get(trial.cell)
            or self.ledger.studies[self.name].tracked.get(trial.cell)
            or trial.mlflow_run_id
        )
        if run_id is None:  # MLflow was away when the trial paused, in a session before this one
            self._track_start(trial.number)
            run_id = self._runs[trial.number]
        run.fetch_artifacts()
        self._record_end(run_id, trial.so_far, run, partial(self._drop_checkpoints, run), at_rung=True)
        self.view([trial])

    def _session_of(self, trial: Trial) -> str:
        """Return in whose name the workers of a trial hold its run on the storage."""
        return f"trial {trial.number} of {self._session}"

    def _lacked_memory(self, number: int, error: str) -> bool:
        """Take note that a trial ran out of memory; return whether fewer trials than usual ran beside it."""
        fewer, said = self.places.lacked_memory(number, of_device="CUDA" in error)
        self._say_of_places(said)
        return fewer

    def _say_of_places(self, said: list[str]) -> None:
        """Warn of what followed for the places of the cluster, and keep in the ledger which of them are excluded."""
        for line in said:
            warnings.warn(line, stacklevel=3)
        known = self.ledger.studies[self.name].out
        out = {self.places.words(key): why for key, why in self.places.out.items()}
        for where in known.keys() - out.keys():
            self.ledger.append("place", sweep=self.name, where=where, out=None)
        for where in out.keys() - known.keys():
            self.ledger.append("place", sweep=self.name, where=where, out=out[where])

    def _track_start(self, number: int) -> None:
        trial, mine = self.queue.trials[number], self.ledger.studies[self.name]
        before = self._run_of.get(trial.cell)  # from this session
        known = self.tracker.id_of(before) if before and self.tracker.is_known(before) else mine.tracked.get(trial.cell)
        run = self.tracker.start_run(
            trial.cell,
            trial.config,
            parent=self.parent,
            sweep=self.name,
            source=trial.source,
            known=known,
            # A driver that died may have begun to track what an earlier session proposed, though the ledger lacks it.
            fresh=known is None and before is None and number not in self._earlier,
            tags=trial.placed_tags(),
        )
        self._runs[number] = self._run_of[trial.cell] = run
        self.queue.record(number, trial.so_far, run)
        self.tracker.then(partial(self._tracked, trial.cell, run))

    def _tracked(self, cell: str, run: str) -> None:
        found = self.tracker.id_of(run)
        if self.tracker.is_known(run) and self.ledger.studies[self.name].tracked.get(cell) != found:
            self.ledger.append("tracked", sweep=self.name, cell=cell, mlflow_run_id=found)

    def _drop_checkpoints(self, run: RunDirectory) -> None:
        """Delete the checkpoints of a run that was stopped at a rung, unless something may go on from them."""
        run.fetch(RESULT_FILE)
        finished = run.read_result()
        # Another study, or the command `train`, may be at work on this run, or may have finished it.
        done = finished is not None and finished.status == "done"
        if not (done or is_running(run) or self.ledger.is_wanted(run.cell, but=self.name)):
            run.drop_checkpoints()

    def _directory(self, cell: str) -> RunDirectory:
        return RunDirectory(self.workspace, cell)


def make_queue(
    spec: StudySpec,
    total: int,
    name: str,
    ledger: Ledger,
    sampler: Sampler,
    *,
    trial_of: Callable[[int, str, dict[str, Any]], Trial] | None = None,
    windows: Mapping[int, int] | None = None,
    **more: Any,
) -> Queue:
    """Return the queue of a study's trials, according to its specification and the ledger.

    Args:
        spec: specification of the study, whose window is settled.
        total: number of trials of the search, without the listed runs.
        name: name of the study.
        ledger: the ledger, whose proposals and decisions of this study are kept.
        sampler: proposes the search's trials.
        trial_of: makes a trial from its number, source and overrides. None: those of the specification are made, with
            their results in the ledger.
        windows: number of trials -> window, as `settings.settled` returns it. None: those of the ledger.
        more: further arguments of the queue.
    """
    record = ledger.studies.get(name) or StudyRecord(name, {})
    space, epochs = spec.space, spec.base.train.epochs
    assert spec.search is None or space.window != "auto", "the window is settled before the study begins"
    confirm = space.confirm if isinstance(space.confirm, Confirmation) else None
    return Queue(
        runs=spec.runs,
        points=spec.points,
        total=total,
        window=1 if space.window == "auto" else space.window,  # a list of runs has none
        sampler=sampler,
        pruner=PRUNERS[space.pruner](space, epochs),
        block=space.block,
        known=spec.proposals(record),
        trial_of=trial_of or (lambda *made: ledger.with_outcome(spec.trial(*made), name)),
        epochs=epochs,
        totals=record.totals,
        windows=record.windows if windows is None else windows,
        promoted=record.promoted,
        confirm_top=confirm.top if confirm else 0,
        confirm_seeds=confirm.seeds if confirm else 1,
        **more,
    )
