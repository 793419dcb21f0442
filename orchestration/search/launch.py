"""Start a study or a single run: open the store, the tracker, Ray and the view, in the order in which each can fail."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from threading import Event
from typing import Any

from erat.config import RunConfig
from erat.errors import UserError
from erat.result import RunResult, summarise
from orchestration.crafting.jobs import Crafting, craft_here
from orchestration.crafting.sets import missing_sets
from orchestration.report.crafting import craft_view
from orchestration.report.files import write_files
from orchestration.report.live import LiveView
from orchestration.run.directory import ENDS, METRICS, RunDirectory, stop_request
from orchestration.run.execute import execute_run
from orchestration.run.heartbeat import driving
from orchestration.run.resources import needs
from orchestration.search.driver import StudyDriver
from orchestration.search.ends import track_end, track_winner
from orchestration.search.observations import Sampler
from orchestration.search.sync import sync
from orchestration.storage.workspace import Workspace
from orchestration.study import estimate
from orchestration.study.entries import register
from orchestration.study.ledger import Ledger
from orchestration.study.registries import SAMPLERS
from orchestration.study.settings import setting_words, settled, startup_of, warn_if_narrow
from orchestration.study.spec import StudySpec, unfilled
from orchestration.study.trial import Trial
from orchestration.terminal import program
from orchestration.tracking.tracker import Tracker

POLL_SECONDS = 0.5
# On a cluster that grows by itself, a study without --max-concurrent counts on at least so many slots: its window is
# settled before the nodes are there, and would otherwise follow from the few that are.
GROWN_SLOTS = 24
SYNC_SECONDS = 60  # how long a study that goes on waits at most until MLflow has what it lacks


@dataclass
class StudyEnd:
    """What `run_study` returns when a study has ended.

    Attributes:
        driver: the driver, with all trials.
        files: paths of the report's files.
        wall_seconds: duration of the whole call, in seconds.
    """

    driver: StudyDriver
    files: list[str]
    wall_seconds: float


def run_study(
    name: str,
    spec: StudySpec,
    trials: int,
    workspace: Workspace,
    ledger: Ledger,
    *,
    address: str | None = None,
    at_most: int | None = None,
) -> StudyEnd:
    """Run what is left of a study, and write its report.

    Args:
        name: name of the study.
        spec: its specification.
        trials: number of trials of the search, without the listed runs.
        workspace: the workspace of the study.
        ledger: its ledger.
        address: address of a Ray cluster. None: Ray is started on this machine.
        at_most: number of trials that may run at the same time. None: as many as fit.

    Raises:
        UserError: The data, the store, the tracking server or the cluster is not available, or another process runs
            this study; nothing was trained. Or the search cannot go on; what has finished is recorded.
        KeyboardInterrupt: The study was interrupted; everything that has finished is recorded.
    """
    # These modules import Ray, which takes long; only commands that need them should wait for it.
    from orchestration.cluster import autoscaling, session
    from orchestration.search import tune

    started = time.monotonic()
    if spec.fill is unfilled:
        spec = replace(spec, fill=workspace.fingerprints())
    workspace = workspace.sharing(spec.base.storage.path)
    resources = needs(spec.base)
    workers, fewest = spec.base.train.workers, spec.base.resources.min_workers
    if address is not None:
        session.check_reachable(address)
    with ExitStack() as stack:
        stack.enter_context(driving(workspace, name))
        # Starting Ray takes seconds, most of it waiting, so MLflow's store is opened at the same time.
        leaving, opener = Event(), stack.enter_context(ThreadPoolExecutor(1))
        opening = opener.submit(_open_tracker, name, spec, workspace, ledger, leaving)
        stack.callback(leaving.set)  # before the thread is waited for
        baselines, points = spec.planned(trials)
        to_do = [config for config in [*baselines, *points] if ledger.outcome(config.digest(), name) is None]
        crafting = Crafting(missing_sets(to_do, workspace), workspace)
        stack.enter_context(session.connection(address))
        if address is not None:
            session.check_nodes(workspace)
        tracker = opening.result()
        demand = stack.enter_context(autoscaling.Demand(resources, workers).held())
        if address is not None:
            demand.ask(max(1, min(slots_ahead(0, at_most), _left(name, spec, trials, ledger))))
        patience = session.JOIN_SECONDS if address else 0
        fit = session.slots(resources, workers, fewest, patience=patience, demand=demand)
        slots = min(fit, at_most or fit)
        grows = address is not None and session.grows()
        if grows:
            session.check_nodes(workspace)  # those that have come
        spec, windows = settled(ledger, name, spec, slots_ahead(slots, at_most) if grows else slots, trials)
        warn_if_narrow(spec, slots, windows)
        sampler = make_sampler(spec)
        register(ledger, name, spec, trials, windows)
        parent = tracker.start_parent(name, kind="sweep", tags={"space": spec.space.name, "preset": spec.preset})
        # A search begins with its points and fits its few listed runs into idle slots, so their order is of no concern.
        work_of = _work_of if spec.search is None else None
        ready = crafting.gate(baselines, points)
        pool = ThreadPoolExecutor(1)  # for proposals, of which those that were not needed are dropped at the end
        stack.callback(pool.shutdown, cancel_futures=True)
        driver = StudyDriver(
            name, spec, trials, workspace, ledger, tracker, parent, sampler, work_of=work_of, ready=ready, pool=pool
        )
        at_a_time = f"{slots} trial{'s' * (slots > 1)} at a time{' so far' * grows}"
        at_a_time += f", {session.devices(resources)}"
        title = f"{name}: {spec.space.about} · preset {spec.preset} · {at_a_time}"
        with driver.at_work(), LiveView(title, spec.space.columns, driver.queue.planned) as view:
            driver.view = view.update
            if spec.search is not None:
                view.note(setting_words(spec.space, windows))
            try:
                with crafting.running(view.crafting.show):
                    tune.run(
                        driver,
                        name=name,
                        storage=workspace.ray,
                        resources=resources,
                        workers=workers,
                        fewest=fewest,
                        at_most=at_most,
                        demand=None if address is None else demand,
                    )
            except BaseException as error:
                with suppress(OSError):  # that a disk is full, say, is what `error` is about, or comes up at the end
                    driver.interrupted()
                    if isinstance(error, UserError):
                        ledger.withdraw(name)  # so that the user can correct the mistake and use the same name again
                    tracker.finish(parent, "interrupted", {})
                view.update(driver.trials)
                raise
            view.update(driver.trials)  # includes trials that had finished earlier and caused no event
        files = write_files(spec, driver.trials, workspace.report(name))
        failed = any(trial.status == "failed" for trial in driver.trials)
        seconds = time.monotonic() - started
        metrics, tags = track_winner(tracker, driver.trials)
        tracker.finish_parent(
            parent,
            summary=metrics | {"wall_seconds": seconds},
            artifacts=workspace.report(name),
            ok=not failed,
            tags=tags,
        )
        _send_all(tracker)
    return StudyEnd(driver, files, seconds)


def _open_tracker(name: str, spec: StudySpec, workspace: Workspace, ledger: Ledger, leaving: Event) -> Tracker:
    """Open MLflow's store, and put right what it has of a study that goes on; a failure of the latter is a warning.

    The study does not wait for longer than `SYNC_SECONDS`, and not at all once `leaving` is set.
    """
    tracker = Tracker.open(workspace)
    if name in ledger.studies:
        until = time.monotonic() + SYNC_SECONDS
        try:
            done = sync(
                name,
                spec,
                workspace,
                ledger,
                tracker,
                resuming=True,
                enough=lambda: leaving.is_set() or time.monotonic() > until,
            )
        except UserError as error:
            warnings.warn(f"what MLflow has of {name} is left as it is: {error}", stacklevel=2)
        else:
            if not done.whole and not leaving.is_set():
                warnings.warn(
                    f"MLflow may lack more of {name} than could be put right in {SYNC_SECONDS} s; once it has ended, "
                    f"put the rest right with: {program()} sync {name}",
                    stacklevel=2,
                )
    return tracker


def slots_ahead(slots: int, at_most: int | None) -> int:
    """Return the number of slots for which a study is planned on a cluster that grows by itself.

    Args:
        slots: number of trials that fit now and may run.
        at_most: number of trials that may run at the same time; None: as many as fit.
    """
    return max(slots, at_most or GROWN_SLOTS)


def _left(name: str, spec: StudySpec, trials: int, ledger: Ledger) -> int:
    """Return how many listed runs and trials of the search have not ended, without confirmations."""
    known = ledger.studies[name].proposals.values() if name in ledger.studies else ()
    return len(spec.runs) + trials - sum(ledger.outcome(proposal.cell, name) is not None for proposal in known)


def make_sampler(spec: StudySpec) -> Sampler:
    """Return the sampler of a study."""
    space = spec.space
    made: Sampler = SAMPLERS[space.sampler](
        space.distributions(spec.base.data.name),
        seed=spec.base.train.seed,
        startup=startup_of(space),
        active=space.active,
        objective=space.objective,
    )
    return made


def _send_all(tracker: Tracker) -> None:
    if left := tracker.flush():
        warnings.warn(f"{left} entries for MLflow are kept, and sent by the next sweep, resume or train", stacklevel=2)


def _work_of(config: RunConfig) -> float:
    """Return the predicted operations of a run, or 0 if the prediction fails: that must not prevent the run."""
    try:
        return estimate.work(config)
    except Exception:
        return 0.0


def run_train(config: RunConfig, workspace: Workspace, ledger: Ledger, *, address: str | None, force: bool) -> Trial:
    """Execute one run outside any study, and record its result.

    Args:
        config: the configuration.
        workspace: the workspace.
        ledger: its ledger.
        address: address of a Ray cluster. None: this machine.
        force: whether to begin from the start even if the run is done. Otherwise the recorded result is returned.

    Raises:
        UserError: As for `run_study`.
    """
    config = workspace.fingerprints()(config)
    cell = config.digest()
    trial = Trial(0, cell, {}, source="train", config=config.flat())
    known = ledger.with_outcome(trial)
    if known.status == "done" and not force:
        return known
    workspace = workspace.sharing(config.storage.path)
    run = RunDirectory(workspace, cell)
    if address is not None:
        from orchestration.cluster import session

        session.check_reachable(address)
    tracker = Tracker.open(workspace)
    with craft_view() as crafting:
        craft_here(config, workspace, crafting.show)
    if force:
        run.forget()
    run_id = tracker.start_run(cell, trial.config, parent=None, sweep=None, source="train")
    title = f"{config.defense.name} on {config.data.name} · preset {config.preset} · cell {cell}"
    sent = 0  # epochs
    with LiveView(title, [], 1) as view:

        def on_epoch() -> None:
            nonlocal sent
            run.fetch(METRICS)
            rows = run.read_metrics()
            for entry in rows[sent:]:
                tracker.log_epoch(run_id, entry, entry["epoch"])
            sent = max(sent, len(rows))
            view.update([replace(trial, result=summarise(cell, "running", rows))])

        on_epoch()
        try:
            result = _train_here_or_on_ray(config, workspace, on_epoch, address)
        except BaseException:
            tracker.finish(run_id, "interrupted", {})
            raise
        run.fetch(*ENDS)
        run.fetch_artifacts()
        trial = replace(trial, result=result, mlflow_run_id=run_id)
        view.update([trial])
    track_end(tracker, run_id, result, run)
    _send_all(tracker)
    ledger.finish(result, sweep=None, mlflow_run_id=run_id)
    return trial


def _train_here_or_on_ray(
    config: RunConfig, workspace: Workspace, on_epoch: Callable[[], None], address: str | None
) -> RunResult:
    """Execute a run in this process if it has one worker and there is no cluster; otherwise use Ray Train.

    Args:
        config: the configuration, with the fingerprint of its images.
        workspace: the workspace.
        on_epoch: called after each epoch here, or every `POLL_SECONDS` seconds while Ray Train is at work.
        address: address of a Ray cluster. None: this machine.
    """

    def listen(history: Any) -> bool:
        on_epoch()
        return True

    if config.train.workers == 1 and address is None:
        return execute_run(config, workspace.on_this_node(), on_epoch=listen)
    from orchestration.cluster import autoscaling, execution, session

    resources = needs(config)
    workers, fewest = config.train.workers, config.resources.min_workers
    with session.connection(address), autoscaling.Demand(resources, workers).held() as demand:
        if address is not None:
            session.check_nodes(workspace)
            demand.ask(1)
        patience = session.JOIN_SECONDS if address else 0
        session.slots(resources, workers, fewest, patience=patience, demand=demand)
        run, request = RunDirectory(workspace, config.digest()), stop_request("train", workspace)
        run.withdraw_stop(request)
        # Ray Train's controller is another process and cannot call functions here, so the run's directory is polled.
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(execution.run_parallel, config, workspace, request)
            try:
                while not wait([running], timeout=POLL_SECONDS).done:
                    on_epoch()
            except BaseException:
                # The workers stop after the epoch in progress, and the end of the block waits for them.
                run.ask_to_stop(request)
                raise
            return running.result()
