"""Compares two Ray nodes with one worker: `python -m tests.two_nodes --seeds 0,1,2,3,4 --out two_nodes.jsonl`.

The cluster is a head without cores and two nodes with one core each. Each node is in a network namespace with its own
address and its own temporary folder, and all share an S3 server (tests/namespaces.py; if namespaces cannot be created,
all have the machine's own address, and the output says so). The real command trains ERAT and DivideMix on a network
with batch normalisation: for each seed on two workers, one on each node, on one worker, and on one worker whose sums
are rounded differently. Two workers must give the same as one, within the tolerances of tests/two_nodes_report.py. The
output is Markdown; the exit status is 0 if all tolerances hold. With the same file, the study resumes. KEY=VALUE
changes the runs.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor

from erat.config import RunConfig, build, load_config
from erat.corruption.pipeline import corrupted_set
from erat.data.types import CorruptedSet
from erat.defenses.base import Clock
from erat.engine.parallel import Ranks
from erat.engine.trainer import Trainer
from erat.errors import UserError
from orchestration.run.directory import RunDirectory
from orchestration.storage.workspace import Workspace
from tests import namespaces
from tests.servers import s3_server
from tests.two_nodes_report import Row, report
from tests.two_workers import joined, on_two_workers

ROOT = Path(__file__).parents[1]
DEFENSES = ("erat", "dividemix")
BASE = {
    "data.limit": 2000,
    "corruption.data": "urp",
    "corruption.labels": "symmetric",
    "corruption.rate": 0.4,
    "defense.warmup_epochs": 5,  # a network that has learnt less selects by chance, and DivideMix then fails
    "train.epochs": 10,
    "train.batch_size": 64,
}
# How each seed is trained. `rounded otherwise` stores images in the channels-last layout, which changes only the order
# of sums.
ARMS = {
    "two nodes": {"train.workers": 2},
    "one worker": {"train.workers": 1},
    "rounded otherwise": {"train.workers": 1, "train.channels_last": True},
}
# Both kinds of step, each as the first step, from the same weights. Without a ramp, because it would begin at weight 0.
STEPS = {"warm-up": {}, "after it": {"defense.warmup_epochs": 0, "defense.ramp_epochs": 0}}
MEMORY = 128 * 2**20  # bytes of the object store of each node
WORKER = "RayTrainWorker"  # part of the title of a process that trains


@dataclass(frozen=True)
class Stage:
    """A running cluster.

    Attributes:
        folder: the folder for its files.
        address: address of its head.
        storage: URL of the storage that its nodes share.
        hosts: the network namespaces of its two nodes; empty: everything has the machine's own address.
    """

    folder: Path
    address: str
    storage: str
    hosts: list[namespaces.Host] = field(default_factory=list)

    @property
    def workspace(self) -> Workspace:
        """Return the workspace of the driver."""
        return Workspace(self.folder / "workspace").sharing(self.storage)

    @property
    def tracking(self) -> str:
        """Return the tracking store for its MLflow runs, whatever the environment of this process says."""
        return f"sqlite:///{self.folder / 'mlflow.db'}"


@contextmanager
def in_namespaces(folder: Path) -> Iterator[Stage]:
    """Run a cluster of two nodes with their own addresses. Its processes end with their process namespace."""
    with ExitStack() as stack:
        hosts = stack.enter_context(namespaces.hosts(2))
        storage = stack.enter_context(s3_server(namespaces.HUB))
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        address = f"{namespaces.HUB}:6379"
        head = ("--head", "--port=6379", f"--node-ip-address={namespaces.HUB}", "--num-cpus=0")
        _start_ray(folder / "head", [], *head, "--include-dashboard=false")
        for host in hosts:
            node = (f"--address={address}", f"--node-ip-address={host.address}", "--num-cpus=1")
            _start_ray(folder / host.address, host.words(), *node)
        yield Stage(folder, address, storage, hosts)


def _start_ray(folder: Path, there: Sequence[str], *words: str) -> None:
    """Call `ray start` with a temporary folder for this node alone.

    Args:
        there: beginning of a command line that runs another one on a host; empty: here.
        words: arguments of `ray start`.
    """
    folder.mkdir()
    ray = str(Path(sys.executable).with_name("ray"))
    done = subprocess.run(
        [*there, ray, "start", *words, f"--object-store-memory={MEMORY}", f"--temp-dir={folder / 'ray'}"],
        env=os.environ | {"TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"ray start {' '.join(words)}: {done.stdout[-1000:]}{done.stderr[-1000:]}")


@contextmanager
def on_one_address(folder: Path) -> Iterator[Stage]:
    """Run a cluster of two nodes that differ only in their folders."""
    from ray.cluster_utils import Cluster

    with s3_server() as storage:
        options = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": MEMORY}
        cluster = Cluster(initialize_head=True, head_node_args=options)
        try:
            for name in "ab":
                (folder / name).mkdir()
                own = {"TMPDIR": str(folder / name)}
                cluster.add_node(num_cpus=1, object_store_memory=MEMORY, env_vars=own)
            yield Stage(folder, cluster.address, storage)
        finally:
            cluster.shutdown()


@contextmanager
def cluster(loopback: bool) -> Iterator[Stage]:
    """Run a cluster, in network namespaces if they can be created; this program then starts again inside them.

    Args:
        loopback: do not use namespaces.
    """
    why = "asked for" if loopback else None if namespaces.inside() else namespaces.problem()
    if why is None:
        namespaces.enter([sys.executable, "-m", "tests.two_nodes", *sys.argv[1:]])
    else:
        print(f"Both nodes at one address, without network namespaces: {why}.", file=sys.stderr)
    made = in_namespaces if why is None else on_one_address
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, made(Path(folder)) as stage:
        yield stage


# --- runs ------------------------------------------------------------------------------------------------------------


def trained(stage: Stage, arm: str, wanted: dict[str, Any]) -> Row:
    """Train one run with the command and return its figures.

    Raises:
        RuntimeError: the run failed.
    """
    words = [*(f"{key}={value}" for key, value in wanted.items()), f"storage.path={stage.storage}"]
    said, log = stage.folder / "said", stage.folder / "log"
    with said.open("wb") as out, log.open("wb") as err:
        command = subprocess.Popen(
            [sys.executable, "orchestrate.py", "train", *words, "--address", stage.address, "--json"],
            cwd=ROOT,
            env=os.environ | {"ERAT_HOME": str(stage.workspace.root), "MLFLOW_TRACKING_URI": stage.tracking},
            stdout=out,
            stderr=err,
        )
        at: set[tuple[str, ...]] = set()
        try:
            while command.poll() is None:
                at.add(nodes_that_train(stage.address))
                time.sleep(0.5)
        finally:
            command.kill()
            command.wait()
    if command.returncode != 0:
        raise RuntimeError(f"{' '.join(words)}: status {command.returncode}\n{log.read_text()[-3000:]}")
    run = json.loads(said.read_text().splitlines()[-1])
    epochs = RunDirectory(stage.workspace, run["cell"]).read_metrics()
    mask = believed(stage.workspace, run["cell"])
    return {
        "what": "run",
        "cell": run["cell"],
        "defense": wanted["defense.name"],
        "seed": wanted["train.seed"],
        "arm": arm,
        "namespaces": bool(stage.hosts),
        "nodes": max(at, key=len),
        "accuracy": run["final_test_accuracy"],
        "loss": [epoch["train_loss"] for epoch in epochs],
        "labelled_per_class": [epoch["labelled_per_class"] for epoch in epochs],
        "precision": epochs[-1]["selection_precision"],
        "noise_caught": epochs[-1]["noise_caught"],
        "believed": np.packbits(mask.numpy()).tobytes().hex(),
        "samples": len(mask),
        "seconds": run["train_seconds"],
    }


def nodes_that_train(address: str) -> tuple[str, ...]:
    """Return the address and the id of the node of each training process of this cluster, from its raylet."""
    found = []
    for process in psutil.process_iter():
        try:
            parent = process.parent() if WORKER in " ".join(process.cmdline()) else None
            words = parent.cmdline() if parent is not None else []
        except psutil.Error:  # it has just ended
            continue
        raylet = {name: value for name, _, value in (word.lstrip("-").partition("=") for word in words)}
        if raylet.get("gcs-address") == address:
            found.append(f"{raylet['node_ip_address']} ({raylet['node_id'][:8]})")
    return tuple(sorted(found))


def believed(workspace: Workspace, cell: str) -> Tensor:
    """Return the samples that a further epoch would take as labelled, bool (N,), from the checkpoint of a run.

    For DivideMix, these are the samples of the first network.
    """
    RunDirectory(workspace, cell).fetch("config.json", "checkpoint.pt")
    config = load_config(workspace.run_directory(cell) / "config.json")
    trainer = Trainer(config, corrupted_set(config, workspace.store()), folder=workspace.run_directory(cell))
    selected = trainer.plan(Clock(trainer.epochs_done)).selected
    assert selected is not None, "both defenses select"
    return selected


# --- gradients -------------------------------------------------------------------------------------------------------


def gradients(stage: Stage, base: dict[str, Any]) -> Iterator[Row]:
    """Compare the gradients of the first steps in two processes, one in each namespace, with those in one process."""
    one, two = first_steps(base, 1), first_steps(base, 2)
    data = corrupted_set(next(iter(one.values())), Workspace(stage.folder / "workspace").store())
    place = stage.folder / "gradients"
    place.mkdir()
    names = {f"{defense}, {step}": (defense, step) for defense, step in one}
    both = on_two_workers(_work, place, data, {name: two[key] for name, key in names.items()}, stage.hosts)
    for name, (defense, step) in names.items():
        pairs = zip(first_gradients(one[defense, step], data), both[0][name], strict=True)
        yield {
            "what": "gradients",
            "cell": one[defense, step].digest(),
            "defense": defense,
            "step": step,
            "addresses": [seen["address"] for seen in both],
            "relative": max(float((theirs - mine).abs().max() / mine.abs().max()) for mine, theirs in pairs),
        }


def first_steps(base: dict[str, Any], workers: int) -> dict[tuple[str, str], RunConfig]:
    """Return for each defense and kind of step a run that begins with this step."""
    own = base | {"train.workers": workers}
    return {
        (defense, step): build("demo", own | more | {"defense.name": defense}, quiet=True)
        for defense in DEFENSES
        for step, more in STEPS.items()
    }


def first_gradients(config: RunConfig, data: CorruptedSet) -> list[Tensor]:
    """Return the gradient of the first update, averaged over workers, for each parameter that it changes."""
    trainer, clock = Trainer(config, data, Ranks.current()), Clock(0)
    next(trainer.steps(trainer.plan(clock), clock))
    return [p.grad for p in trainer.defense.networks.parameters() if p.grad is not None]


def _work(rank: int, folder: Path, hosts: list[namespaces.Host]) -> None:
    """Compute the first gradients in one of the two processes, and write them to a file."""
    meeting, interface = None, "lo"
    if hosts:
        hosts[rank].join()
        meeting, interface = f"tcp://{hosts[0].address}:29400", namespaces.INTERFACE
    with joined(rank, folder, meeting, interface) as data:
        seen: dict[str, Any] = {path.stem: first_gradients(load_config(path), data) for path in folder.glob("*.json")}
        seen["address"] = psutil.net_if_addrs()[interface][0].address
        torch.save(seen, folder / f"{rank}.pt")


# --- the command -----------------------------------------------------------------------------------------------------


def study(stage: Stage, base: dict[str, Any], missing: list[tuple[str, dict[str, Any]]]) -> Iterator[Row]:
    """Compute the gradients, then train every missing run.

    Args:
        missing: (arm, keys) of each run.
    """
    yield from gradients(stage, base)
    for number, (arm, wanted) in enumerate(missing, start=1):
        words = f"{wanted['defense.name']}, seed {wanted['train.seed']}, {arm}"
        print(f"{time.strftime('%H:%M:%S')} run {number} of {len(missing)}: {words}", file=sys.stderr, flush=True)
        yield trained(stage, arm, wanted)


def _seeds(text: str) -> list[int]:
    if not all(word.isdecimal() for word in text.split(",")):
        raise argparse.ArgumentTypeError(f"must be whole numbers with commas, got {text!r}")
    return [int(word) for word in text.split(",")]


def main() -> int:
    """Run the study and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=_seeds, default="0,1,2,3,4", help="of training, with commas")
    parser.add_argument("--out", type=Path, help="file of JSON lines to add to, and to go on from")
    parser.add_argument("--loopback", action="store_true", help="no namespaces: both nodes on the machine's address")
    parser.add_argument("changes", nargs="*", metavar="KEY=VALUE", help="of every run, such as train.epochs=4")
    options = parser.parse_args()
    if odd := [change for change in options.changes if "=" not in change]:
        parser.error(f"changes must be KEY=VALUE, got {odd[0]!r}")
    base = BASE | dict(change.split("=", 1) for change in options.changes)
    wanted = [
        (arm, base | more | {"defense.name": defense, "train.seed": seed})
        for seed in options.seeds
        for defense in DEFENSES
        for arm, more in ARMS.items()
    ]
    try:
        runs = {build("demo", run, quiet=True).digest(): (arm, run) for arm, run in wanted}
        steps = {config.digest() for config in first_steps(base, 1).values()}
    except UserError as error:
        parser.error(str(error))
    # The last line about a run or a step counts, because the gradients are computed again whenever the study resumes.
    lines = options.out.read_text().splitlines() if options.out is not None and options.out.exists() else []
    known = {("run", cell) for cell in runs} | {("gradients", cell) for cell in steps}
    rows = {key: row for row in map(json.loads, lines) if (key := (row["what"], row["cell"])) in known}
    if missing := [run for cell, run in runs.items() if ("run", cell) not in rows]:
        torch.set_num_threads(1)
        with cluster(options.loopback) as stage:
            for row in study(stage, base, missing):
                rows[row["what"], row["cell"]] = row
                if options.out is not None:
                    with options.out.open("a") as file:
                        file.write(json.dumps(row) + "\n")
    text, holds = report(list(rows.values()))
    print(text)
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
