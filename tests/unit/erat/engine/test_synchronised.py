"""Tests batch statistics over all workers, and batches computed in parts: both give what one worker computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from erat.config import RunConfig, load_config
from erat.data.types import CorruptedSet
from erat.engine.parallel import Ranks
from erat.engine.synchronised import SynchronisedBatchNorm, synchronise
from erat.engine.trainer import Trainer
from erat.errors import UserError
from erat.registry import BACKBONES
from tests import two_workers
from tests.two_workers import Record, configurations, joined, on_two_workers, smooth

Config = Callable[..., RunConfig]
# On the demo's network, whose four BatchNorms see a whole batch: warm-up, selection, both parts of DivideMix. In
# float64, because in float32 a value before a ReLU comes so near to 0 that rounding flips its sign, and with it the
# gradient.
RUNS: dict[str, dict[str, Any]] = {
    "ce": {"defense.name": "ce", "train.epochs": 2},
    "erat": {"defense.warmup_epochs": 1, "train.epochs": 2},
    "dividemix": {"defense.name": "dividemix", "defense.warmup_epochs": 1, "train.epochs": 2},
    "dat": {"defense.name": "dat", "train.epochs": 1},
    "perturbed": {"defense.name": "ce", "train.epochs": 1, "val.objective": "perturbed"},
    "recomputed": {
        "defense.name": "ce",
        "model.name": "resnet18 in double",
        "train.epochs": 1,
        "train.checkpoint_activations": True,
    },
    "apart": {"defense.name": "ce", "train.epochs": 1, "train.sync_batchnorm": False},
    "accumulated": {"model.name": "smooth", "defense.warmup_epochs": 1, "train.accumulate": 2, "train.epochs": 2},
}

SHARED: dict[str, Any] = {"model.name": "small in double", "train.lr": 0.02}


def train(config: RunConfig, data: CorruptedSet) -> Record:
    trainer = Trainer(config, data, Ranks.current())
    gradients: list[list[Tensor]] = []
    step = trainer._optimizer.step

    def recorded_step() -> None:
        gradients.append([p.grad.clone() for p in trainer.defense.parameters() if p.grad is not None])
        step()

    trainer._optimizer.step = recorded_step  # type: ignore[method-assign, assignment]
    reports = list(trainer.run())
    return {
        "gradients": gradients,
        "history": [[report.train_loss, report.val_accuracy, report.test_accuracy] for report in reports],
        "labelled": [report.labelled_per_class for report in reports],
        "state": {name: value.clone() for name, value in trainer.defense.state_dict().items()},
        "kinds": sorted({type(part).__name__ for part in trainer.defense.modules() if isinstance(part, _BatchNorm)}),
    }


def one_layer(rank: int, workers: int) -> Record:
    """Return a layer's output, gradients and statistics on this worker's share of a batch of nine.

    The shares are five and four samples.
    """
    torch.manual_seed(0)
    inputs, weights = torch.randn(9, 3, 4, 4) * 2 + 1, torch.randn(9, 3, 4, 4)
    mine = [slice(0, 9)] if workers == 1 else [slice(0, 5), slice(5, 9)]
    part = mine[rank]
    layer: nn.Module = nn.BatchNorm2d(3)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([0.5, 1.0, 2.0]))
    if workers > 1:
        synchronise(layer, torch.device("cpu"))
    given = inputs[part].clone().requires_grad_()
    output = layer(given)
    (output * weights[part]).sum().backward()
    layer.eval()
    return {
        "output": output.detach(),
        "gradient": given.grad,
        "weight": layer.weight.grad,
        "state": dict(layer.state_dict()),
        "eval": layer(inputs).detach(),
        "half": layer.train()(given.detach().bfloat16()).dtype,
    }


def work(rank: int, folder: Path) -> None:
    with joined(rank, folder) as data:
        seen: Record = {name: train(load_config(folder / f"{name}.json"), data) for name in RUNS}
        seen["layer"] = one_layer(rank, 2)
        torch.save(seen, folder / f"{rank}.pt")


@pytest.fixture(scope="module")
def data(make_data: Callable[..., CorruptedSet]) -> CorruptedSet:
    return make_data(64)


@pytest.fixture(scope="module")
def both(data: CorruptedSet, make_config: Config, tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    """Return the records of the two workers."""
    configs = configurations(make_config, RUNS, 2, **SHARED)
    return on_two_workers(work, tmp_path_factory.mktemp("workers"), data, configs)


@pytest.fixture(scope="module")
def alone(data: CorruptedSet, make_config: Config) -> Callable[[str], Record]:
    """Return the record of the same run on one worker."""
    return two_workers.alone(train, configurations(make_config, RUNS, 1, **SHARED), data)


def test_a_layer_normalises_over_both_shares(both: list[Record]) -> None:
    one, (first, second) = one_layer(0, 1), (seen["layer"] for seen in both)
    for key in ("output", "gradient"):
        torch.testing.assert_close(torch.cat([first[key], second[key]]), one[key], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(first["weight"] + second["weight"], one["weight"], rtol=1e-5, atol=1e-4)
    for seen in (first, second):
        assert seen["state"].keys() == one["state"].keys()
        for key, value in one["state"].items():
            torch.testing.assert_close(seen["state"][key], value, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(seen["eval"], one["eval"], rtol=1e-5, atol=1e-5)
        assert seen["half"] == torch.bfloat16


@pytest.mark.parametrize("name", ["ce", "erat", "dat", "perturbed", pytest.param("recomputed", marks=pytest.mark.slow)])
def test_with_batch_norm_two_workers_do_what_one_does(
    both: list[Record], alone: Callable[[str], Record], name: str
) -> None:
    one, two = alone(name), both[0][name]
    assert two["kinds"] == ["SynchronisedBatchNorm"]
    assert len(two["gradients"]) == len(one["gradients"])
    for ours, theirs in zip(two["gradients"][0], one["gradients"][0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert two["labelled"] == one["labelled"]
    torch.testing.assert_close(torch.tensor(two["history"]), torch.tensor(one["history"]), rtol=0, atol=0.05)
    for key, value in one["state"].items():
        torch.testing.assert_close(two["state"][key], value, rtol=0, atol=2e-2)


def test_dividemix_selects_and_ends_as_on_one_worker(both: list[Record], alone: Callable[[str], Record]) -> None:
    """The exception is its prior penalty, which each worker computes over its own share."""
    one, two = alone("dividemix"), both[0]["dividemix"]
    for ours, theirs in zip(two["gradients"][0], one["gradients"][0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert two["labelled"] == one["labelled"]
    torch.testing.assert_close(torch.tensor(two["history"]), torch.tensor(one["history"]), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("name", RUNS)
def test_both_workers_hold_the_same_bits(both: list[Record], name: str) -> None:
    for key, value in both[0][name]["state"].items():
        assert torch.equal(value, both[1][name]["state"][key]), key
    assert both[0][name]["history"] == both[1][name]["history"]


def test_the_switch_leaves_statistics_to_each_worker(both: list[Record], alone: Callable[[str], Record]) -> None:
    assert both[0]["apart"]["kinds"] == ["BatchNorm2d"]
    pairs = zip(both[0]["apart"]["gradients"][0], alone("apart")["gradients"][0], strict=True)
    assert max(float((ours - theirs).abs().max()) for ours, theirs in pairs) > 1e-3


# --- parts of a batch ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{"defense.warmup_epochs": 1}, {"defense.name": "at"}, {"defense.name": "ce", "train.batch_size": 24}],
    ids=str,
)
def test_a_batch_in_parts_makes_the_step_of_the_whole(
    make_config: Config, data: CorruptedSet, register: Callable[..., None], options: dict[str, Any]
) -> None:
    register(BACKBONES, "smooth", smooth)
    shared = {"model.name": "smooth", "train.epochs": 2, "train.lr": 0.02} | options
    whole = train(make_config(shared), data)
    for parts in (2, 4):
        pieces = train(make_config(shared | {"train.accumulate": parts}), data)
        assert len(whole["gradients"]) == len(pieces["gradients"]) > 0, parts
        for ours, theirs in zip(pieces["gradients"][0], whole["gradients"][0], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
        assert whole["labelled"] == pieces["labelled"], parts
        history = torch.tensor(whole["history"])
        torch.testing.assert_close(torch.tensor(pieces["history"]), history, rtol=1e-3, atol=1e-3)


def test_parts_on_two_workers_too(both: list[Record], alone: Callable[[str], Record]) -> None:
    for ours, theirs in zip(both[0]["accumulated"]["gradients"][0], alone("accumulated")["gradients"][0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_parts_take_less_memory(make_config: Config, data: CorruptedSet) -> None:
    from erat.engine.memory import predict

    options = {"data.name": "mnist", "model.name": "resnet18", "data.image_size": 32, "train.batch_size": 64}
    whole, parts = (predict(make_config(options | {"train.accumulate": count})) for count in (1, 4))
    assert parts.step < whole.step / 2
    assert parts.flops == pytest.approx(whole.flops, rel=0.01)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"train.batch_size": 16, "train.accumulate": 3},
            "train.batch_size must be a multiple of train.workers (1) times train.accumulate (3), got 16",
        ),
        ({"train.accumulate": 0}, "train.accumulate"),
        ({"defense.warm_start": True, "train.accumulate": 1, "train.workers": 2}, "defense.warm_start"),
        (
            {"train.workers": 4, "resources.min_workers": 2},
            "every number of workers from resources.min_workers to train.workers (2 to 4), got 16",
        ),
        ({"train.workers": 1, "resources.min_workers": 2}, "resources.min_workers must be at most train.workers (1)"),
        ({"train.lr_rule": "cubic"}, "train.lr_rule"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_bad_input(make_config: Config, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said.replace("(", r"\(").replace(")", r"\)")):
        make_config(options)


def test_keys_that_came_later_leave_a_run_its_name(make_config: Config) -> None:
    plain = make_config()
    later = {"train.accumulate": 1, "train.lr_rule": "fixed", "train.lr_batch": 64}
    assert make_config(later).digest() == plain.digest()
    assert not plain.identity().keys() & later.keys()
    for key, value in {"train.accumulate": 2, "train.lr_rule": "sqrt", "train.lr_batch": 32}.items():
        assert make_config({key: value}).digest() != plain.digest()


def test_an_empty_batch_norm_counts_as_torch_s_does() -> None:
    """Alone, without a process group, a layer in eval mode calls no collective."""
    layer = nn.BatchNorm1d(2).eval()
    synchronise(layer, torch.device("cpu"))
    assert isinstance(layer, SynchronisedBatchNorm)
    assert torch.equal(layer(torch.ones(1, 2)), nn.BatchNorm1d(2).eval()(torch.ones(1, 2)))
