"""Measures images per second of ERAT's step, and what share of the device's peak that is by counted operations."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from erat.devices import arithmetic
from erat.engine.exchange import Exchange
from erat.engine.memory import LiveBytes
from erat.engine.parallel import Ranks
from erat.engine.trainer import Trainer
from erat.models import build_model
from tests.benchmarks import attacks
from tests.gpu.setting import Row, Rows, Setting, steps, tidy, tried, waited
from tests.gpu.sharing import TRIALS, compare

# Dense peaks in units of 10**12 operations a second, from the makers' data sheets; the first name that fits counts.
PEAKS: dict[str, dict[str, float]] = {
    "NVIDIA H100 PCIe": {"fp32": 51, "tf32": 378, "bf16": 756},
    "NVIDIA H100 NVL": {"fp32": 60, "tf32": 418, "bf16": 835},
    "NVIDIA H100": {"fp32": 67, "tf32": 494, "bf16": 989},
    "NVIDIA H200": {"fp32": 67, "tf32": 494, "bf16": 989},
    "NVIDIA A100": {"fp32": 19.5, "tf32": 156, "bf16": 312},
}
FAST: dict[str, Any] = {"train.channels_last": True, "train.precision": "bf16"}
VARIANTS: dict[str, dict[str, Any]] = {
    "eager": {},
    "eager, tf32": {"train.precision": "tf32"},
    "channels_last + bf16": FAST,
    "+ compile": FAST | {"train.compile": True},
    "+ CUDA graphs": FAST | {"train.compile": True, "train.cuda_graphs": True},
}
BATCHES = (64, 512)  # labelled images, and as many unlabelled; 64 is the paper's
SECONDS, FEWEST, MOST = 4.0, 3, 60  # of counted steps
EXCHANGE_BOUND = 1.1  # time of a step whose gradients pass through the exchange, against one without
ATTACK_BOUND = 1.05  # as for the CPU in tests/benchmarks, with some room for a shared card


def rows(setting: Setting) -> Rows:
    batches = (4,) if setting.quick else BATCHES
    yield tried(setting, "one rank through the exchange", partial(_one_rank, setting))
    for norm in attacks.EPSILON:
        title = f"PGD {norm} against torchattacks"
        if find_spec("torchattacks") is None:
            yield Row(title, "torchattacks is not installed", left_out=True)
        else:
            yield tried(setting, title, partial(_attack, setting, norm, title))
    yield tried(setting, _SHARING, partial(_shared, setting))
    for batch in batches:
        flops = tried(setting, f"operations of a step, {batch} + {batch}", partial(_counted, setting, batch))
        yield flops
        for name, options in VARIANTS.items():
            title = f"{setting.network('resnet34')}, {batch} + {batch}, {name}"
            left_out = setting.only_cuda(title) if "tf32" in name or "graphs" in name else None
            yield left_out or tried(
                setting, title, partial(_rate, setting, batch, options, title, flops.numbers.get("operations"))
            )


def _trainer(setting: Setting, batch: int, options: dict[str, Any], ranks: Ranks | None = None) -> Trainer:
    """Return a trainer whose epochs are long, so that their beginnings do not count."""
    wanted = {"model.name": setting.network("resnet34"), "train.batch_size": batch} | options
    return Trainer(setting.config(wanted), setting.data(2 * batch * (4 if setting.quick else 20)), ranks)


def _counted(setting: Setting, batch: int) -> Row:
    made = steps(_trainer(setting, batch, {}))
    next(made)
    with LiveBytes() as live:
        next(made)
    title = f"operations of a step, {batch} + {batch}"
    return Row(title, f"{live.flops / 1e12:.3g} 10^12", numbers={"operations": float(live.flops)})


def _rate(setting: Setting, batch: int, options: dict[str, Any], title: str, flops: float | None) -> Row:
    precision = str(options.get("train.precision", "fp32"))
    with warnings.catch_warnings(record=True) as warned, arithmetic(setting.device, precision):
        warnings.simplefilter("always")
        if setting.cuda:
            torch.cuda.reset_peak_memory_stats()
        began = waited(setting.device)
        made = steps(_trainer(setting, batch, options))
        for _ in islice(made, 3):
            pass
        ready = waited(setting.device) - began
        next(made)
        one = waited(setting.device) - began - ready
        count = 2 if setting.quick else min(max(round(SECONDS / one), FEWEST), MOST)
        began = waited(setting.device)
        for _ in islice(made, count):
            pass
        step = (waited(setting.device) - began) / count
    numbers = {"images/s": 2 * batch / step, "ms a step": 1000 * step, "s until the fourth step": ready}
    if setting.cuda:
        numbers["peak MB"] = torch.cuda.max_memory_allocated() / 2**20
    said = f"{numbers['images/s']:.0f} images/s, {1000 * step:.1f} ms a step"
    if flops is not None:
        numbers["10^12 operations/s"] = flops / step / 1e12
        peak = _peak(precision) if setting.cuda else None
        share = "" if peak is None else f", {flops / step / 1e12 / peak:.1%} of the peak"
        said += f", {flops / step / 1e12:.3g} 10^12 operations/s{share}"
        if peak is not None:
            numbers["share of the peak"] = flops / step / 1e12 / peak
    gave_up = [str(one.message) for one in warned if "uncompiled" in str(one.message)]
    return Row(title, gave_up[0] if gave_up else said, False if gave_up else None, numbers)


def _peak(precision: str) -> float | None:
    """Return the device's peak at this precision in 10**12 operations a second, or None if it is not known."""
    name = torch.cuda.get_device_name()
    return next((peaks[precision] for known, peaks in PEAKS.items() if name.startswith(known)), None)


# --- data-parallel ---------------------------------------------------------------------------------------------------


class Through(Ranks):
    """A single worker whose gradients pass through the exchange all the same."""

    def exchange(self, parameters: Any, *others: Tensor) -> Exchange:
        return Exchange(1, parameters, others)


def _one_rank(setting: Setting) -> Row:
    backend = "nccl" if setting.cuda else "gloo"
    batch, count = (4, 2) if setting.quick else (64, 10)
    with TemporaryDirectory() as folder, arithmetic(setting.device, "bf16"):
        dist.init_process_group(backend, f"file://{Path(folder) / 'meeting'}", world_size=1, rank=0)
        try:
            seconds, weights = [], []
            for ranks in (Ranks(), Through()):
                trainer = _trainer(setting, batch, FAST, ranks)
                made = steps(trainer)
                next(made)
                began = waited(setting.device)
                for _ in islice(made, count):
                    pass
                seconds.append((waited(setting.device) - began) / count)
                weights.append([value.detach().clone() for value in trainer.defense.parameters()])
                del trainer, made
                tidy(setting.device)
        finally:
            dist.destroy_process_group()
    same = all(torch.equal(*pair) for pair in zip(*weights, strict=True))
    ratio = seconds[1] / seconds[0]
    bits = "same bits" if same else "OTHER BITS"
    kept = same and (setting.quick or ratio <= EXCHANGE_BOUND)
    return Row(
        "one rank through the exchange",
        f"{backend}: {bits}, {ratio:.3f} times as long (at most {EXCHANGE_BOUND:g})",
        kept,
        {"ms a step": 1000 * seconds[1], "ms without": 1000 * seconds[0]},
    )


# --- against torchattacks --------------------------------------------------------------------------------------------


def _attack(setting: Setting, norm: str, title: str) -> Row:
    import torchattacks

    count, pairs = (8, 2) if setting.quick else (128, 9)
    network: nn.Module = build_model(
        setting.network("resnet34"), 10, 3, setting.size, [0.5] * 3, [0.25] * 3, seed=0
    ).eval()
    network.to(setting.device)
    images = torch.rand(count, 3, setting.size, setting.size, generator=torch.Generator().manual_seed(0))
    images, labels = images.to(setting.device), (torch.arange(count) % 10).to(setting.device)
    kind = torchattacks.PGD if norm == "linf" else torchattacks.PGDL2
    eps = attacks.EPSILON[norm]
    theirs = kind(network, eps=eps, alpha=eps / 5, steps=attacks.STEPS, random_start=False)

    def timed(work: Callable[[], object]) -> float:
        began = waited(setting.device)
        work()
        return waited(setting.device) - began

    with arithmetic(setting.device, "fp32"):
        both = [
            (timed(lambda: attacks.ours(norm, network, images, labels)), timed(lambda: theirs(images, labels)))
            for _ in range(pairs + 1)
        ][1:]
    ratio = median(mine / other for mine, other in both)
    return Row(
        title,
        f"{ratio:.3f} of its time (at most {ATTACK_BOUND:g})",
        setting.quick or ratio <= ATTACK_BOUND,
        {"ratio": ratio, "ms": 1000 * median(mine for mine, _ in both)},
    )


# --- trials that share a device --------------------------------------------------------------------------------------

_SHARING = f"{TRIALS} trials side by side against one after the other"


def _shared(setting: Setting) -> Row:
    together, in_turn = compare(setting)
    ratio = together / in_turn
    return Row(
        _SHARING,
        f"{ratio:.2f} of the time ({together:.1f} s, {in_turn:.1f} s)",
        numbers={"ratio": ratio, "s side by side": together, "s in turn": in_turn},
    )
