"""Bringing a sweep or a run to life: the store, the tracker, Ray and the view, in the order in which each can fail."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import Any

from erat.config import RunConfig
from erat.engine.checkpoint import write_atomic
from erat.errors import UserError
from orchestration import estimate
from orchestration.crafting import Crafting, craft_here, missing_sets
from orchestration.home import Home
from orchestration.live import LiveView
from orchestration.presence import driving
from orchestration.rows import TrialRow
from orchestration.state import Ledger, Outcome
from orchestration.sweep import SweepDriver, SweepSpec, register, track_end, unfilled, write_report
from orchestration.tracking import Tracker
from orchestration.trial import ENDS, STATE, CellResult, read_metrics, run_cell, summarise

POLL_SECONDS = 0.5


@dataclass
class SweepEnd:
    """What a sweep left behind."""

    driver: SweepDriver
    files: list[str]
    wall_seconds: float


def run_sweep(
    name: str,
    spec: SweepSpec,
    trials: int,
    home: Home,
    ledger: Ledger,
    *,
    address: str | None = None,
    at_most: int | None = None,
) -> SweepEnd:
    """Run what is left of a sweep and write its report, with `at_most` trials side by side (none: as many as fit).

    Raises:
        UserError: the data, the store, the tracking server or the cluster cannot be had, or another process runs this
            sweep; nothing was trained.
        KeyboardInterrupt: passed on, with all that finished on record.
    """
    # Ray's parts load slowly: only verbs that need them pay.
    from orchestration import cluster, search

    started = time.monotonic()
    if spec.fill is unfilled:
        spec = replace(spec, fill=home.fingerprints())
    home = home.sharing(spec.base.storage.path)
    resources = {"CPU": float(spec.base.resources.cpu), "GPU": spec.base.resources.gpu}
    workers, fewest = spec.base.train.workers, spec.base.resources.min_workers
    if address is not None:
        cluster.check_reachable(address)
    proposer = search.OptunaProposer(
        spec.space.distributions(spec.base.data.name),
        seed=spec.base.train.seed,
        startup_trials=max(1, len(spec.space.points)),
    )
    with ExitStack() as stack:
        stack.enter_context(driving(home, name))
        # Ray's start takes seconds, mostly of waiting, in which MLflow's store is opened.
        opening = stack.enter_context(ThreadPoolExecutor(1)).submit(Tracker.open, home)
        baselines, points = spec.planned(trials)
        to_do = [config for config in [*baselines, *points] if ledger.outcome(config.digest(), name) is None]
        crafting = Crafting(missing_sets(to_do, home), home)
        stack.enter_context(cluster.connection(address))
        if address is not None:
            cluster.check_nodes(home)
        tracker = opening.result()
        fit = cluster.slots(resources, workers, fewest, patience=cluster.JOIN_SECONDS if address else 0)
        slots = min(fit, at_most or fit)
        register(ledger, name, spec, trials)
        parent = tracker.start_parent(name, kind="sweep", tags={"space": spec.space.name, "preset": spec.preset})
        # A search begins with its points, and runs its few baselines where a slot is idle.
        work_of = _work_of if not spec.space.parameters else None
        ready = crafting.gate(baselines, points)
        driver = SweepDriver(name, spec, trials, home, ledger, tracker, parent, proposer, work_of=work_of, ready=ready)
        title = f"{name}: {spec.space.about} · preset {spec.preset} · {slots} trial{'s' * (slots > 1)} at a time"
        with LiveView(title, spec.space.columns, driver.generations.size) as view:
            driver.view = view.update
            try:
                with crafting.running(view.crafting):
                    search.run(
                        driver,
                        name=name,
                        storage=home.ray,
                        resources=resources,
                        workers=workers,
                        slots=slots,
                        ahead=workers == 1 and slots == fit,
                    )
            except BaseException as error:
                driver.interrupted()
                if isinstance(error, UserError):
                    ledger.withdraw(name)  # to be asked for again under the same name, without the mistake
                view.update(driver.all_rows())
                tracker.finish(parent, "interrupted", {})
                raise
            view.update(driver.all_rows())  # those, too, that were finished before and made no event
        files = write_report(driver)
        failed = any(row.status == "failed" for row in driver.all_rows())
        seconds = time.monotonic() - started
        tracker.finish_parent(parent, summary={"wall_seconds": seconds}, artifacts=home.report(name), ok=not failed)
        _send_all(tracker)
    return SweepEnd(driver, files, seconds)


def _send_all(tracker: Tracker) -> None:
    if left := tracker.flush():
        warnings.warn(f"{left} entries for MLflow are kept, and sent by the next sweep, resume or train", stacklevel=2)


def _work_of(config: RunConfig) -> float:
    """How long a run is; 0 where that cannot be told, which keeps nobody from running."""
    try:
        return estimate.work(config)
    except Exception:
        return 0.0


def run_train(config: RunConfig, home: Home, ledger: Ledger, *, address: str | None, force: bool) -> TrialRow:
    """Train one cell and record it; a finished one is only shown, unless forced.

    Raises:
        UserError: as `run_sweep`.
    """
    config = home.fingerprints()(config)
    cell = config.digest()
    row = TrialRow(0, cell, {}, source="train", epochs=config.train.epochs, config=config.flat())
    known = ledger.outcome(cell)
    if known is not None and known.status == "done" and not force:
        row.take_in(known.result)
        return row
    home = home.sharing(config.storage.path)
    folder = home.cell(cell)
    if address is not None:
        from orchestration import cluster

        cluster.check_reachable(address)
    tracker = Tracker.open(home)
    craft_here(config, home)
    if force:
        for file in (*STATE, *ENDS):
            (folder / file).unlink(missing_ok=True)
        home.send(cell, *STATE, *ENDS)
    run = tracker.start_run(cell, row.config, parent=None, sweep=None, source="train")
    title = f"{config.defense.name} on {config.data.name} · preset {config.preset} · cell {cell}"
    with LiveView(title, [], 1) as view:

        def on_epoch() -> None:
            home.fetch(cell, "metrics.jsonl")
            rows = read_metrics(folder)
            for entry in rows:
                tracker.log_epoch(run, entry, entry["epoch"])
            row.take_in(asdict(summarise(cell, "running", rows)))
            view.update([row])

        on_epoch()
        try:
            result = _train_here_or_on_ray(config, home, on_epoch, address)
        except BaseException:
            tracker.finish(run, "interrupted", {})
            raise
        home.fetch(cell, *ENDS, *home.names(cell, "artifacts"))
        outcome = Outcome(result.status, asdict(result) | {"mlflow_run_id": run}, result.error)
        row.take_in(outcome.result)
        view.update([row])
    track_end(tracker, run, outcome, folder)
    _send_all(tracker)
    ledger.finish(cell, outcome.status, outcome.result, sweep=None, error=outcome.error)
    return row


def _train_here_or_on_ray(
    config: RunConfig, home: Home, on_epoch: Callable[[], None], address: str | None
) -> CellResult:
    """One worker trains in this process; several go through Ray Train."""

    def listen(history: Any) -> bool:
        on_epoch()
        return True

    if config.train.workers == 1 and address is None:
        return run_cell(config, home.on_this_node(), on_epoch=listen)
    from orchestration import cluster

    with cluster.connection(address):
        if address is not None:
            cluster.check_nodes(home)
        resources = {"CPU": float(config.resources.cpu), "GPU": config.resources.gpu}
        patience = cluster.JOIN_SECONDS if address else 0
        cluster.slots(resources, config.train.workers, config.resources.min_workers, patience=patience)
        cell, wish = config.digest(), "stop-train"
        (home.cell(cell) / wish).unlink(missing_ok=True)
        home.send(cell, wish)
        # Ray Train's controller is a process of its own and calls nobody back here: the cell's folder is read instead.
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(cluster.run_parallel, config, home, wish)
            try:
                while not wait([running], timeout=POLL_SECONDS).done:
                    on_epoch()
            except BaseException:
                # The workers end after this epoch; the pool waits for them.
                write_atomic(home.cell(cell) / wish, b"")
                home.send(cell, wish)
                raise
            return running.result()
