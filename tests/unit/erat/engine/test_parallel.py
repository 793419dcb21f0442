"""Tests that two workers do what one does: the same batches and draws, gradients, and labelled set on both.

One pair of processes does everything that needs two workers and records what happened; the tests read the record.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from erat.config import RunConfig, load_config
from erat.data.random import BatchRandom
from erat.data.types import CorruptedSet
from erat.engine import exchange
from erat.engine.parallel import Ranks
from erat.engine.trainer import Trainer
from tests.two_workers import Record, alone, configurations, joined, on_two_workers

# Warm-up, then the semi-supervised phase; 51 samples do not divide evenly, neither into batches nor over workers.
RUNS: dict[str, dict[str, Any]] = {
    "warmup": {"model.name": "smooth", "defense.warmup_epochs": 1, "train.epochs": 1},
    "semi-supervised": {"model.name": "smooth", "defense.warmup_epochs": 0, "defense.ramp_epochs": 0},
    "wo Uni": {"model.name": "smooth", "defense.warmup_epochs": 0, "defense.uniform": False, "train.epochs": 1},
    "ce": {"model.name": "smooth", "defense.name": "ce", "train.epochs": 1},
    "batch norm": {"model.name": "small", "defense.warmup_epochs": 1},
}


def train(config: RunConfig, data: CorruptedSet, folder: Path | None = None) -> Record:
    """Train a run, and return the gradients along which each update steps and the content of each batch."""
    trainer = Trainer(config, data, Ranks.current(), folder)
    gradients: list[list[Tensor]] = []
    labelled: list[Tensor] = []
    unlabelled: list[Tensor] = []
    step, loss = trainer._optimizer.step, trainer.defense.loss

    def recorded_step() -> None:
        gradients.append([p.grad.clone() for p in trainer.defense.parameters() if p.grad is not None])
        step()

    def recorded_loss(batch: Any, clock: Any) -> Any:
        labelled.append(batch.indices)
        unlabelled.append(batch.unlabelled_indices)
        terms = loss(batch, clock)
        terms.note("mean_index", batch.indices.double().mean())  # of another half of the batch on each worker
        return terms

    trainer._optimizer.step = recorded_step  # type: ignore[method-assign, assignment]
    trainer.defense.loss = recorded_loss  # type: ignore[method-assign]
    reports = list(trainer.run())
    return {
        "gradients": gradients,
        "labelled": labelled,
        "unlabelled": unlabelled,
        "history": [
            [report.train_loss, report.val_accuracy, report.test_accuracy, report.labelled_fraction]
            + [value for _, value in sorted([*report.loss_terms.items(), *report.numbers.items()])]
            for report in reports
        ],
        "state": trainer.defense.state_dict(),
        "predictions": trainer.predict_test(),
    }


def collectives(ranks: Ranks) -> Record:
    """Call every collective once, on values that differ between the workers."""
    rank = ranks.rank
    parameters = [nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(1))]
    parameters[0].grad = torch.full((2, 2), float(rank))
    parameters[1].grad = torch.arange(3.0) * (1 + rank)
    ranks.exchange(parameters).end()
    norm: Any = nn.BatchNorm1d(2)
    norm.running_mean = torch.tensor([1.0, 2.0]) + rank
    norm.num_batches_tracked += 5
    ranks.average_buffers(norm)
    gathered = {}
    for count in (0, 1, 2, 5, 6):
        shard = ranks.shard(count)
        rows = torch.arange(count).view(-1, 1).repeat(1, 3)[shard.start : shard.stop]
        gathered[count] = ranks.gather_rows(rows, count)
    return {
        "gradients": [parameter.grad for parameter in parameters],
        "buffers": [norm.running_mean, norm.num_batches_tracked],
        "gathered": gathered,
        "sum": ranks.sum(torch.tensor(float(rank + 1))),
        "agree": [ranks.agree(rank == 0), ranks.agree(rank == 1), ranks.agree(True), ranks.agree(False)],
        "first": ranks.first,
        "place": (ranks.rank, ranks.workers),
    }


def work(rank: int, folder: Path) -> None:
    """Do everything that one of the two processes does."""
    with joined(rank, folder) as data:
        seen: Record = {"collectives": collectives(Ranks.current())}
        for name in RUNS:
            checkpoints = folder / f"checkpoints {name} of {rank}"
            seen[name] = train(load_config(folder / f"{name}.json"), data, checkpoints)
            seen[name]["checkpoint"] = checkpoints.exists()
        seen["buckets"] = in_buckets(load_config(folder / "semi-supervised.json"), data)
        torch.save(seen, folder / f"{rank}.pt")


def in_buckets(config: RunConfig, data: CorruptedSet) -> Record:
    """Train with buckets of one or two parameters, and count those that left while backward was under way."""
    all_reduce, inside = torch.distributed.all_reduce, [0]

    def counted(*arguments: Any, **options: Any) -> Any:
        inside[0] += torch._C._current_graph_task_id() != -1
        return all_reduce(*arguments, **options)

    with mock.patch.object(exchange, "BUCKET_BYTES", 256), mock.patch.object(torch.distributed, "all_reduce", counted):
        return train(config, data) | {"inside": inside[0]}


@pytest.fixture(scope="module")
def data(make_data: Callable[..., CorruptedSet]) -> CorruptedSet:
    return make_data(51)


@pytest.fixture(scope="module")
def both(
    data: CorruptedSet, make_config: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory
) -> list[Record]:
    """Return the records of the two workers."""
    return on_two_workers(work, tmp_path_factory.mktemp("workers"), data, configurations(make_config, RUNS, 2))


@pytest.fixture(scope="module")
def one(data: CorruptedSet, make_config: Callable[..., RunConfig]) -> Callable[[str], Record]:
    """Return the record of the same run on one worker."""
    return alone(train, configurations(make_config, RUNS, 1), data)


# --- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["warmup", "semi-supervised", "wo Uni", "ce"])
def test_two_workers_step_along_one_worker_s_gradient(
    both: list[Record], one: Callable[[str], Record], name: str
) -> None:
    single = one(name)
    mine, other = both[0][name], both[1][name]
    assert len(mine["gradients"]) == len(single["gradients"]) > 0
    for ours, theirs in zip(mine["gradients"][0], single["gradients"][0], strict=True):
        assert (ours - theirs).abs().max() < 1e-6
        assert theirs.abs().max() > 1e-3
    for step in range(len(mine["gradients"])):
        assert all(torch.equal(a, b) for a, b in zip(mine["gradients"][step], other["gradients"][step], strict=True))
    for key, value in single["state"].items():
        torch.testing.assert_close(mine["state"][key], value, rtol=0, atol=1e-4)
    torch.testing.assert_close(torch.tensor(mine["history"]), torch.tensor(single["history"]), rtol=1e-4, atol=1e-4)


def test_buckets_sum_to_the_same_bits_and_leave_during_backward(both: list[Record]) -> None:
    """With two workers no order of addition depends on the place of a number in a bucket."""
    for seen in both:
        whole, buckets = seen["semi-supervised"], seen["buckets"]
        assert len(buckets["gradients"]) == len(whole["gradients"]) > 0
        for ours, theirs in zip(buckets["gradients"], whole["gradients"], strict=True):
            assert all(map(torch.equal, ours, theirs))
        assert buckets["history"] == whole["history"]
        assert buckets["inside"] >= 3 * len(buckets["gradients"])


@pytest.mark.parametrize("name", RUNS)
def test_two_workers_share_one_worker_s_batches(both: list[Record], one: Callable[[str], Record], name: str) -> None:
    single = one(name)
    for kind in ("labelled", "unlabelled"):
        first, second = both[0][name][kind][0], both[1][name][kind][0]
        assert len(first) == len(second)
        assert torch.equal(torch.cat([first, second]), single[kind][0])


@pytest.mark.parametrize("name", RUNS)
def test_both_workers_hold_the_same_bits(both: list[Record], name: str) -> None:
    """Weights, statistics, the labelled set and all figures are equal: one worker's checkpoint serves the other too."""
    mine, other = both[0][name], both[1][name]
    for key, value in mine["state"].items():
        assert torch.equal(value, other["state"][key]), key
    assert mine["history"] == other["history"]
    assert torch.equal(mine["predictions"], other["predictions"])


def test_both_workers_select_the_same_and_what_one_selects(both: list[Record], one: Callable[[str], Record]) -> None:
    sets = [seen["semi-supervised"]["state"]["selector.labelled"] for seen in both]
    assert torch.equal(sets[0], sets[1])
    assert 0 < int(sets[0].sum()) < 51
    assert torch.equal(sets[0], one("semi-supervised")["state"]["selector.labelled"])


def test_batch_statistics_are_averaged(both: list[Record]) -> None:
    statistics = {key: value for key, value in both[0]["batch norm"]["state"].items() if "running_var" in key}
    assert statistics
    assert all(bool((value != 1).any()) for value in statistics.values())


def test_only_the_first_worker_writes_checkpoints(both: list[Record]) -> None:
    assert [[seen[name]["checkpoint"] for name in RUNS] for seen in both] == [[True] * len(RUNS), [False] * len(RUNS)]


# --- collectives -----------------------------------------------------------------------------------------------------


def test_collectives(both: list[Record]) -> None:
    for rank, seen in enumerate(both):
        got = seen["collectives"]
        assert got["place"] == (rank, 2)
        assert got["first"] is (rank == 0)
        assert got["gradients"][0].tolist() == [[0.5, 0.5], [0.5, 0.5]]
        assert got["gradients"][1].tolist() == [0.0, 1.5, 3.0]
        assert got["gradients"][2] is None
        assert got["buffers"][0].tolist() == [1.5, 2.5]
        assert got["buffers"][1] == 5, "counts are no averages"
        assert got["sum"] == 3
        assert got["agree"] == [True, False, True, False], "the first worker's word"


@pytest.mark.parametrize("count", [0, 1, 2, 5, 6])
def test_rows_of_uneven_shards_come_together_in_order(both: list[Record], count: int) -> None:
    for seen in both:
        gathered = seen["collectives"]["gathered"][count]
        assert gathered.tolist() == [[i] * 3 for i in range(count)]


@pytest.mark.parametrize("workers", [1, 2, 3, 7])
@pytest.mark.parametrize("count", [0, 1, 5, 7, 20])
def test_shards_cover_every_row_once(workers: int, count: int) -> None:
    shards = [Ranks(rank, workers).shard(count) for rank in range(workers)]
    assert [row for shard in shards for row in shard] == list(range(count))


def test_a_worker_alone_talks_to_nobody() -> None:
    ranks = Ranks.current()
    assert ranks == Ranks(0, 1)
    rows = torch.arange(4)
    assert ranks.gather_rows(rows, 4) is rows
    assert ranks.agree(False) is False
    assert ranks.agree(True) is True
    assert ranks.sum(torch.tensor(2.0)) == 2


# --- draws -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("copies", [1, 2, 3])
@pytest.mark.parametrize("draw", ["rand", "randn", "randint", "bernoulli"])
def test_grouped_rows_are_one_worker_s_rows(draw: str, copies: int) -> None:
    """Each worker has 3 labelled and 2 unlabelled rows, and these again for each view: one worker has 6 and 4."""

    def rows(rank: int, workers: int, labelled: int, unlabelled: int) -> Tensor:
        random = BatchRandom(torch.Generator().manual_seed(0), rank, workers).grouped(labelled, unlabelled)
        n = copies * (labelled + unlabelled)
        calls = {
            "rand": lambda: random.rand(n, 4),
            "randn": lambda: random.randn(n, 4),
            "randint": lambda: random.randint(1000, n, 2),
            "bernoulli": lambda: random.bernoulli(0.5, n),
        }
        return calls[draw]()

    whole = rows(0, 1, 6, 4)
    parts = [rows(rank, 2, 3, 2).view(copies, 5, -1) for rank in (0, 1)]
    together = torch.cat([parts[0][:, :3], parts[1][:, :3], parts[0][:, 3:], parts[1][:, 3:]], dim=1)
    assert torch.equal(together.flatten(0, 1), whole.view(copies * 10, -1))


def test_draws_leave_both_workers_at_the_same_place() -> None:
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    for rank, generator in enumerate(generators):
        random = BatchRandom(generator, rank, 2).grouped(3, 2)
        random.rand(10)
        random.randint(5, 5)
        BatchRandom(generator, rank, 2).randn(2, 7)
    assert torch.equal(generators[0].get_state(), generators[1].get_state())


def test_a_draw_that_does_not_repeat_the_groups_is_a_mistake() -> None:
    random = BatchRandom(torch.Generator(), 0, 2).grouped(3, 2)
    with pytest.raises(AssertionError, match="does not repeat"):
        random.rand(7)
    assert len(BatchRandom(torch.Generator(), 1, 2).grouped(0, 0).rand(0)) == 0
