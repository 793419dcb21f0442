"""Every defense on two workers: the same selection and the same bits on both, and as far as it can be one worker's.

One pair of processes trains all of them and writes down what it saw; the tests read that.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from test_parallel import smooth
from torch import Tensor
from torch.multiprocessing.spawn import start_processes

from erat.config import RunConfig, load_config
from erat.data.base import CorruptedSet
from erat.defenses import mixmatch
from erat.defenses.base import Clock, EpochPlan
from erat.engine.parallel import Ranks
from erat.engine.trainer import Trainer
from erat.registry import BACKBONES, DEFENSES

Record = dict[str, Any]

# On a network without batch statistics. 16 samples a step are shares of 8, a whole block of mixup's neighbours.
RUNS: dict[str, dict[str, Any]] = {name: {"defense.name": name} for name in DEFENSES.names()} | {
    "at both norms": {"defense.name": "at", "defense.norms": "both"},
    "iss ueraser": {"defense.name": "iss", "defense.strong": True, "defense.worst_of": 2},
    "erat jsd": {"defense.name": "erat", "defense.selector": "jsd"},
    "dividemix in turn": {"defense.name": "dividemix", "defense.splits": "in_turn"},
    "dividemix wo prior": {"defense.name": "dividemix", "defense.adversarial": True},
    "unicon wo prior": {"defense.name": "unicon", "defense.contrastive_weight": 0.0},
}
SELECTING = [name for name in RUNS if RUNS[name]["defense.name"] in ("erat", "dividemix", "unicon", "mspl")]
# What each worker takes over its own share: DAT's batch statistics, MixMatch's prior penalty, UNICON's contrastive
# term, MSPL's and its prototypes. These agree with one worker in parts alone.
PER_WORKER = ["dat", "dividemix", "dividemix in turn", "unicon", "mspl"]
EXACT = [name for name in RUNS if name not in PER_WORKER]


@contextmanager
def set_up(name: str) -> Iterator[None]:
    """Where a run is to go without the prior penalty, it is worth nothing."""
    if "wo prior" not in name:
        yield
        return
    with mock.patch.object(mixmatch, "prior_penalty", lambda logits: 0 * logits.sum()):
        yield


def train(config: RunConfig, data: CorruptedSet) -> Record:
    """A run, with each epoch's plan, each step's terms and the gradients that it steps along."""
    trainer = Trainer(config, data, Ranks.current())
    plans: list[tuple[Any, Any]] = []
    gradients: list[list[Tensor]] = []
    terms: list[tuple[str, dict[str, float]]] = []
    plan, step, update = trainer.plan, trainer._optimizer.step, trainer._update

    def recorded_plan(clock: Clock) -> EpochPlan:
        made = plan(clock)
        plans.append((made.selected, made.predicted))
        return made

    def recorded_step() -> None:
        gradients.append([p.grad.clone() for p in trainer.defense.networks.parameters() if p.grad is not None])
        step()

    def recorded_update(*arguments: Any) -> Any:
        made = update(*arguments)
        terms.append((arguments[0].phase, {key: float(value) for key, value in made.figures().items()}))
        return made

    trainer.plan = recorded_plan  # type: ignore[method-assign]
    trainer._optimizer.step = recorded_step  # type: ignore[method-assign, assignment]
    trainer._update = recorded_update  # type: ignore[method-assign]
    reports = list(trainer.run())
    return {
        "plans": plans,
        "gradients": gradients,
        "terms": terms,
        "history": [[report.train_loss, report.val_accuracy, report.test_accuracy] for report in reports],
        "selection": [[report.noise_caught, report.caught_per_class, report.labelled_per_class] for report in reports],
        "state": {name: value.clone() for name, value in trainer.defense.state_dict().items()},
        "predictions": trainer.predict_test(),
    }


def work(rank: int, folder: Path) -> None:
    """What each of the two processes does."""
    torch.set_num_threads(1)
    if "lo" in [name for _, name in socket.if_nameindex()]:
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    BACKBONES.add("smooth", smooth)
    meeting = f"file://{folder / 'meeting'}"
    dist.init_process_group("gloo", meeting, timedelta(seconds=60), world_size=2, rank=rank)
    data = torch.load(folder / "data.pt", weights_only=False)
    seen: Record = {}
    for name in RUNS:
        with set_up(name):
            seen[name] = train(load_config(folder / f"{name}.json"), data)
    torch.save(seen, folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def data(make_data: Callable[..., CorruptedSet]) -> CorruptedSet:
    return make_data(96)


@pytest.fixture(scope="module")
def configs(make_config: Callable[..., RunConfig]) -> Callable[[int], dict[str, RunConfig]]:
    def of(workers: int) -> dict[str, RunConfig]:
        BACKBONES.add("smooth", smooth)
        shared = {"model.name": "smooth", "train.workers": workers, "train.epochs": 2, "train.lr": 0.02}
        try:
            return {name: make_config(shared | options) for name, options in RUNS.items()}
        finally:
            del BACKBONES._targets["smooth"], BACKBONES._loaded["smooth"]

    return of


@pytest.fixture(scope="module")
def both(
    data: CorruptedSet, configs: Callable[[int], dict[str, RunConfig]], tmp_path_factory: pytest.TempPathFactory
) -> list[Record]:
    """What the two workers saw."""
    folder = tmp_path_factory.mktemp("workers")
    torch.save(data, folder / "data.pt")
    for name, config in configs(2).items():
        (folder / f"{name}.json").write_text(config.model_dump_json())
    start_processes(work, (folder,), nprocs=2, start_method="spawn")
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)]


@pytest.fixture(scope="module")
def alone(data: CorruptedSet, configs: Callable[[int], dict[str, RunConfig]]) -> Callable[[str], Record]:
    """The same run on one worker."""
    singles, seen = configs(1), {}

    def of(name: str) -> Record:
        if name not in seen:
            BACKBONES.add("smooth", smooth)
            try:
                with set_up(name):
                    seen[name] = train(singles[name], data)
            finally:
                del BACKBONES._targets["smooth"], BACKBONES._loaded["smooth"]
        return seen[name]

    return of

def test_explore(both, alone):
    for name in RUNS:
        one, two, other = alone(name), both[0][name], both[1][name]
        print("==", name, len(one["gradients"]), len(two["gradients"]))
        for (s1, _), (s2, _), (s3, _) in zip(one["plans"], two["plans"], other["plans"]):
            if s1 is not None:
                print("  plan", bool((s2 == s3).all()), int((s1 != s2).sum()), int(s1.sum()), len(s1))
        n = len(one["gradients"])
        d = [max(float((a - b).abs().max()) for a, b in zip(two["gradients"][i], one["gradients"][i])) if all(a.shape == b.shape for a, b in zip(two["gradients"][i], one["gradients"][i])) else -1 for i in range(min(n, len(two["gradients"])))]
        g = [max(float(b.abs().max()) for b in one["gradients"][i]) for i in range(n)]
        print("  grad diff", ["%.1e" % x for x in d])
        print("  grad size", ["%.1e" % x for x in g])
        print("  state", max(float((two["state"][k].float() - v.float()).abs().max()) for k, v in one["state"].items()))
        print("  same bits", all(torch.equal(v, other["state"][k]) for k, v in two["state"].items()))
        print("  hist", one["history"], two["history"], other["history"])
        first = [i for i, (p, _) in enumerate(one["terms"]) if p == "train"][0]
        print("  terms", one["terms"][first], two["terms"][first], other["terms"][first])
        if name == "mspl":
            print("  proto", two["state"]["prototypes"].norm(dim=2), one["state"]["prototypes"].norm(dim=2))
