"""One sweep from its specification to its report: plans, launches, listens, records. Knows no Ray, no MLflow inside."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from erat.config import RunConfig, build, content_digest, known_keys
from erat.data.fingerprint import Recalled, place_of
from erat.engine.checkpoint import write_atomic
from erat.errors import UserError
from erat.records import read_words, why
from orchestration.generations import Generations, Proposer, Trial
from orchestration.home import Home
from orchestration.records import SPECIFICATION
from orchestration.report.grid import grid_markdown
from orchestration.report.matrix import is_matrix, matrix_csv, matrix_markdown
from orchestration.report.summary import best, csv_text, markdown
from orchestration.restarts import OUT_OF_MEMORY, Again, Restarts
from orchestration.rows import FINISHED, TrialRow
from orchestration.spaces import SearchSpace, parse_space
from orchestration.state import Ledger, Outcome, Proposal, Sweep
from orchestration.tracking import Tracker
from orchestration.trial import ENDS, CellResult, read_departure, read_metrics, read_refusal, read_result, summarise

BEFORE_IDENTITY = "made before the data were part of the identity"
SUMMARY_METRICS = ("final_test_accuracy", "best_val_test_accuracy", "best_val_accuracy", "train_seconds")


def unfilled(config: RunConfig) -> RunConfig:
    """Return the configuration as it is: nobody has looked at its images yet."""
    return config


@dataclass(frozen=True)
class SweepSpec:
    """What a sweep is. The number of trials is not part of it: a sweep can be extended.

    Attributes:
        overrides: dotted keys on top of the preset, alike for all trials.
        fill: fills the fingerprint of its images into a configuration, and checks a given one (`Home.fingerprints`).
    """

    space: SearchSpace
    preset: str
    overrides: dict[str, Any]
    fill: Callable[[RunConfig], RunConfig] = field(default=unfilled, compare=False, repr=False)

    def __post_init__(self) -> None:
        for key in self.space.parameters:
            if key in self.overrides:
                raise UserError(f"{key} is what the space {self.space.name} searches; it cannot be set as well")
            if key not in known_keys(self.base.defense.name):
                raise UserError(f"the space {self.space.name} searches {key}, which {self.base.defense.name} lacks")
        for overrides in [*self.space.baselines, *self.space.examples(self.base.data.name)]:
            self.config(overrides)

    @cached_property
    def base(self) -> RunConfig:
        """The configuration that every trial starts from."""
        return self.fill(build(self.preset, self.overrides))

    def config(self, trial_overrides: Mapping[str, Any]) -> RunConfig:
        """The configuration of one trial."""
        key = repr(sorted(trial_overrides.items()))
        if key not in self._configs:
            # A matrix has many seeds of each setting, whose configurations need not be made from the start.
            setting = {name: value for name, value in trial_overrides.items() if name != "train.seed"}
            if len(setting) < len(trial_overrides):
                self._configs[key] = self.config(setting).with_seed(trial_overrides["train.seed"])
            else:
                self._configs[key] = self.fill(build(self.preset, self.overrides_for(setting) | setting, quiet=True))
        return self._configs[key]

    @cached_property
    def _configs(self) -> dict[str, RunConfig]:
        """What was built already: a large matrix asks for each of its runs several times."""
        return {}

    def overrides_for(self, trial_overrides: Mapping[str, Any]) -> dict[str, Any]:
        """The overrides that concern a trial. One of another defense drops what was meant for this one."""
        name = str(trial_overrides.get("defense.name", self.base.defense.name))
        return {k: v for k, v in self.overrides.items() if not k.startswith("defense.") or k in known_keys(name)}

    def proposals(self, sweep: Sweep) -> dict[int, Proposal]:
        """The trials of a sweep in the ledger, by number; those that this specification cannot make are warned of."""
        known = {}
        for number, proposal in sorted(sweep.proposals.items()):
            try:
                self.config(proposal.params)
            except UserError as error:
                warnings.warn(f"trial {number} of {sweep.name} in the ledger is passed over: {error}", stacklevel=2)
            else:
                known[number] = proposal
        return known

    def planned(self, trials: int) -> tuple[list[RunConfig], list[RunConfig]]:
        """What is known before anything runs: (the baselines, the paper's points or, without any, what is searched)."""
        points = self.space.scaled_points(self.base.data.name)[:trials]
        searched = [self.config(overrides) for overrides in points] or [self.base] * (trials > 0)
        return [self.config(overrides) for overrides in self.space.baselines], searched

    def content(self) -> dict[str, Any]:
        """What the ledger keeps, JSON-like: what two sweeps of one name must share, and how it was asked for."""
        root = {"data.root": self.base.data.root} if "data.root" in self.overrides else {}
        return self._shared() | {"preset": self.preset, "overrides": self.overrides | root, "images": self.images}

    def identity(self) -> str:
        """A digest of what is searched, from where and on which images; how it was written does not count."""
        return content_digest(self._shared())

    def _shared(self) -> dict[str, Any]:
        """What two sweeps of one name must share."""
        others = sorted(set(self.images.values()) - {self.base.data.fingerprint})
        content = {"space": self.space.model_dump(mode="json"), "base": self.base.identity()}
        return content | ({"other_images": others} if others else {})

    @cached_property
    def images(self) -> dict[str, str]:
        """Fingerprints of the image sets of all that is planned, by where they were found."""
        runs = [self.base, *map(self.config, self.space.baselines)]
        return {place_of(data): data.fingerprint for data in {run.data for run in runs} if data.fingerprint is not None}

    @property
    def identified(self) -> bool:
        """Whether it is said of all that is planned on which images."""
        return self.base.identified and all(self.config(overrides).identified for overrides in self.space.baselines)

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> SweepSpec:
        """Read back from the ledger, with the fingerprints of then: the images need not be there.

        Raises:
            UserError: it is no specification, or one of keys that there are no more.
        """
        try:
            SPECIFICATION.validate_python(content)
        except ValidationError as error:
            raise UserError(f"what the ledger says of this sweep is damaged: {why(error)}") from None
        space, fill = parse_space(content["space"], "the ledger"), Recalled(content.get("images", {}))
        return cls(space, content["preset"], dict(content["overrides"]), fill)


def register(ledger: Ledger, name: str, spec: SweepSpec, trials: int) -> None:
    """Enter a sweep into the ledger, or find it there. Raises as `check_name_is_free`."""
    check_name_is_free(ledger, name, spec)
    known = ledger.sweeps.get(name)
    content = spec.content()
    if known is None or known.trials < trials or known.spec.get("images", {}) != content["images"]:
        ledger.append("sweep", name=name, spec=content, trials=trials)


def check_name_is_free(ledger: Ledger, name: str, spec: SweepSpec) -> None:
    """A name means one specification.

    Raises:
        UserError: the name belongs to another specification; what differs.
    """
    known = ledger.sweeps.get(name)
    shared = ("space", "base", "other_images")
    if known is None or content_digest({k: known.spec[k] for k in shared if k in known.spec}) == spec.identity():
        return
    other = SweepSpec.of(known.spec)
    if not other.identified:
        raise UserError(f"sweep {name!r} was {BEFORE_IDENTITY}; choose another --name")
    if other.identity() != spec.identity():
        raise UserError(
            f"sweep {name!r} exists with another specification ({_difference(other, spec)}); "
            "choose another --name, or repeat the first command to continue it"
        )


def reopened(ledger: Ledger, name: str, fill: Callable[[RunConfig], RunConfig]) -> SweepSpec:
    """The specification of a known sweep, to go on with: its images are looked up again, unless nothing is left to do.

    Raises:
        UserError: they are gone, or others; how to go on.
    """
    sweep = ledger.sweeps[name]
    old = SweepSpec.of(sweep.spec)
    if not old.identified:
        raise UserError(
            f"sweep {name!r} was {BEFORE_IDENTITY}: status and report show it, but nothing can be added; "
            f"begin it anew with another --name"
        )
    outcomes = [ledger.outcome(proposal.cell, name) for proposal in sweep.proposals.values()]
    ended = [outcome for outcome in outcomes if outcome is not None and outcome.status in FINISHED]
    if len(ended) >= sweep.trials + len(old.space.baselines):
        return old
    try:
        new = replace(old, fill=fill)
        if new.identity() != old.identity():
            raise UserError(f"the images of sweep {name!r} are no longer those that it was begun with")
    except UserError as error:
        raise UserError(
            f"{error}; if the images lie elsewhere now, repeat the first command with --name {name} and their data.root"
        ) from error
    return new


def _difference(old: SweepSpec, new: SweepSpec) -> str:
    before, after = old.base.identity(), new.base.identity()
    changed = [key for key in sorted(before.keys() | after.keys()) if before.get(key) != after.get(key)]
    if not changed:
        return "its search space differs"
    key = changed[0]
    more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
    return f"{key} was {before.get(key)}, is {after.get(key)}{more}"


@dataclass
class SweepDriver:
    """Listens to a running sweep and keeps ledger, tracker and view up to date.

    Args:
        view: shown the rows after every event.
        work_of: how long a run is, so that the longest baselines begin first; none: in their order.
        ready: number of a trial -> whether it may begin.
        parent: the tracker's run of the sweep.
    """

    name: str
    spec: SweepSpec
    total: int
    home: Home
    ledger: Ledger
    tracker: Tracker
    parent: str
    proposer: Proposer
    view: Callable[[list[TrialRow]], None] = lambda rows: None
    work_of: Callable[[RunConfig], float] | None = None
    ready: Callable[[int], bool] = lambda number: True
    rows: dict[int, TrialRow] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.generations = make_generations(
            self.spec, self.total, self.name, self.ledger, self.proposer, self._proposed, self.work_of, self.ready
        )
        self._runs: dict[int, str] = {}
        self._restarts = Restarts()

    # -- told by the search -----------------------------------------------------------------------------------------

    def trial_parameters(self, trial: Trial) -> dict[str, Any]:
        """What a worker is given."""
        config = self.spec.config(trial.overrides)
        self.home.prepare(trial.cell)
        return {
            "number": trial.number,
            "cell": trial.cell,
            "home": str(self.home.root),
            "config": config.model_dump_json(),
            "wish": self._stop_file(trial.cell).name,
        }

    def started(self, number: int) -> None:
        """A trial begins, or goes on from its checkpoint."""
        row = self.rows[number]
        row.status = "running"
        self._track_start(row)
        self.epoch(number)

    def epoch(self, number: int) -> None:
        """An epoch ended: take in what the cell's folder says."""
        row = self.rows[number]
        self.home.fetch(row.cell, "metrics.jsonl")
        metrics = read_metrics(self.home.cell(row.cell))
        row.take_in(asdict(summarise(row.cell, row.status, metrics)))
        for entry in metrics:
            self.tracker.log_epoch(self._runs[number], entry, entry["epoch"])
        self.view(self.all_rows())

    def stop(self, number: int, epoch: int) -> None:
        """Ask a trial to stop after this epoch; its later ones, if it had begun any, do not count."""
        path = self._stop_file(self.rows[number].cell)
        if not path.exists():
            write_atomic(path, str(epoch).encode())
            self.home.send(self.rows[number].cell, path.name)

    def heard(self, number: int, words: str) -> None:
        """What Ray says of a worker that died."""
        self._restarts.heard(number, words)

    def ended(self, number: int) -> Outcome | Again:
        """A trial is over: record how; or it is to run again."""
        row = self.rows[number]
        outcome = self._outcome(row)
        if isinstance(outcome, Again):
            with_fewer = ", with fewer beside it" if outcome.fewer else ""
            warnings.warn(f"trial {number}: {outcome.reason}; it goes on{with_fewer}", stacklevel=2)
            row.status = "queued"
            self.view(self.all_rows())
            return outcome
        if number not in self._runs:
            self._track_start(row)
        self.epoch(number)
        row.take_in(outcome.result)
        track_end(self.tracker, self._runs[number], outcome, self.home.cell(row.cell))
        # Last: a driver that dies before this line finds the cell's result again, and tells the tracker what it lacks.
        self.ledger.finish(row.cell, outcome.status, outcome.result, sweep=self.name, error=outcome.error)
        self.view(self.all_rows())
        return outcome

    def interrupted(self) -> None:
        """The sweep was cut short: what ran is queued again."""
        for number, row in self.rows.items():
            if row.status == "running":
                row.status = "queued"
                self.tracker.finish(self._runs[number], "interrupted", {}, None, None)

    # -- rows -------------------------------------------------------------------------------------------------------

    def all_rows(self) -> list[TrialRow]:
        """In the order of their numbers."""
        return [self.rows[number] for number in sorted(self.rows)]

    def _proposed(self, trial: Trial) -> None:
        config = self.spec.config(trial.overrides)
        known = self.ledger.sweeps[self.name].proposals.get(trial.number)
        if known is None or known.cell != trial.cell:  # one that cannot be made was passed over
            self.ledger.append(
                "proposed",
                sweep=self.name,
                number=trial.number,
                params=trial.overrides,
                source=trial.source,
                cell=trial.cell,
            )
        self.rows[trial.number] = row = TrialRow(
            trial.number,
            trial.cell,
            trial.overrides,
            source=trial.source,
            epochs=config.train.epochs,
            config=config.flat(),
        )
        if trial.outcome is not None:
            row.take_in(trial.outcome.result)

    def _outcome(self, row: TrialRow) -> Outcome | Again:
        folder = self.home.cell(row.cell)
        self.home.fetch(row.cell, "metrics.jsonl", *ENDS)
        self.home.fetch(row.cell, *self.home.names(row.cell, "artifacts"))
        result, stop_epoch = read_result(folder), self._stop_epoch(row.cell)
        if result is None or (result.error or "").startswith(OUT_OF_MEMORY):
            failed = self._failed(row, result)
            if isinstance(failed, Again):
                return failed
            result = failed
        elif result.status == "stopped" or (result.status == "done" and stop_epoch is not None):
            # Data-parallel workers may be past the epoch, even at the end, when they see that they were to stop.
            stopped = summarise(row.cell, "stopped", read_metrics(folder)[:stop_epoch])
            kept = {key: getattr(result, key) for key in ("noise_rate", "checksum", "peak_memory_mb")}
            result = replace(stopped, **kept)
            self._stop_file(row.cell).unlink(missing_ok=True)
            self.home.send(row.cell, self._stop_file(row.cell).name)
        content = asdict(result) | {"mlflow_run_id": self._runs.get(row.number)}
        return Outcome(result.status, content, result.error)

    def _failed(self, row: TrialRow, result: CellResult | None) -> CellResult | Again:
        """What to make of a trial that left no result, or ran out of memory."""
        folder = self.home.cell(row.cell)
        rows = read_metrics(folder)
        failed = result or summarise(row.cell, "failed", rows)
        if result is None and (refusal := read_refusal(folder)) is not None:
            failed.error = refusal
            return failed
        if result is None and (departure := read_departure(folder)) is not None:
            return Again(fewer=False, reason=f"its worker was {departure}")
        if result is None:
            verdict = self._restarts.died(row.number, len(rows))
        else:
            verdict = self._restarts.out_of_memory(row.number, result.error or OUT_OF_MEMORY)
        if isinstance(verdict, Again):
            return verdict
        failed.error = verdict
        return failed

    def _track_start(self, row: TrialRow) -> None:
        run = self.tracker.start_run(row.cell, row.config, parent=self.parent, sweep=self.name, source=row.source)
        self._runs[row.number] = row.mlflow_run_id = run

    def _stop_file(self, cell: str) -> Path:
        return self.home.cell(cell) / f"stop-{self.name}"

    def _stop_epoch(self, cell: str) -> int | None:
        words = read_words(self._stop_file(cell)) or ""
        return int(words) if words.isascii() and words.isdigit() and 0 < len(words) < 10 and int(words) else None


def make_generations(
    spec: SweepSpec,
    total: int,
    name: str,
    ledger: Ledger,
    proposer: Proposer,
    on_proposed: Callable[[Trial], None] = lambda trial: None,
    work_of: Callable[[RunConfig], float] | None = None,
    ready: Callable[[int], bool] = lambda number: True,
) -> Generations:
    """The generations of a sweep, as its specification and the ledger have them."""
    known = spec.proposals(ledger.sweeps[name]) if name in ledger.sweeps else {}
    epochs = spec.base.train.epochs
    return Generations(
        space=spec.space,
        points=spec.space.scaled_points(spec.base.data.name),
        total=total,
        proposer=proposer,
        known=known,
        cell_of=lambda overrides: spec.config(overrides).digest(),
        outcome_of=lambda cell: ledger.outcome(cell, name),
        on_proposed=on_proposed,
        patience_epochs=max(1, round(spec.space.grace * epochs)),
        epochs=epochs,
        work_of=(lambda overrides: work_of(spec.config(overrides))) if work_of else lambda overrides: 0.0,
        ready=ready,
    )


def track_end(tracker: Tracker, run_id: str, outcome: Outcome, folder: Path) -> None:
    """Tell the tracker how a cell ended."""
    tracker.finish(
        run_id,
        outcome.status,  # type: ignore[arg-type]
        {key: outcome.result.get(key) for key in SUMMARY_METRICS},
        folder / "artifacts" if outcome.status in FINISHED else None,
        outcome.error,
    )


def write_report(driver: SweepDriver) -> list[str]:
    """Tables and figures of a sweep into its report folder; their paths."""
    # What draws loads slowly: only what draws pays.
    from orchestration.report.figures import sweep_figure
    from orchestration.report.grid_figure import grid_figure

    folder = driver.home.report(driver.name)
    folder.mkdir(parents=True, exist_ok=True)
    rows, columns = driver.all_rows(), driver.spec.space.columns
    searched = [row for row in rows if row.source != "baseline"]
    baselines = [row for row in rows if row.source == "baseline"]
    documents = {
        "summary.md": markdown(rows, columns),
        "summary.csv": csv_text(rows, columns),
        "spec.json": json.dumps(driver.spec.content(), indent=2, default=str),
    }
    for name, text in documents.items():
        write_atomic(folder / name, text.encode())
    if driver.spec.space.parameters:
        figures = sweep_figure(driver.spec.space.name, searched, baselines, folder)
    elif is_matrix(rows):
        for name, text in {"matrix.md": matrix_markdown(rows), "matrix.csv": matrix_csv(rows)}.items():
            write_atomic(folder / name, text.encode())
        figures = [folder / "matrix.md", folder / "matrix.csv"]
    else:
        write_atomic(folder / "grid.md", grid_markdown(rows).encode())
        figures = [folder / "grid.md", *grid_figure(rows, folder)]
    return [str(folder / "summary.md"), str(folder / "summary.csv"), *map(str, figures)]


def result_json(row: TrialRow) -> dict[str, Any]:
    """A run as `--json` prints it."""
    return {
        "cell": row.cell,
        "status": row.status,
        "config": row.config,
        "final_test_accuracy": row.final_test_accuracy,
        "best_val_test_accuracy": row.best_val_test_accuracy,
        "val_accuracy": row.val_accuracy,
        "train_seconds": row.seconds,
        "mlflow_run_id": row.mlflow_run_id,
        "error": row.error,
    }


def best_json(rows: list[TrialRow]) -> dict[str, Any] | None:
    """The chosen run as `--json` prints it, with what was searched."""
    chosen = best(rows)
    return None if chosen is None else result_json(chosen) | {"params": chosen.params, "number": chosen.number}
