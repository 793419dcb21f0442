"""What Ray Tune adds to a trial: cells of a few seconds through Tune against the bare calls, by wall clock."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

from orchestration.cluster import session
from orchestration.run.execute import execute_run
from orchestration.search import tune
from orchestration.search.driver import StudyDriver
from orchestration.search.launch import make_sampler
from orchestration.storage.workspace import Workspace
from orchestration.study.entries import register
from orchestration.study.ledger import Ledger
from orchestration.study.spec import StudySpec
from orchestration.tracking.tracker import Tracker
from tests.benchmarks.harness import Comparison, Pairs, timed

CELL = {"data.limit": 1000, "corruption.data": "none", "defense.warmup_epochs": 1, "train.epochs": 3}
IN_TURN = 3


def comparisons() -> Iterator[Comparison]:
    """One cell, and some in turn on one slot: the first one's start can then be told from what each further one costs.

    Ray and the tracker are up before the clock starts.
    """
    for cells in (1, IN_TURN):
        name = "a cell through Ray Tune" if cells == 1 else f"{cells} cells in turn through Ray Tune"
        pairs = partial(_tune_and_bare, cells)
        yield Comparison(name, "the bare calls", None, note=_more_a_run(cells), pairs=pairs)


def _more_a_run(cells: int) -> Callable[[float, float], str]:
    return lambda tune, bare: f"{(tune - bare) / cells:.2f} s more a cell; ERAT, {CELL['train.epochs']} epochs"


def _tune_and_bare(cells: int, repeats: int) -> Pairs:
    # Ray's workers are nice to the rest of a busy machine; the bare calls are not.
    os.environ.update(RAY_worker_niceness="0")
    seeds = count()
    with TemporaryDirectory() as folder, session.connection(None, cores=1):
        workspace, bare = Workspace(Path(folder) / "tune"), Workspace(Path(folder) / "bare")
        tracker, ledger = Tracker.open(workspace), Ledger(workspace.ledger)
        pairs = []
        for number in range(repeats + 1):
            spec = _spec([next(seeds) for _ in range(cells)])
            driver = _driver(f"sweep-{number}", spec, workspace, ledger, tracker)
            through_tune = timed(partial(_search, driver))
            assert all(row.status == "done" for row in driver.trials), driver.trials
            pairs.append((through_tune, timed(partial(_bare, spec, bare))))
    return pairs[1:]


def _spec(seeds: list[int]) -> StudySpec:
    return StudySpec.listing("cells", "", [{"train.seed": seed} for seed in seeds], "demo", CELL)


def _driver(name: str, spec: StudySpec, workspace: Workspace, ledger: Ledger, tracker: Tracker) -> StudyDriver:
    register(ledger, name, spec, 0)
    parent = tracker.start_parent(name, kind="sweep", tags={})
    return StudyDriver(name, spec, 0, workspace, ledger, tracker, parent, make_sampler(spec))


def _search(driver: StudyDriver) -> None:
    with driver.at_work():
        tune.run(driver, name=driver.name, storage=driver.workspace.ray, resources={"CPU": 1.0}, workers=1)


def _bare(spec: StudySpec, workspace: Workspace) -> None:
    for config in spec.planned(0)[0]:
        execute_run(config, workspace)
