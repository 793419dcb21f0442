"""Track studies in MLflow: one experiment, with a parent run for each study and a child run for each of its runs.

Only the driver process uses this module. The ledger, not MLflow, decides what is done, so that a tracking server that
fails causes warnings but never the loss of a trial. Here everything is put into an outbox; `sender` makes the calls.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from erat.errors import UserError
from orchestration.storage.workspace import Workspace
from orchestration.tracking.found import FoundRun
from orchestration.tracking.opening import open_store
from orchestration.tracking.outbox import Entry, Outbox, Spool, one_line
from orchestration.tracking.sender import Sender
from orchestration.tracking.store import without_password
from orchestration.tracking.text import PARENT, RUN_NAME, epoch_metrics, run_tags

Ending = Literal["done", "stopped", "failed", "interrupted", "paused"]

MLFLOW_STATUS = {
    "done": "FINISHED",
    "stopped": "FINISHED",
    "failed": "FAILED",
    "interrupted": "KILLED",
    "paused": "SCHEDULED",  # it may go on
}
_UNSENT = "unsent-"  # the beginning of a substitute for an id of MLflow


class Tracker:
    """A writer of runs to one MLflow store. `Tracker.open` creates it.

    Methods that begin a run return its MLflow id. While the server does not answer they return a substitute, which all
    methods of this tracker accept.

    Attributes:
        uri: URI of the store.
    """

    def __init__(self, sender: Sender, uri: str, spool: Spool | None = None) -> None:
        self._sender = sender
        self.uri = uri
        self._outbox = Outbox(
            sender.make, sender.hopeless, spool, merged={"_send_epoch": "_send_epochs"}, lasting=self._lasting
        )
        self._begun: dict[tuple[str, ...], str] = {}  # what `_run_key` returns -> the substitute of the run
        self._put_epochs: dict[str, int] = {}  # substitute or MLflow's id -> last epoch that was sent or waits
        self._take_over(self._outbox.waiting)

    @classmethod
    def open(cls, workspace: Workspace) -> Tracker:
        """Open the store that MLFLOW_TRACKING_URI names, or else the SQLite file of `workspace`; create a missing one.

        Raises:
            UserError: The store cannot be reached or created. For a server this takes about ten seconds.
        """
        client, uri, experiment_id, spool = open_store(workspace)
        return cls(Sender(client, experiment_id), uri, spool)

    def start_parent(
        self,
        name: str,
        *,
        kind: str,
        tags: Mapping[str, Any],
        params: Mapping[str, Any] | None = None,
        at: float | None = None,
    ) -> str:
        """Begin the parent run of a whole command, such as a study, or reopen the one of this name; return its id.

        Args:
            name: name of the study.
            kind: "sweep" or "audit".
            tags: further tags.
            params: params of the parent run.
            at: when it began, in seconds since 1970. None: now.
        """
        own = {"sweep": name, "role": "parent", "kind": kind, "status": "running", RUN_NAME: name}
        return self._start({**tags, **own}, params or {}, at=at)

    @contextmanager
    def in_background(self, before: Callable[[], None] | None = None) -> Iterator[None]:
        """Send in a thread during the block, and what comes at about the same time together.

        Methods that begin a run return a substitute; `id_of` tells the id once it is known. At the end of the block,
        everything has been sent, or is kept.

        Args:
            before: called before something is sent.

        Raises:
            OSError: What waits cannot be kept on disk.
        """
        with self._outbox.in_background(before):
            yield

    def then(self, call: Callable[[], None]) -> None:
        """Call a function when everything until now has been sent, or is kept on disk until it can be sent."""
        self._outbox.then(call)

    def id_of(self, run_id: str) -> str:
        """Return MLflow's id of a run, given the id or a substitute; the substitute while the id is not known."""
        return self._sender.id_of(run_id)

    def is_known(self, run_id: str) -> bool:
        """Return whether `id_of` returns MLflow's id of a run."""
        return not self.id_of(run_id).startswith(_UNSENT)

    def start_run(
        self,
        cell: str,
        config: Mapping[str, Any],
        *,
        parent: str | None,
        sweep: str | None,
        source: str,
        known: str | None = None,
        fresh: bool = False,
        tags: Mapping[str, Any] | None = None,
        at: float | None = None,
    ) -> str:
        """Begin to track a run in MLflow, or reopen its MLflow run under this parent; return the id in MLflow.

        Args:
            cell: digest of the configuration.
            config: dotted key -> value, which become the params.
            parent: id that `start_parent` returned; None for a run outside any study.
            sweep: name of the study; None for a run outside any study.
            source: where the run comes from ("paper", "optuna", "baseline", ...).
            known: MLflow's id of its run from earlier. If MLflow does not have that, the run is searched for.
            fresh: whether there is certainly no run yet, so that none is searched for.
            tags: further tags.
            at: when it began, in seconds since 1970. None: now.
        """
        every = run_tags(cell, config, parent=parent, sweep=sweep, source=source, tags=tags)
        return self._start(every | {"status": "running"}, config, known, fresh=fresh, at=at)

    def log_epoch(self, run_id: str, row: Mapping[str, Any], epoch: int) -> None:
        """Log every finite number of `row`, a line of metrics.jsonl, as step `epoch`, counted from 1.

        Loss terms are named `loss/NAME`. An epoch at or before the last one that is stored or waits is left out, so
        that logging all epochs of a run again adds only those that are missing.
        """
        if epoch > self._put_epochs.get(run_id, 0):
            self._put_epochs[run_id] = epoch
            self._outbox.put("_send_epoch", run_id, epoch_metrics(row), epoch, _milliseconds())

    def add_missing_epochs(self, run_id: str, rows: Sequence[Mapping[str, Any]], until: float | None = None) -> None:
        """Log those epochs of a run that MLflow lacks, wherever they stand among the others.

        Args:
            run_id: id that `start_run` returned.
            rows: lines of metrics.jsonl.
            until: when the last of them ended, in seconds since 1970. None: now.
        """
        epochs, ended = [], time.time() if until is None else until
        for row in reversed(rows):
            epochs.append([epoch_metrics(row), row["epoch"], _milliseconds(ended)])
            ended -= row["epoch_seconds"]
        self._outbox.put("_send_missing", run_id, epochs[::-1])

    def epochs_of(self, run_id: str) -> set[int]:
        """Return the epochs that MLflow has of a run.

        Raises:
            UserError: The store cannot be read.
        """
        with self._reading():
            return self._sender.epochs_of(run_id)

    def runs_of(self, sweep: str) -> Iterator[FoundRun]:
        """Yield the runs that MLflow has of a study, its parent run first and then the latest.

        Raises:
            UserError: The store cannot be read.
        """
        with self._reading():
            yield from self._sender.runs_of(sweep)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            raise UserError(
                f"MLflow's store {without_password(self.uri)} cannot be read: {one_line(error)}; try again later"
            ) from error

    def finish(
        self,
        run_id: str,
        status: Ending,
        summary: Mapping[str, float | None],
        artifacts: Path | None = None,
        error: str | None = None,
        tags: Mapping[str, Any] | None = None,
        at: float | None = None,
    ) -> None:
        """End a run, or say that it pauses.

        Args:
            run_id: id that `start_run` or `start_parent` returned.
            status: how the run ended, or "paused".
            summary: final metrics; values that are not finite numbers are left out.
            artifacts: folder whose files are stored with the run.
            error: why the run failed; its last 5,000 characters become the tag `error`.
            tags: further tags.
            at: when it ended, in seconds since 1970. None: now.
        """
        own = {"status": status} | ({"error": error} if error else {})
        self._finish(run_id, status, summary, artifacts, {**(tags or {}), **own}, at)

    def add(self, run_id: str, metrics: Mapping[str, float | None], tags: Mapping[str, Any] | None = None) -> None:
        """Add to a run, ended or not, what is known of it only later.

        Args:
            run_id: id that `start_run` or `start_parent` returned.
            metrics: final metrics; values that are not finite numbers are left out.
            tags: further tags.
        """
        self._outbox.put("_send_summary", run_id, metrics, tags or {}, _milliseconds())

    def finish_parent(
        self,
        run_id: str,
        *,
        summary: Mapping[str, float | None],
        artifacts: Path | None = None,
        ok: bool,
        tags: Mapping[str, Any] | None = None,
        at: float | None = None,
    ) -> None:
        """End the parent run of a study.

        Args:
            run_id: id that `start_parent` returned.
            summary: final metrics; values that are not finite numbers are left out.
            artifacts: folder whose files are stored with the run.
            ok: whether no run of the study failed.
            tags: further tags.
            at: when it ended, in seconds since 1970. None: now.
        """
        status = "done" if ok else "failed"
        self._finish(run_id, status, summary, artifacts, {**(tags or {}), "status": status}, at)

    def flush(self) -> int:
        """Try again to send the calls that wait; return the number of those left, which the next process will send."""
        return self._outbox.flush()

    def _take_over(self, entries: Sequence[Entry]) -> None:
        """Know again the runs that ended processes began, and their epochs, from the calls that they left."""
        for name, arguments in entries:
            match name, arguments:
                case "_send_start", [str(stand_in), dict(tags), *_]:
                    self._begun[_run_key(tags)] = stand_in
                    self._sender.opening.add(stand_in)
                case "_send_epoch", [str(run), _, int(epoch), *_]:
                    self._put_epochs[run] = max(epoch, self._put_epochs.get(run, 0))

    def _lasting(self, entry: Entry) -> Entry:
        """Return a call with MLflow's ids for the substitutes whose ids are known: no other process knows these."""
        name, (run, *rest) = entry
        if name != "_send_start":
            return name, [self.id_of(run), *rest]
        tags, *others = rest
        return name, [run, {key: self.id_of(tag) if key == PARENT else tag for key, tag in tags.items()}, *others]

    def _start(
        self,
        tags: Mapping[str, Any],
        params: Mapping[str, Any],
        known: str | None = None,
        *,
        fresh: bool = False,
        at: float | None = None,
    ) -> str:
        stand_in = self._begun.get(_run_key(tags))
        if stand_in is None:  # unique over all processes, because another one may have to send it
            stand_in = self._begun[_run_key(tags)] = f"{_UNSENT}{uuid.uuid4().hex}"
            if known is not None and known in self._put_epochs:
                self._put_epochs[stand_in] = self._put_epochs[known]
            if fresh:
                self._sender.fresh.add(stand_in)
        self._sender.opening.add(stand_in)
        self._outbox.put("_send_start", stand_in, tags, params, _milliseconds(at), *([known] if known else []))
        return stand_in if stand_in in self._sender.opening else self.id_of(stand_in)

    def _finish(
        self,
        run_id: str,
        status: str,
        summary: Mapping[str, Any],
        artifacts: Path | None,
        tags: Mapping[str, Any],
        at: float | None,
    ) -> None:
        self._outbox.put("_send_summary", run_id, summary, tags, _milliseconds(at))
        if artifacts is not None:
            self._outbox.put("_send_artifacts", run_id, artifacts)
        # This call is the last one, so that a run with the status "finished" is complete.
        self._outbox.put("_send_end", run_id, MLFLOW_STATUS[status], _milliseconds(at))


def _run_key(tags: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what tells runs apart, given their tags: the study, the configuration, and whether it is a parent run."""
    return tuple(str(tags.get(key)) for key in ("sweep", "cell", "role"))


def _milliseconds(at: float | None = None) -> int:
    """Return a time in seconds since 1970, or else the present time, in milliseconds since 1970."""
    return int((time.time() if at is None else at) * 1000)
