"""Compares a matrix of the demo under random kills with the same matrix undisturbed: `python -m tests.chaos --seed 0`.

A Ray cluster of a head and two nodes, MLflow's server (on PostgreSQL if that is installed) and the driver run as
separate processes. One after another is killed, as a power cut would: the worker of a trial, a Ray node (another one
replaces it), the driver (the same command is started again), the tracking server (started again some seconds later). At
the end the ledger and MLflow must have each run once, with the numbers of the undisturbed run to the last bit.
`tests.chaos_halving` does the same with a search.

With `--bad-gpu` the nodes have two slots each, GPUs as Ray counts them, and on one of them every worker dies as soon as
it trains: it must be excluded, and the other slots may be idle beside work for no larger share of the time than
`MOST_IDLE`. (The machine itself should have no GPU: the trials train on its processor.)

The output is the table of kills and the comparison, as Markdown; the exit status is 0 if everything is as it must be.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml
from ray.cluster_utils import Cluster

from orchestration.run.directory import RunDirectory
from orchestration.run.heartbeat import is_running
from orchestration.storage.workspace import Workspace
from orchestration.study.ledger import Ledger
from tests.servers import TrackingServer, postgres, postgres_programs
from tests.workers import workers_of

ROOT = Path(__file__).parents[1]
NAME = "chaos"
EPOCHS = 16
# Every kind of step in little time: plain, adversarial, selecting, and two networks, with three seeds each.
CELLS = [{"defense.name": name, "train.seed": seed} for seed in range(3) for name in ("ce", "at", "erat", "dividemix")]
BASE = {
    "data.limit": 300,
    "corruption.data": "urp",
    "corruption.labels": "symmetric",
    "corruption.rate": 0.3,
    "train.epochs": EPOCHS,
    "train.batch_size": 32,
}
BAD = ROOT / "tests" / "bad_place"
GPUS = 2  # slots of a node with --bad-gpu
# Largest share of the time of good slots for which they may be idle beside work. Nodes, drivers and workers that start
# again take some of it; a cluster of which one slot is left would have two thirds.
MOST_IDLE = 0.6
WHAT = {"trial worker": 14, "Ray node": 5, "driver": 6, "tracking server": 5}  # how often, of 30 kills


@dataclass
class Kill:
    """A kill: its time in seconds since the start, what was killed, and the runs ended and epochs done by then."""

    second: float
    what: str
    ended: int
    epochs: int


class Idleness:
    """For how long good slots were idle although there was something to run."""

    def __init__(self) -> None:
        self.idle = self.wanted = 0.0  # slot seconds
        self._last: float | None = None

    def note(self, now: float, idle: int, wanted: int) -> None:
        """Take note of how many are idle now, of those for which there is work."""
        if self._last is not None:
            self.idle += idle * (now - self._last)
            self.wanted += wanted * (now - self._last)
        self._last = now

    @property
    def share(self) -> float:
        """Return the idle share of the slot seconds for which there was work."""
        return self.idle / self.wanted if self.wanted else 0.0


class Stage:
    """All processes of the study, and the workspace that they share.

    Args:
        folder: where everything is written.
        stack: ends the processes.
        space: content of the study's YAML file.
        base: dotted key -> value of all trials.
        bad_gpu: whether each node has two GPUs, one of which, of the first node, is bad.
    """

    def __init__(
        self,
        folder: Path,
        stack: ExitStack,
        space: Mapping[str, Any],
        base: Mapping[str, Any],
        *,
        bad_gpu: bool = False,
    ) -> None:
        self.workspace, self.bad_gpu = Workspace(folder / "workspace"), bad_gpu
        self.base = {**base, **({"resources.gpu": 1} if bad_gpu else {})}
        self.space = folder / "cells.yaml"
        self.space.write_text(yaml.safe_dump(dict(space)))
        store = f"sqlite:///{folder}/server.db"
        self.store = "SQLite"
        if postgres_programs() is not None:
            # In a separate folder, which another user may enter.
            place = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True)))
            place.chmod(0o755)
            store, self.store = stack.enter_context(postgres(place / "database")), "PostgreSQL"
        self.server = TrackingServer(store, folder / "server")
        self.server.start()
        stack.callback(self.server.kill)
        options = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": 128 * 2**20}
        self.cluster = Cluster(initialize_head=True, head_node_args=options)
        stack.callback(self.cluster.shutdown)
        self.nodes = [self._add_node(number) for number in range(2)]
        self.log = (folder / "driver.log").open("ab")
        self.driver: subprocess.Popen[bytes] | None = None
        self.idleness = Idleness()
        stack.callback(self.kill_driver)

    def _add_node(self, number: int) -> Any:
        if not self.bad_gpu:
            return self.cluster.add_node(num_cpus=1, object_store_memory=128 * 2**20)
        path = os.pathsep.join([str(BAD), os.environ.get("PYTHONPATH", "")])
        bad = {"PYTHONPATH": path, "BAD_GPU": "0"} if number == 0 else {}
        return self.cluster.add_node(
            num_cpus=GPUS, num_gpus=GPUS, object_store_memory=128 * 2**20, env_vars=bad or None
        )

    def start_driver(self) -> None:
        """Start the command, which is the same each time."""
        words = [f"{key}={value}" for key, value in self.base.items()]
        self.driver = subprocess.Popen(
            [
                *(sys.executable, "orchestrate.py", "sweep", "--space", str(self.space), "--name", NAME),
                *("--address", self.cluster.address),
                *words,
            ],
            cwd=ROOT,
            env=os.environ | {"ERAT_HOME": str(self.workspace.root), "MLFLOW_TRACKING_URI": self.server.uri},
            stdout=self.log,
            stderr=self.log,
        )

    def progress(self) -> tuple[int, int]:
        """Return (the number of runs that have ended, the epochs done in all runs)."""
        ledger = Ledger(self.workspace.ledger)
        cells = [p.cell for p in ledger.studies[NAME].proposals.values()] if NAME in ledger.studies else []
        ended = sum(ledger.outcome(cell, NAME) is not None for cell in cells)
        return ended, sum(len(RunDirectory(self.workspace, cell).read_metrics()) for cell in cells)

    def idle(self) -> tuple[int, int]:
        """Return (how many good slots are idle, for how many there are trials), as the ledger and the locks say."""
        ledger = Ledger(self.workspace.ledger)
        cells = [p.cell for p in ledger.studies[NAME].proposals.values()] if NAME in ledger.studies else []
        left = [cell for cell in cells if ledger.outcome(cell, NAME) is None]
        running = sum(is_running(RunDirectory(self.workspace, cell)) for cell in left)
        wanted = min(GPUS * len(self.nodes) - 1, len(CELLS) - len(cells) + len(left))
        return max(0, wanted - running), wanted

    # -- kills --------------------------------------------------------------------------------------------------------

    def kill_worker(self, draw: random.Random) -> bool:
        """Kill a process that trains, and return whether there was one."""
        found: list[psutil.Process] = []
        for node in self.nodes:
            try:
                found += workers_of(node)
            except psutil.Error:
                continue
        if not found:
            return False
        draw.choice(found).kill()
        return True

    def kill_node(self, draw: random.Random) -> bool:
        """Kill a node with all its processes, and add a new node."""
        number = draw.randrange(len(self.nodes))
        self.cluster.remove_node(self.nodes[number], allow_graceful=False)
        self.nodes[number] = self._add_node(number)
        return True

    def kill_driver(self, draw: random.Random | None = None) -> bool:
        """Kill the command, and return whether it was running."""
        if self.driver is None or self.driver.poll() is not None:
            return False
        self.driver.send_signal(signal.SIGKILL)
        self.driver.wait()
        return True

    def kill_server(self, draw: random.Random) -> bool:
        """Kill MLflow's server, and start it again after some seconds."""
        self.server.kill()
        time.sleep(draw.uniform(2, 6))
        self.server.start()
        return True


def disturbed(
    stage: Stage, draw: random.Random, kills: int, limit: float, what: Mapping[str, int] = WHAT, between: int = 1
) -> list[Kill]:
    """Run the study until it ends, with random kills, and return the kills.

    Args:
        draw: source of the random choices and times.
        kills: number of kills to make.
        limit: seconds after which the study is given up.
        what: what is killed -> how often, in proportion.
        between: number of epochs, of all trials together, that must end between two kills.
    """
    ways: dict[str, Callable[[random.Random], bool]] = {
        "trial worker": stage.kill_worker,
        "Ray node": stage.kill_node,
        "driver": stage.kill_driver,
        "tracking server": stage.kill_server,
    }
    order = [each for each, often in what.items() for _ in range(round(often * kills / sum(what.values())))]
    draw.shuffle(order)
    done: list[Kill] = []
    began, last_epochs = time.monotonic(), -between
    stage.start_driver()
    while time.monotonic() - began < limit:
        time.sleep(draw.uniform(1, 4))
        if stage.bad_gpu:
            stage.idleness.note(time.monotonic(), *stage.idle())
        if stage.driver is None or stage.driver.poll() is not None:
            if stage.driver is not None and stage.driver.returncode == 0:
                break
            stage.start_driver()
            continue
        ended, epochs = stage.progress()
        # Without an epoch since the last kill, the next one would come before anything runs.
        if order and epochs >= last_epochs + between and ways[order[-1]](draw):
            done.append(Kill(time.monotonic() - began, order.pop(), ended, epochs))
            last_epochs = epochs
            print(f"{done[-1].second:6.0f} s  {done[-1].what}", file=sys.stderr, flush=True)
    return done


def undisturbed(folder: Path) -> dict[str, Any]:
    """Execute each run without Ray, and return its numbers by its digest."""
    from erat.config import build
    from orchestration.run.execute import execute_run

    numbers = {}
    for cell in CELLS:
        config = build("demo", BASE | cell, quiet=True)
        result = execute_run(config, Workspace(folder / "control"))
        numbers[config.digest()] = numbers_of(asdict(result))
    return numbers


def numbers_of(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parts of a run's result that kills must not change."""
    names = ("status", "epochs", "val_accuracy", "best_val_accuracy", "final_test_accuracy", "best_val_test_accuracy")
    return {name: result[name] for name in (*names, "val_history", "checksum")}


def ends_of(stage: Stage) -> list[dict[str, Any]]:
    """Return the events of the ledger that say how a run ended."""
    events = map(json.loads, stage.workspace.ledger.read_text().splitlines())
    return [event for event in events if event["event"] in ("done", "failed", "stopped")]


def faults(stage: Stage, control: dict[str, Any]) -> list[str]:
    """Return the differences from the undisturbed runs, as text; an empty list if there are none."""
    ends = ends_of(stage)
    got = {end["cell"]: numbers_of(end["result"]) for end in ends if end["event"] == "done"}
    found = [f"cells differ: {sorted(got)} and {sorted(control)}"] if got.keys() != control.keys() else []
    found += [f"{cell}: {got[cell]} is not {wanted}" for cell, wanted in control.items() if got.get(cell) != wanted]
    return found + faults_of_counting(stage, control)


def _faults_of_places(stage: Stage) -> list[str]:
    """Return what went otherwise than it must with a bad GPU, and print how long the others were idle."""
    events = [json.loads(line) for line in stage.workspace.ledger.read_text().splitlines()]
    out = [event["where"] for event in events if event["event"] == "place" and event["out"]]
    share = stage.idleness.share
    print(f"Excluded: {', '.join(out) or 'nothing'}. Good slots were idle for {share:.0%} of the time they had work.\n")
    wrong = [] if out else ["the bad GPU was never excluded"]
    wrong += [f"{where} was excluded" for where in out if not where.startswith("GPU 0 of ")]
    return wrong + ([f"good slots were idle for {share:.0%}"] if share > MOST_IDLE else [])


def faults_of_counting(stage: Stage, control: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return, as text, what the ledger or MLflow has not once, and what MLflow has otherwise than it should.

    Args:
        control: digest of a run -> its numbers; see `numbers_of`.
    """
    import mlflow

    ended = Counter(end["cell"] for end in ends_of(stage))
    found = [f"{cell} ended {count} times" for cell, count in ended.items() if count != 1]
    client = mlflow.MlflowClient(stage.server.uri)
    experiment = client.get_experiment_by_name("erat")
    runs = client.search_runs([experiment.experiment_id], max_results=1000) if experiment else []
    children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    found += [f"{len(runs) - len(children)} parents"] if len(runs) - len(children) != 1 else []
    counted = Counter(run.data.tags["cell"] for run in children)
    found += [f"{cell}: {count} MLflow runs" for cell, count in counted.items() if count != 1]
    found += [f"MLflow lacks {sorted(control.keys() - counted.keys())}"] if control.keys() - counted.keys() else []
    for run in children:
        cell, wanted = run.data.tags["cell"], control.get(run.data.tags["cell"], {})
        points = sorted((p.step, p.value) for p in client.get_metric_history(run.info.run_id, "val_accuracy"))
        if points != list(enumerate(wanted.get("val_history", []), start=1)):
            found.append(f"{cell}: MLflow has {len(points)} points: {points[:3]}...")
        if run.info.status != "FINISHED" or run.data.tags.get("status") != wanted.get("status"):
            found.append(f"{cell}: MLflow says {run.info.status}, {run.data.tags.get('status')}")
        if run.data.metrics.get("final_test_accuracy") != wanted.get("final_test_accuracy"):
            found.append(f"{cell}: MLflow has another final accuracy")
    return found


def show(kills: Sequence[Kill]) -> None:
    """Print the kills as a table, and how often each kind occurred."""
    print("| second | killed | cells ended | epochs done |\n|--:|:--|--:|--:|")
    for kill in kills:
        print(f"| {kill.second:.0f} | {kill.what} | {kill.ended} | {kill.epochs} |")
    counted = Counter(kill.what for kill in kills)
    print(f"\n{len(kills)} kills: " + ", ".join(f"{count} x {what}" for what, count in sorted(counted.items())))


def options_of(description: str | None, kills: int, limit: float, *, bad_gpu: bool = False) -> argparse.Namespace:
    """Return the options of a command line, with these numbers of kills and of seconds unless others are given.

    Args:
        bad_gpu: whether there is the option `--bad-gpu`.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of what is killed when")
    parser.add_argument("--kills", type=int, default=kills)
    parser.add_argument("--limit", type=float, default=limit, help="seconds after which it is given up")
    if bad_gpu:
        words = "two slots on each node, one of which kills its workers"
        parser.add_argument("--bad-gpu", action="store_true", help=words)
    return parser.parse_args()


def judged(stage: Stage, kills: Sequence[Kill], most: int, wrong: Sequence[str], right: str) -> int:
    """Print the kills, what is wrong or else that all is right, and return the exit status.

    Args:
        most: the number of kills that were to be made.
        wrong: what is wrong; if anything is, the end of the driver's log is printed, too.
        right: what to say if nothing is.
    """
    show(kills)
    print("\n".join(wrong) or right)
    if wrong:
        print(Path(stage.log.name).read_text()[-3000:], file=sys.stderr)
    return 1 if wrong or len(kills) < most else 0


def main() -> int:
    """Run the study and return the exit status."""
    options = options_of(__doc__, 30, 1500, bad_gpu=True)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        control = undisturbed(folder)
        space = {"name": NAME, "about": "cells under kills", "proposals": 0, "baselines": CELLS}
        stage, began = Stage(folder, stack, space, BASE, bad_gpu=options.bad_gpu), time.monotonic()
        kills = disturbed(stage, random.Random(options.seed), options.kills, options.limit)
        seconds = time.monotonic() - began
        wrong = faults(stage, control) + (_faults_of_places(stage) if options.bad_gpu else [])
        print(
            f"Seed {options.seed}: {len(CELLS)} cells of {EPOCHS} epochs, {seconds:.0f} s, MLflow on {stage.store}.\n"
        )
        right = f"{len(control)} cells, each ended once, with the numbers of the undisturbed run."
        return judged(stage, kills, options.kills, wrong, right)


if __name__ == "__main__":
    sys.exit(main())
