"""Follows the studies of a workspace from outside their drivers, for a page that shows them while they run.

Everything is read from the ledger and the run directories, and nothing is written, so that a workspace that cannot be
written can be followed too.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from erat.errors import UserError
from erat.records import read_words
from orchestration.report.live import last_line, visible
from orchestration.report.notation import baseline_name, header, number_of, state, value, with_spread
from orchestration.report.progress import Progress
from orchestration.report.sections import reason
from orchestration.report.summary import best
from orchestration.run.directory import RunDirectory
from orchestration.run.heartbeat import BEAT_SECONDS, heard, is_driven
from orchestration.storage.workspace import Workspace
from orchestration.study.confirmations import winner
from orchestration.study.ledger import Ledger
from orchestration.study.spec import StudySpec
from orchestration.study.status import not_begun, spec_of, trials_of
from orchestration.study.trial import Trial

LOOK_SECONDS = 1.0  # between two looks at a study that runs
IDLE_SECONDS = 20.0  # between two looks at the others: only the end of a run that two studies share changes them
QUIET_SECONDS = 4 * BEAT_SECONDS  # a running trial that was not heard of for so long is shown as quiet
MOST_TRIALS = 200  # of a study that runs; the others are in its counts and on its page
MOST_LINES = 6  # of the last words of a failed trial
STATES = ("done", "stopped", "failed", "running", "paused", "promoted", "interrupted", "not begun")
Said = dict[str, Any]


class Follower:
    """What there is to show of all studies of a workspace. Any thread may ask.

    Args:
        workspace: the workspace.
        clock: returns seconds that never decrease.
    """

    def __init__(self, workspace: Workspace, clock: Callable[[], float] = time.monotonic) -> None:
        self._workspace, self._clock = workspace, clock
        self._ledger = Ledger(workspace.ledger)
        self._lock = threading.Lock()
        self._specs: dict[str, tuple[int, StudySpec]] = {}  # name -> its number of trials then, its specification
        self._followed: dict[str, Progress] = {}  # the studies that run, or ran while this was looking
        self._studies: dict[str, Said] = {}
        self._trials: dict[str, dict[str, Said]] = {}
        self._next: float | None = None  # when it is worth to look again
        self._looked_at_idle: float | None = None

    @property
    def names(self) -> list[str]:
        """Return the names of all studies at the last look, the newest first."""
        return list(self._ledger.studies)[::-1]

    def look(self) -> Said:
        """Return what is known of all studies; it is read anew at most every `LOOK_SECONDS`.

        Returns:
            "studies": name -> its summary, the newest first; "trials": name -> number as text -> a trial, of those
            studies that run, or have run since the first look. Both are values for JSON.

        Raises:
            UserError: the ledger cannot be read.
        """
        with self._lock:
            now = self._clock()
            if self._next is None or now >= self._next:
                self._look(now)
                # A look at ten thousand runs takes a third of a second, which must not become a third of a core.
                self._next = now + max(LOOK_SECONDS, 9 * (self._clock() - now))
            studies = {name: self._studies[name] for name in self.names}
            return {"studies": studies, "trials": {name: dict(known) for name, known in self._trials.items()}}

    def _look(self, now: float) -> None:
        self._ledger.refresh()
        idle_too = self._looked_at_idle is None or now - self._looked_at_idle >= IDLE_SECONDS
        for name in self._ledger.studies:
            driven, ran = is_driven(self._workspace, name), self._studies.get(name, {}).get("running", False)
            if driven or ran or idle_too or name not in self._studies:
                try:
                    self._read(name, driven)
                except UserError as error:  # its specification is damaged, or of a later version
                    self._studies[name] = {"name": name, "running": False, "note": str(error)}
        if idle_too:
            self._looked_at_idle = now

    def _read(self, name: str, driven: bool) -> None:
        record, spec = self._ledger.studies[name], self._spec(name)
        rows, total = trials_of(self._workspace, self._ledger, name, spec)
        # The lock of a driver on another machine is not seen here, but the heartbeats of its runs are.
        running = driven or any(row.status == "running" for row in rows)
        if running or name in self._followed:
            progress = self._followed.setdefault(name, Progress(total, self._clock))
            progress.grow(total)
            progress.update([*rows, *not_begun(spec, record.trials, rows)])
            shown = visible(progress, MOST_TRIALS)
            self._trials[name] = {str(row.number): self._trial(row, spec.space.columns, progress) for row in shown}
        leader, over = best(rows), winner(rows)
        self._studies[name] = {
            "name": name,
            "about": spec.space.about,
            "kind": "search" if spec.kind == "search" else "matrix" if spec.kind == "matrix" else "list",
            "preset": spec.preset,
            "data": f"{spec.base.data.name}, {spec.base.model.name}",
            "began": record.began,
            "running": running,
            "counts": counted(rows, total),
            "total": max(total, len(rows)),
            "ended": sum(row.ended for row in rows),
            "best": None if leader is None else number_of(leader),
            "best_val": None if leader is None else leader.best_val_accuracy,
            "best_words": None if over is None else f"{with_spread(over.val)} over {over.val.n} seeds",
            "out": dict(record.out),
            "left": self._followed[name].left() if running else None,
            "slots": self._followed[name].slots if running else None,
        }

    def _spec(self, name: str) -> StudySpec:
        """Return the specification of a study, read anew when the study was extended."""
        trials = self._ledger.studies[name].trials
        if name not in self._specs or self._specs[name][0] != trials:
            self._specs[name] = (trials, spec_of(self._ledger, name))
        return self._specs[name][1]

    def _trial(self, row: Trial, columns: Sequence[str], progress: Progress) -> Said:
        run, runs = RunDirectory(self._workspace, row.cell), row.status == "running"
        age = heard(run) if runs else None
        words = read_words(run.log) if row.status == "failed" else None
        return {
            "number": number_of(row),
            "cell": row.cell,
            "status": row.status,
            "state": state(row),
            "settings": settings_words(row, columns),
            "epoch": row.epoch,
            "epochs": row.epochs,
            "val": row.val_accuracy,
            "best": row.best_val_accuracy,
            "test": row.final_test_accuracy,
            "seconds": row.seconds,
            "left": progress.trial_left(row) if runs else None,
            "where": (read_words(run.heartbeat) or "").strip() if runs else "",
            # By tens of seconds, since each change is sent.
            "quiet": 10 * int(age / 10) if age is not None and age > QUIET_SECONDS else None,
            "error": last_line(row) if row.status == "failed" else None,
            "words": "\n".join(words.rstrip().splitlines()[-MOST_LINES:]) if words else None,
            "curve": [round(share, 4) for share in row.so_far.val_history],
        }


def settings_words(row: Trial, columns: Sequence[str]) -> str:
    """Return the searched settings of a trial, such as "ε∞ 8/255, η 0.1", or the name of a listed run."""
    if not any(key in row.params for key in columns):
        return baseline_name(row)
    return ", ".join(f"{header(key)} {value(key, row.params.get(key))}" for key in columns)


def counted(rows: Sequence[Trial], total: int) -> dict[str, int]:
    """Return the number of trials in each state, in the order of `STATES`; states that no trial is in are left out."""
    found = Counter(reason(row).removesuffix(" begun").split(" ")[0] for row in rows)
    found["not begun"] = found.pop("not", 0) + max(0, total - len(rows))
    return {word: found[word] for word in STATES if found[word]}


def changes(seen: Said, sent: Said) -> Said:
    """Return what `seen` has that `sent` has not, in the form of `Follower.look`; nothing is in it if they agree."""
    studies = _changed(seen["studies"], sent.get("studies", {}))
    trials = {
        name: found
        for name, known in seen["trials"].items()
        if (found := _changed(known, sent.get("trials", {}).get(name, {})))
    }
    return {key: found for key, found in (("studies", studies), ("trials", trials)) if found}


def _changed(now: Mapping[str, Said], before: Mapping[str, Said]) -> dict[str, Said]:
    return {key: content for key, content in now.items() if before.get(key) != content}


def other_pages(workspace: Workspace) -> list[dict[str, str]]:
    """Return the leaderboard and the pages of audits that have been written: their address, kind and name."""
    found = [path for path in workspace.root.glob("reports/*/index.html") if path.is_file()]
    return [_page_of(path) for path in sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)]


def _page_of(path: Path) -> dict[str, str]:
    folder = path.parent
    kind = "audit" if (folder / "audit.json").exists() else "leaderboard" if folder.name == "leaderboard" else "page"
    written = time.strftime("%Y-%m-%d %H:%M", time.localtime(path.stat().st_mtime))
    return {"name": folder.name, "kind": kind, "written": written}
