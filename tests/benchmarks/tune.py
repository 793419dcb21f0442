"""What Ray Tune adds to a trial: cells of a few seconds through Tune against the bare calls, by wall clock."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

from orchestration import cluster, search
from orchestration.home import Home
from orchestration.spaces import SearchSpace
from orchestration.state import Ledger
from orchestration.sweep import SweepDriver, SweepSpec, register
from orchestration.tracking import Tracker
from orchestration.trial import run_cell
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
        yield Comparison(name, "the bare calls", None, note=_more_a_cell(cells), pairs=pairs)


def _more_a_cell(cells: int) -> Callable[[float, float], str]:
    return lambda tune, bare: f"{(tune - bare) / cells:.2f} s more a cell; ERAT, {CELL['train.epochs']} epochs"


def _tune_and_bare(cells: int, repeats: int) -> Pairs:
    # Ray's workers are nice to the rest of a busy machine; the bare calls are not.
    os.environ.update(RAY_worker_niceness="0")
    seeds = count()
    with TemporaryDirectory() as folder, cluster.connection(None, cores=1):
        home, bare = Home(Path(folder) / "tune"), Home(Path(folder) / "bare")
        tracker, ledger = Tracker.open(home), Ledger(home.ledger)
        pairs = []
        for number in range(repeats + 1):
            spec = _spec([next(seeds) for _ in range(cells)])
            driver = _driver(f"sweep-{number}", spec, home, ledger, tracker)
            through_tune = timed(partial(_search, driver))
            assert all(row.status == "done" for row in driver.all_rows()), driver.all_rows()
            pairs.append((through_tune, timed(partial(_bare, spec, bare))))
    return pairs[1:]


def _spec(seeds: list[int]) -> SweepSpec:
    baselines = [{"train.seed": seed} for seed in seeds]
    return SweepSpec(SearchSpace(name="cells", about="", proposals=0, baselines=baselines), "demo", CELL)


def _driver(name: str, spec: SweepSpec, home: Home, ledger: Ledger, tracker: Tracker) -> SweepDriver:
    register(ledger, name, spec, 0)
    parent = tracker.start_parent(name, kind="sweep", tags={})
    proposer = search.OptunaProposer({}, seed=0, startup_trials=1)
    return SweepDriver(name, spec, 0, home, ledger, tracker, parent, proposer)


def _search(driver: SweepDriver) -> None:
    options = {"name": driver.name, "storage": driver.home.ray, "resources": {"CPU": 1.0}, "workers": 1, "slots": 1}
    search.run(driver, ahead=True, **options)


def _bare(spec: SweepSpec, home: Home) -> None:
    for config in spec.planned(0)[0]:
        run_cell(config, home)
